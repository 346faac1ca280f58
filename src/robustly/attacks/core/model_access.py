"""Model access: float32 logits, NaN-free input gradients, frozen batch-norm statistics, a bfloat16 copy."""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from robustly.attacks.core.contract import AttackError, Images
from robustly.models.divided import DividedModel
from robustly.models.layout import put_in_layout
from robustly.models.outputs import OutputError, logits_in

_NO_COPY = "no search in bfloat16 with this model"


def logits_of(model: nn.Module, points: Images, state: dict[str, Tensor] | None = None) -> Tensor:
    """The model's output in float32 or wider, because objectives underflow in half precision.

    The model receives its own dtype. Of an output with several parts, the logits are taken; see `logits_in`.

    Args:
        model: the model.
        points: inputs `(M, ...)`.
        state: weights and buffers in place of the model's own, which stay as they are.

    Raises:
        AttackError: the output holds no logits.
    """
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.dtype != points.dtype and parameter.dtype.is_floating_point:
        points = points.to(parameter.dtype)
    output = model(points) if state is None else functional_call(model, state, (points,))
    if not isinstance(output, Tensor):
        try:
            output = logits_in(output)
        except OutputError as error:
            raise AttackError(str(error)) from None
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output


def input_gradient(value: Float[Tensor, ""], points: Images, keep_graph: bool = False) -> Images:
    """Gradient of a sum with respect to the points; zeros for NaN, or if the model has no gradient."""
    if not value.requires_grad:
        return torch.zeros_like(points)
    (gradient,) = torch.autograd.grad(value, points, retain_graph=keep_graph, allow_unused=True)
    if gradient is None:
        return torch.zeros_like(points)
    # a sum with NaN or infinity is not finite; for large parameters it takes a tenth of the time of `nan_to_num`
    if gradient.device.type == "cpu" and math.isfinite(float(gradient.sum())):
        return gradient
    finite: Tensor = gradient.nan_to_num(0.0, 0.0, 0.0)
    return finite


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a network."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def frozen_statistics(*networks: nn.Module) -> Iterator[None]:
    """Keep batch-norm statistics unchanged during extra forward passes.

    Batch normalisations in train mode use the statistics of the batch and do not update the running ones.
    """
    norms = [norm for network in networks for norm in batch_norms(network)]
    tracked = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, was_tracked in zip(norms, tracked, strict=True):
            norm.track_running_stats = was_tracked


def half_precision_copy(model: nn.Module, x: Images) -> nn.Module | None:
    """A bfloat16 copy of a model, channels-last if it runs so; None, with a warning, if no such copy can be made.

    Use only for search: gradients have about three digits. Confirm successes in full precision.
    """
    layouts = [torch.channels_last, torch.contiguous_format] if x.ndim == 4 else [torch.contiguous_format]
    if isinstance(model, DividedModel):
        return _divided_copy(model, x)
    try:
        net = copy.deepcopy(model).to(torch.bfloat16)
        for layout in layouts:
            put_in_layout(net, layout)
            half = _HalfPrecision(net, layout)
            try:
                with torch.no_grad():
                    tried = logits_of(half, x[:1])
                break
            except Exception:  # networks that flatten with `.view` fail on channels-last images
                if layout is layouts[-1]:
                    raise
        if not bool(tried.isfinite().all()):
            raise ValueError("its logits are not finite")
    except Exception as error:
        warnings.warn(f"{_NO_COPY} ({error}); searching in full precision", stacklevel=4)
        return None
    return half


def _divided_copy(model: DividedModel, x: Images) -> nn.Module | None:
    half = model.passes.half()
    reason = "it cannot be copied" if half is None else ""
    if half is not None:
        with torch.no_grad():
            reason = "" if bool(logits_of(half, x[:1]).isfinite().all()) else "its logits are not finite"
    if reason:
        warnings.warn(f"{_NO_COPY} ({reason}); searching in full precision", stacklevel=5)
        return None
    return half


class _HalfPrecision(nn.Module):
    """The copy, with inputs converted to its dtype and memory format."""

    def __init__(self, net: nn.Module, layout: torch.memory_format) -> None:
        super().__init__()
        self.net, self.layout = net, layout

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in any format."""
        logits: Tensor = self.net(x.to(torch.bfloat16).contiguous(memory_format=self.layout))
        return logits
