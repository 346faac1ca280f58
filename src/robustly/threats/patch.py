"""Patches: a square of pixels anywhere in the image, of any content."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Box, Images, PerExample, ThreatError, checked_box, per_example
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.precision import at_least_float32

ImageBatch = Float[Tensor, "n c h w"]
Corners = Int64[Tensor, "n 2"]


@dataclass(frozen=True)
class Patch:
    """All images that differ from the original in one square of `side` x `side` pixels only, anywhere in the image.

    The contents are free within the box (adversarial patches: Brown et al., arXiv 1712.09665; at any location:
    Karmon, Zoran and Goldberg, LaVAN, ICML 2018). Each image has a patch of its own.

    Args:
        side: of the square in pixels, a whole number of at least 0.
        box: least and largest valid value of an image.

    Raises:
        ThreatError: a side that is negative or not whole; an empty box; at use, inputs that are not
            `(N, C, H, W)`, or images that are smaller than the square.
    """

    side: Fraction
    box: Box

    def __init__(self, side: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)) -> None:
        rule = "the side of a patch must be a whole number of pixels of at least 0"
        try:
            exact = parse_epsilon(side)
        except ThreatError:
            raise ThreatError(f"{rule}, got {side!r}") from None
        if exact < 0 or exact.denominator != 1:
            raise ThreatError(f"{rule}, got {fraction_text(exact)}")
        object.__setattr__(self, "side", exact)
        object.__setattr__(self, "box", checked_box(box))

    def __str__(self) -> str:
        return f"{self.kind}:{self.extent_text}"

    @property
    def kind(self) -> str:  # noqa: D102
        return "patch"

    @property
    def extent(self) -> Fraction:
        """Side of the square."""
        return self.side

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.side)

    @property
    def unit(self) -> str:  # noqa: D102
        return "pixels"

    @property
    def arrays(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {}

    @property
    def set_type(self) -> type["PatchSet"]:  # noqa: D102
        return PatchSet

    def words(self) -> str:
        """Description of the threat in a sentence."""
        return (
            f"One square of {self.extent_text} x {self.extent_text} pixels, anywhere in the image, may have any "
            "content."
        )

    def scaled(self, factor: float) -> "Patch":
        """Squares of `factor` times the side, rounded up to whole pixels."""
        return self.with_extent(math.ceil(float(self.side) * factor))

    def with_extent(self, extent: float | str | Fraction) -> "Patch":
        """Squares of another side."""
        return Patch(extent, self.box)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Whole sides nearest to multiples of this one."""
        return whole_sides(self.side, factors)

    def select(self, index: Tensor) -> "Patch":
        """The same threat: its side does not differ between examples."""
        return self

    def around(self, x: Images) -> "PatchSet":
        """Images with a patch around each image of a batch.

        Raises:
            ThreatError: inputs that are not `(N, C, H, W)`; images that are smaller than the square.
        """
        if x.ndim != 4:
            raise ThreatError(f"a patch is defined for images (N, C, H, W), got {tuple(x.shape)}")
        height, width = x.shape[2:]
        if self.side > min(height, width):
            raise ThreatError(f"{self} is larger than images of {height} x {width} pixels")
        return PatchSet(at_least_float32(x), int(self.side), self.box)


def whole_sides(side: Fraction, factors: Sequence[float]) -> list[Fraction]:
    """Whole sides nearest to multiples of a side, ascending and without zero."""
    sides = {Fraction(round(side * Fraction(factor).limit_denominator(1000))) for factor in factors}
    return sorted(one for one in sides if one > 0)


