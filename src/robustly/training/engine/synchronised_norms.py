"""Batch normalisation over the batch of all processes."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustly.attacks.core.model_access import batch_norms
from robustly.training.engine.replaced_forward import forward_replaced


class SynchronisedNormError(ValueError):
    """Networks whose batch normalisation cannot be synchronised."""


def check_norms(networks: dict[str, nn.Module]) -> None:
    """Refuse networks without batch normalisation, and layers of a class with a `forward` of its own.

    Args:
        networks: the trained networks by name.

    Raises:
        SynchronisedNormError: such networks or layers.
    """
    found = False
    for name, network in networks.items():
        for place, norm in network.named_modules():
            if isinstance(norm, torch.jit.ScriptModule) and "BatchNorm" in norm.original_name:
                raise SynchronisedNormError(
                    f"training.sync_batch_norm: the {name} is a TorchScript program, whose batch normalisation is "
                    "fixed: set it to false"
                )
            if not isinstance(norm, _BatchNorm):
                continue
            found = True
            if type(norm).forward is not _BatchNorm.forward:
                raise SynchronisedNormError(
                    f"training.sync_batch_norm: {place} of the {name} is a {type(norm).__name__} with a forward "
                    "pass of its own: use nn.BatchNorm2d, or set it to false"
                )
    if not found:
        raise SynchronisedNormError(
            "training.sync_batch_norm has no effect: no trained network has batch normalisation; set it to false"
        )


@contextmanager
def synchronised_norms(networks: Iterable[nn.Module]) -> Iterator[None]:
    """In the block, batch normalisations in training mode use the statistics of the batches of all processes.

    All processes must take the same forward and backward passes in the block, on at least one example each; their
    numbers of examples may differ. Weights, names and modes stay as they are, and layers that use running
    statistics (evaluation mode) compute as always. Gradients are those of the sum of the losses of all processes.

    Args:
        networks: the networks.
    """
    with ExitStack() as held:
        for network in networks:
            for norm in batch_norms(network):
                held.enter_context(forward_replaced(norm, partial(_normalised, norm)))
        yield


class _Sum(torch.autograd.Function):
    """Sum of a tensor over all processes; the gradient is the sum of their gradients, and has one itself."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient.contiguous())  # type: ignore[no-untyped-call]
        return total


def _normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Output of a batch normalisation, `(N, C, ...)` as its input."""
    uses_batch = norm.training or (norm.running_mean is None and norm.running_var is None)
    if not uses_batch:
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    places = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    here = wide.mean(places)
    centred = wide - here.view(shape)  # before it is squared: a difference of squares loses digits
    means, squares, counts = _of_all_processes(here, centred.square().sum(places), x.numel() / x.shape[1])
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (squares + counts * (means - mean).square()).sum(0) / count
    if norm.training and norm.track_running_stats:
        _update(norm, mean.detach(), variance.detach(), count)
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = (here - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return (centred * scale.view(shape) + shift.view(shape)).to(x.dtype)


def _of_all_processes(mean: Tensor, squares: Tensor, count: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means `(P, C)`, sums of squares `(P, C)` and counts `(P, 1)` of all processes, by one communication."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = torch.cat([mean, squares, mean.new_tensor([count])])
    rows: Tensor = _Sum.apply(F.pad(own[None], (0, 0, rank, size - 1 - rank)))  # type: ignore[no-untyped-call]
    return rows[:, : len(mean)], rows[:, len(mean) : -1], rows[:, -1:].detach()


@torch.no_grad()
def _update(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move the running statistics, whose variance is the unbiased one, as `nn.BatchNorm2d` does."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.running_mean is None or norm.running_var is None:
        return
    if norm.momentum is None:
        assert norm.num_batches_tracked is not None
        share: Tensor | float = 1 / norm.num_batches_tracked.to(mean.dtype)
    else:
        share = norm.momentum
    unbiased = variance * (count / (count - 1).clamp_min(1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.add_(share * (new.to(running.dtype) - running))
