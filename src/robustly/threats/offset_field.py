"""Sets whose parameters are offsets from zero on a grid, each at most the radius: flows, maps of colours."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Box, Images, PerExample, Theta, per_example

_IN_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
_LARGE = 1 << 15


def best_one_by_one(theta: Theta) -> bool:
    """True for parameters that a CPU handles faster one example at a time, without a copy of all of them.

    The offsets of a colour map are 16 times the values of a small image.
    """
    return theta.device.type == "cpu" and theta[:1].numel() > _LARGE


def unwritten(like: Tensor, *shape: int) -> Tensor:
    """`like.new_empty(shape)`; on a CPU in memory that NumPy allocates.

    NumPy uses huge pages. New memory of PyTorch comes in pages of 4 KiB, whose first use takes several times as
    long as a sum over them.
    """
    if like.device.type != "cpu" or like.dtype not in _IN_NUMPY:
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, _IN_NUMPY[like.dtype]))


@dataclass(frozen=True)
class OffsetField:
    """Inputs changed by offsets in [-radius, radius]; a class of sets adds `shape` and `apply`.

    Args:
        x: original inputs `(N, ...)`.
        radius: largest offset, `(N,)`.
        box: least and largest valid value of an input.
    """

    x: Images
    radius: PerExample
    box: Box

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the offsets of one example."""
        raise NotImplementedError

    def moved_to(self, images: Images) -> Self:
        """The same changes of other inputs."""
        return replace(self, x=images)

    def identity(self) -> Theta:
        """Offsets of zero."""
        return unwritten(self.x, len(self.x), *self.shape).zero_()

    def random_start(self, generator: KeyedGenerator) -> Theta:
        """Independent offsets, uniform in their range."""
        share = generator.uniform(*self.shape).to(self.x).mul_(2).sub_(1)
        return share.mul_(per_example(self.radius, share))

    def project(self, theta: Theta) -> Theta:
        """Offsets clipped to their range."""
        reach = per_example(self.radius, theta)
        return theta.clamp(-reach, reach)

    def step(self, theta: Theta, gradient: Theta, step_size: PerExample) -> Theta:
        """Step of every offset by `step_size` along the sign of its gradient."""
        return self.step_in_place(theta, gradient.clone(), step_size)

    def step_in_place(self, theta: Theta, gradient: Theta, step_size: PerExample) -> Theta:
        """The same step, written over the gradient: new memory takes longer than the step."""
        gradient = gradient.contiguous()  # an expanded one has no memory of its own
        if best_one_by_one(theta):
            lengths, radii = step_size.tolist(), self.radius.tolist()
            for new, old, length, reach in zip(gradient, theta, lengths, radii, strict=True):
                torch.add(old, new.sign_(), alpha=length, out=new).clamp_(-reach, reach)
            return gradient
        wide = per_example(self.radius, theta)
        return gradient.sign_().mul_(per_example(step_size, theta)).add_(theta).clamp_(-wide, wide)

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 radii over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def size(self, theta: Theta) -> PerExample:
        """Largest offset."""
        flat = theta.flatten(1)
        return torch.maximum(flat.amax(1), -flat.amin(1)).abs()

    def contains(self, theta: Theta) -> Bool[Tensor, " n"]:
        """True where each offset is in its range, up to float32 rounding."""
        return self.size(theta) <= self.radius * (1 + 1e-6) + 1e-6

    def select(self, index: Tensor) -> Self:
        """Sets of some of the examples."""
        return replace(self, x=self.x[index], radius=self.radius[index])
