"""Functions of every value alone whose slopes are computed with the values: one product in the backward pass.

Left to autograd, each clamp, power and sum of such a function has kernels of its own in the backward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Known(torch.autograd.Function):
    """Given values, with given slopes in some tensors."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *pairs: Tensor) -> Tensor:
        """The values; `pairs` are tensors and slopes in turn."""
        ctx.save_for_backward(*pairs[1::2])
        ctx.shapes = [tensor.shape for tensor in pairs[::2]]
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient times each slope, summed over the places that share a number."""
        found: list[Tensor | None] = [None]
        for place, (slope, shape) in enumerate(zip(ctx.saved_tensors, ctx.shapes, strict=True)):
            needed = ctx.needs_input_grad[1 + 2 * place]
            found += [(gradient * slope).sum_to_size(shape) if needed else None, None]
        return tuple(found)


def wants_slopes(*tensors: Tensor) -> bool:
    """True if one of the tensors takes part in a gradient."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def with_slopes(value: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Values with given slopes: the gradient with respect to each tensor is that of the values times its slope.

    There is no second derivative.

    Args:
        value: values without gradient.
        pairs: tensors that the values depend on, and slopes of the shape of the values. A tensor may be of a shape
            that broadcasts to that of the values.
    """
    found: Tensor = _Known.apply(value, *(part for pair in pairs for part in pair))  # type: ignore[no-untyped-call]
    return found
