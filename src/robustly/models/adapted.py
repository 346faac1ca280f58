"""A classifier behind the conventions of this package: one module around any other."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustly.models.layers import Normalize
from robustly.models.outputs import logits_in, two_classes

Images = Float[Tensor, "n ..."]


class Adapted(nn.Module):
    """A classifier behind the conventions of this package.

    The names of its weights are those of the inner model, so that hashes and files agree with it.

    Args:
        inner: the model.
        normalize: standardises the images first; None passes them as they are.
        hidden: modules that `inner` uses but does not register, by their place.
        copies_input: True passes a copy of the images, for models that change their input in place.
        fixed_mode: True never calls `train()` or `eval()` of `inner`, for programs without modes.
        backward_only: True differentiates by `backward()`, for reentrant checkpoints, which refuse gradients with
            respect to the input alone.
        single_logit: True expects one logit per image, that of the second of two classes.
    """

    def __init__(
        self,
        inner: nn.Module,
        *,
        normalize: Normalize | None = None,
        hidden: Mapping[str, nn.Module] | None = None,
        copies_input: bool = False,
        fixed_mode: bool = False,
        backward_only: bool = False,
        single_logit: bool = False,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.normalize = normalize
        self.hidden = nn.ModuleList((hidden or {}).values())
        self.places = tuple(hidden or {})
        self.copies_input, self.fixed_mode = copies_input, fixed_mode
        self.backward_only, self.single_logit = backward_only, single_logit
        # a new module is in training mode, whatever the mode of the modules in it
        self.training = bool(getattr(inner, "training", False))

    def forward(self, x: Images) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1].

        Raises:
            OutputError: the model's output holds no logits.
        """
        x = x if self.normalize is None else self.normalize(x)
        x = x.clone() if self.copies_input else x
        needs_gradient = self.backward_only and x.requires_grad and torch.is_grad_enabled()
        logits: Tensor = _BackwardOnly.apply(x, self._logits) if needs_gradient else self._logits(x)  # type: ignore[no-untyped-call]
        return two_classes(logits) if self.single_logit else logits

    def _logits(self, x: Images) -> Tensor:
        return logits_in(self.inner(x))

    def train(self, mode: bool = True) -> "Adapted":
        """Switch the modes of all modules that have them."""
        self.training = mode
        for module in self.hidden:
            module.train(mode)
        if not self.fixed_mode:
            self.inner.train(mode)
            return self
        for module in self.inner.modules():
            if hasattr(module, "training"):
                module.training = mode
        return self

    def state_dict(  # type: ignore[override]
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """State of the model under its own names, of the modules that it hides, and of the normalisation."""
        state: dict[str, Any] = {} if destination is None else destination
        for name, module in self._parts():
            module.state_dict(destination=state, prefix=prefix + name, keep_vars=keep_vars)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state with the names of `state_dict`."""
        rest = dict(state_dict)
        for name, module in reversed(self._parts()):
            own = {key: rest.pop(key) for key in list(rest) if key.startswith(name)}
            part = {key.removeprefix(name): value for key, value in own.items()}
            done = module.load_state_dict(part, strict=strict, assign=assign)
        return done

    def _parts(self) -> list[tuple[str, nn.Module]]:
        """The modules with the prefixes of their names; the inner model comes first and has none."""
        parts: list[tuple[str, nn.Module]] = [("", self.inner)]
        parts += [(f"{place}.", module) for place, module in zip(self.places, self.hidden, strict=True)]
        return parts if self.normalize is None else [*parts, ("normalize.", self.normalize)]


class FunctionModel(nn.Module):
    """A plain function with the modules that it uses, so that these have modes, devices and hashes."""

    def __init__(self, function: Callable[[Tensor], object], used: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.function = function
        self.used = nn.ModuleList(used.values())

    def forward(self, x: Images) -> object:
        """Output of the function."""
        return self.function(x)


class _BackwardOnly(torch.autograd.Function):
    """A function whose input gradient is found by `backward()` on a graph of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.output = function(ctx.x)
        return ctx.output.detach()  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        ctx.x.grad = None
        # PyTorch forbids reentrant checkpoints anywhere below `torch.autograd.grad` in the same thread
        with ThreadPoolExecutor(1) as pool:
            pool.submit(torch.autograd.backward, ctx.output, gradient, retain_graph=True).result()
        return ctx.x.grad, None
