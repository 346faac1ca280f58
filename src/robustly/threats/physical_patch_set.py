"""Images with one printed patch, seen under a scale, a rotation and a brightness that are drawn for each image."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats.contract import Box, PerExample, per_example

ImageBatch = Float[Tensor, "n c h w"]
Conditions = Float[Tensor, "n 3"]
Flat = Float[Tensor, "n p"]
_WHITE = 255
_SLACK = 1e-4


@dataclass(frozen=True)
class PhysicalPatchSet:
    """Images with one print under given conditions.

    theta `(N, C S S + 3)` holds a canvas of S x S pixels, S the smaller side of the images, whose upper left k x k
    pixels are the print and whose others are 0; then the row and the column of its centre in pixels, and its side
    k, 0 without a print.

    Args:
        x: original images `(N, C, H, W)`.
        side: largest side of the print, in pixels.
        box: least and largest valid value of an image.
        limits: largest rotation in degrees, deviation of the scale, and brightness as a share of the box's width.
        conditions: rotation, scale and brightness of each image as shares of their limits, in [-1, 1].
    """

    x: ImageBatch
    side: int
    box: Box
    limits: Float[Tensor, " 3"]
    conditions: Conditions

    @property
    def radius(self) -> PerExample:
        """Largest side, `(N,)`."""
        return self.x.new_full((len(self.x),), float(self.side))

    def seen_under(self, conditions: Conditions) -> "PhysicalPatchSet":
        """The same prints under other conditions."""
        return replace(self, conditions=conditions.to(self.x))

    def apply(self, theta: Flat) -> ImageBatch:
        """Images with their prints, interpolated bilinearly and clipped to the box."""
        if len(theta) == 0:  # the interpolation raises on an empty batch
            return self.x
        canvas, place, side = self.parted(theta)
        degrees, scale, light = (self.conditions * self.limits).unbind(1)
        angle, low, high = degrees * (math.pi / 180), *self.box
        down = (torch.arange(self.x.shape[2], device=theta.device) - place[:, :1])[:, :, None]
        right = (torch.arange(self.x.shape[3], device=theta.device) - place[:, 1:])[:, None, :]
        cosine, sine = ((values / (1 + scale))[:, None, None] for values in (angle.cos(), angle.sin()))
        # the place on the print under each pixel, from its centre; coordinates of the canvas are in [-1, 1]
        seen = torch.stack([cosine * right - sine * down, sine * right + cosine * down], 3)
        grid = (seen + per_example(side.detach().round() / 2, seen)) * (2 / canvas.shape[3]) - 1
        printed = self._printed(side)
        lit = (canvas + per_example((high - low) * light, canvas)).clamp(low, high)
        values = F.grid_sample(
            torch.cat([lit * printed, printed.to(lit)], 1), grid, "bilinear", "zeros", align_corners=False
        )
        return (self.x * (1 - values[:, -1:]) + values[:, :-1]).clamp(low, high)

    def identity(self) -> Flat:
        """No print."""
        canvas = self.x.new_zeros(len(self.x), self.x.shape[1], self._canvas, self._canvas)
        return self.joined(canvas, (self._size() - 1) / 2, torch.zeros_like(self.radius))

    def random_start(self, generator: KeyedGenerator) -> Flat:
        """A print of uniform contents at a uniform place."""
        low, high = self.box
        contents = generator.fold("contents").uniform(self.x.shape[1], self.side, self.side).to(self.x)
        place = generator.fold("place").uniform(2).to(self.x) * (self._size() - self.side) + (self.side - 1) / 2
        return self.placed(low + (high - low) * contents, place)

    def placed(self, contents: Float[Tensor, "n c k k"], place: Float[Tensor, "n 2"]) -> Flat:
        """Parameters of prints of some contents with these centres, in pixels."""
        side = contents.shape[3]
        if side == 0:
            return self.identity()
        more = self._canvas - side
        return self.joined(F.pad(contents, (0, more, 0, more)), place, self.x.new_full((len(self.x),), float(side)))

    def project(self, theta: Flat) -> Flat:
        """Nearest allowed parameters of prints of the nearest side."""
        canvas, place, side = self.parted(theta)
        side = side.round().clamp(0, self.side)
        half = (side.clamp_min(1)[:, None] - 1) / 2
        placed = torch.minimum(torch.maximum(place, half), self._size() - 1 - half)
        placed = torch.where(side[:, None] == 0, (self._size() - 1) / 2, placed)
        return self.joined(canvas.clamp(*self.box) * self._printed(side), placed, side)

    def step(self, theta: Flat, gradient: Flat, step_size: PerExample) -> Flat:
        """Step of contents and place along the sign of the gradient, by a share `step_size` / side of their ranges.

        Where there is no print, one of grey contents and the largest side begins.
        """
        low, high = self.box
        share = step_size / max(self.side, 1)
        canvas, place, side = self.parted(theta)
        up, along, _ = self.parted(gradient)
        canvas = torch.where(per_example(side == 0, canvas), (low + high) / 2, canvas)
        canvas = canvas + up.sign() * per_example((high - low) * share, canvas)
        place = place + along.sign() * share[:, None] * (self._size() - self.side) / 2
        return self.project(self.joined(canvas, place, torch.where(side == 0, self.radius, side)))

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 sides over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def size(self, theta: Flat) -> PerExample:
        """Side of each print, in pixels at scale 1."""
        return theta[:, -1]

    def contains(self, theta: Flat) -> Bool[Tensor, " n"]:
        """True where the print is small enough, its contents lie in the box, and it is inside the image upright."""
        side = theta[:, -1]
        near = ((self.project(theta) - theta).abs() <= _SLACK).all(1)  # false for NaN
        return near & (side == side.round())

    def describe(self, theta: Flat) -> list[str]:
        """One phrase per example: the place of the print, and its conditions."""
        _, place, side = self.parted(theta)
        seen = (self.conditions * self.limits).tolist()
        return [
            f"print of {k:.0f} x {k:.0f} pixels centred at row {row:.1f} and column {column:.1f}, seen rotated by "
            f"{turn:+.1f} degrees, scaled by {1 + scale:.2f}, brightness {light:+.2f}"
            if k > 0
            else "unchanged"
            for k, (row, column), (turn, scale, light) in zip(side.tolist(), place.tolist(), seen, strict=True)
        ]

    def select(self, index: Tensor) -> "PhysicalPatchSet":
        """Sets of some of the examples."""
        return replace(self, x=self.x[index], conditions=self.conditions[index])

    def parted(self, theta: Flat) -> tuple[Float[Tensor, "n c s s"], Float[Tensor, "n 2"], PerExample]:
        """Canvas, centres and sides."""
        return theta[:, :-3].view(-1, self.x.shape[1], self._canvas, self._canvas), theta[:, -3:-1], theta[:, -1]

    @staticmethod
    def joined(canvas: Float[Tensor, "n c s s"], place: Float[Tensor, "m 2"], side: PerExample) -> Flat:
        """Parameters that `parted` separates; one place may be that of all."""
        return torch.cat([canvas.flatten(1), place.expand(len(canvas), -1), side[:, None]], 1)

    @property
    def _canvas(self) -> int:
        return min(self.x.shape[2:])

    def _size(self) -> Float[Tensor, "1 2"]:
        """Height and width of the images."""
        return self.x.new_tensor([self.x.shape[2:]])

    def _printed(self, side: PerExample) -> Bool[Tensor, "n 1 s s"]:
        """Masks of the print on its canvas."""
        within = torch.arange(self._canvas, device=side.device) < side.detach().round()[:, None]
        return (within[:, :, None] & within[:, None, :])[:, None]


def drawn_from(x: ImageBatch, box: Box) -> Conditions:
    """Conditions in [-1, 1] drawn uniformly from images, which are rounded to 8 bits."""
    low, high = box
    levels = ((x.double() - low) * (_WHITE / (high - low))).round().clamp(0, _WHITE).long().flatten(1)
    place = KeyedGenerator(derive_seed("physical patch"), torch.arange(levels.shape[1], device=x.device))
    weights = place.integers(1 << 31, 2)
    folded = (levels * (weights[:, 0] * (1 << 31) + weights[:, 1])).sum(1)  # wraps: exact in any order
    return 2 * KeyedGenerator(derive_seed("conditions"), folded).uniform(3) - 1