@dataclass(frozen=True)
class PatchSet:
    """Images with one patch; theta `(N, C, H, W)` is what is added to the image, zero outside one square.

    Args:
        x: original images `(N, C, H, W)`.
        side: of the square, in pixels.
        box: least and largest valid value of an image.
    """

    x: ImageBatch
    side: int
    box: Box

    @property
    def radius(self) -> PerExample:
        """Side of the square, `(N,)`."""
        return self.x.new_full((len(self.x),), float(self.side))

    def apply(self, theta: ImageBatch) -> ImageBatch:
        """Images with their patches, clipped to the box."""
        return (self.x + theta).clamp(*self.box)

    def moved_to(self, images: ImageBatch) -> "PatchSet":
        """The same additions to other images."""
        return PatchSet(images, self.side, self.box)

    def identity(self) -> ImageBatch:
        """Additions of zero."""
        return torch.zeros_like(self.x)

    def random_start(self, generator: KeyedGenerator) -> ImageBatch:
        """Uniform contents at a uniform place."""
        low, high = self.box
        corners, shape = self.random_corners(generator.fold("place")), (self.x.shape[1], self.side, self.side)
        return self.placed(low + (high - low) * generator.fold("contents").uniform(*shape).to(self.x), corners)

    def project(self, theta: ImageBatch) -> ImageBatch:
        """Nearest allowed addition (Euclidean, exact for square and box together)."""
        if self.side == 0:
            return torch.zeros_like(theta)
        clipped = self._clipped(theta)
        gain = theta.square() - (theta - clipped).square()  # by keeping a value instead of resetting it
        best = self._best(gain).corners
        corners = torch.where((self.size(theta) <= self.side)[:, None], self.corners(theta), best)
        return clipped * self.windows(corners)

    def step(self, theta: ImageBatch, gradient: ImageBatch, step_size: PerExample) -> ImageBatch:
        """Step of the contents along the sign of the gradient, by a share `step_size` / side of the box's width.

        Of all squares it keeps the one of the largest first-order value. With few contents the square moves, with
        a saturated one it stays.
        """
        moved = self._moved(theta, gradient, step_size)
        if self.side == 0:
            return torch.zeros_like(theta)
        best, here = self._best(gradient * moved), self.corners(theta)
        worth = (gradient * moved * self.windows(here)).flatten(1).sum(1)
        stays = (worth >= best.value) & (self.size(theta) > 0)
        corners = torch.where(stays[:, None], here, best.corners)
        return moved * self.windows(corners)

    def step_in_place(self, theta: ImageBatch, gradient: ImageBatch, step_size: PerExample) -> ImageBatch:
        """The same step of the contents, with the square where it is."""
        return self._moved(theta, gradient, step_size) * self.windows(self.corners(theta))

    def filled(self, gradient: ImageBatch, corners: Corners) -> ImageBatch:
        """Squares at `corners` whose pixels are at the end of the box that the gradient points to."""
        return self._moved(self.identity(), gradient, self.radius) * self.windows(corners)

    def random_corners(self, generator: KeyedGenerator) -> Corners:
        """Row and column of the upper left pixel of a square at a uniform place."""
        room = torch.tensor(self.x.shape[2:], device=self.x.device) - self.side + 1
        return (generator.uniform(2).to(self.x.device) * room).long()

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 sides over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def size(self, theta: ImageBatch) -> PerExample:
        """Side of the smallest square that holds all changed pixels."""
        first, last = _bounds(theta)
        return (last - first + 1).amax(1).to(theta)

    def contains(self, theta: ImageBatch) -> Bool[Tensor, " n"]:
        """True where one square holds all changed pixels; exact."""
        return (self.size(theta) <= self.side) & theta.isfinite().flatten(1).all(1)

    def describe(self, theta: ImageBatch) -> list[str]:
        """One phrase per example: the place of the changed pixels."""
        first, last = (place.tolist() for place in _bounds(theta))
        return [
            f"pixels changed in rows {top} to {bottom} and columns {left} to {right}"
            if bottom >= top
            else "unchanged"
            for (top, left), (bottom, right) in zip(first, last, strict=True)
        ]

    def select(self, index: Tensor) -> "PatchSet":
        """Sets of some of the examples."""
        return PatchSet(self.x[index], self.side, self.box)

    def corners(self, theta: ImageBatch) -> Corners:
        """Row and column of the upper left pixel of a square that holds all changed pixels."""
        height, width = self.x.shape[2:]
        room = torch.tensor([height - self.side, width - self.side], device=theta.device)
        return torch.minimum(_bounds(theta)[0], room)

    def windows(self, corners: Corners) -> Bool[Tensor, "n 1 h w"]:
        """Masks of the squares with these upper left pixels."""
        height, width = self.x.shape[2:]
        row = torch.arange(height, device=corners.device) - corners[:, :1]
        column = torch.arange(width, device=corners.device) - corners[:, 1:]
        inside = [(place >= 0) & (place < self.side) for place in (row, column)]
        return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]

    def contents(self, theta: ImageBatch) -> Float[Tensor, "n c k k"]:
        """Pixels of the square of each changed image."""
        corners, span = self.corners(theta), torch.arange(self.side, device=theta.device)
        rows, columns = corners[:, :1] + span, corners[:, 1:] + span
        number = torch.arange(len(theta), device=theta.device)[:, None, None]
        return self.apply(theta)[number, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)

    def placed(self, contents: Float[Tensor, "n c k k"], corners: Corners) -> ImageBatch:
        """Parameters of images whose square at `corners` has these pixels."""
        if self.side == 0:
            return torch.zeros_like(self.x)
        height, width = self.x.shape[2:]
        row = (torch.arange(height, device=corners.device) - corners[:, :1]).clamp(0, self.side - 1)
        column = (torch.arange(width, device=corners.device) - corners[:, 1:]).clamp(0, self.side - 1)
        number = torch.arange(len(corners), device=corners.device)[:, None, None]
        spread = contents[number, :, row[:, :, None], column[:, None, :]].movedim(3, 1)
        return (spread - self.x) * self.windows(corners)

    def _clipped(self, theta: ImageBatch) -> ImageBatch:
        low, high = self.box
        return torch.minimum(torch.maximum(theta, low - self.x), high - self.x)

    def _moved(self, theta: ImageBatch, gradient: ImageBatch, step_size: PerExample) -> ImageBatch:
        low, high = self.box
        length = (high - low) * step_size / max(self.side, 1)
        return self._clipped(theta + gradient.sign() * per_example(length, theta))

    def _best(self, values: ImageBatch) -> "_Best":
        """The square with the largest sum of values."""
        sums = F.avg_pool2d(values.sum(1, keepdim=True), self.side, stride=1) * self.side**2
        value, place = sums.flatten(1).max(1)
        across = sums.shape[3]
        return _Best(value, torch.stack([place // across, place % across], 1))


@dataclass(frozen=True)
class _Best:
    value: PerExample
    corners: Corners


def _bounds(theta: ImageBatch) -> tuple[Corners, Corners]:
    """First and last changed row and column of each image; 0 and -1 where nothing changes."""
    changed = (theta != 0).any(1)
    along = changed.any(2), changed.any(1)  # rows, columns
    first = torch.stack([some.int().argmax(1) for some in along], 1)
    last = torch.stack([some.shape[1] - 1 - some.flip(1).int().argmax(1) for some in along], 1)
    nothing = ~changed.flatten(1).any(1, keepdim=True)
    return first, torch.where(nothing, -1, last)
