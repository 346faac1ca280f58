"""ReColorAdv: one map of colours per image (Laidlaw and Feizi, "Functional Adversarial Attacks", NeurIPS 2019).

The map is a grid of 16 x 32 x 32 colours in CIE L*u*v*, interpolated trilinearly: pixels of the same colour keep a
common colour. The paper's limit is 0.06 per channel, of the ranges 100 of L* and 200 of u* and v*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustly.threats.colour.cie import luv_of, rgb_of_luv
from robustly.threats.colour.unit_range import from_unit, to_unit
from robustly.threats.contract import Box, Images, PerExample
from robustly.threats.offset_field import OffsetField, unwritten
from robustly.threats.parameter_box import all_zero, exact_at_neutral
from robustly.threats.transformation import BoundedTransformation, check_channels

RESOLUTION = (16, 32, 32)
"""Grid points along L*, u* and v*."""
_TINY = 1e-10  # added to squared differences, whose root would have no derivative at 0
Offsets = Float[Tensor, "n 3 l u v"]


@dataclass(frozen=True)
class ColourMapSet(OffsetField):
    """Images after a map of colours; theta is the change of L*, u* and v* at each grid point, `(N, 3, 16, 32, 32)`.

    Changes are shares of the ranges of L*, u* and v*. Colours beyond the grid take the change at its nearest point.

    Args:
        x: original images `(N, 3, H, W)`.
        radius: largest change per channel, `(N,)`.
        box: least and largest valid value of an image.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the changes of one image, `(3, 16, 32, 32)`."""
        return 3, *RESOLUTION

    def apply(self, theta: Offsets) -> Images:
        """Images with changed colours, clipped to the gamut of sRGB; exactly the originals where theta is 0."""
        luv, cells = self._colours() if self.x.requires_grad else self._fixed_colours
        changed = from_unit(rgb_of_luv(luv + cells.interpolated(theta)), self.box)
        return exact_at_neutral(changed, self.x, all_zero(theta))

    def _colours(self) -> tuple[Float[Tensor, "n 3 h w"], "Cells"]:
        """Colours of the pixels in L*u*v*, and their places in the grid."""
        luv = luv_of(to_unit(self.x, self.box))
        return luv, cells_of(luv)

    @cached_property
    def _fixed_colours(self) -> tuple[Float[Tensor, "n 3 h w"], "Cells"]:
        """The same for images without gradients, which every step of an ascent needs."""
        return self._colours()

    def roughness(self, theta: Offsets) -> PerExample:
        """Lengths of the differences between neighbouring grid points, in the unit of sizes, summed over all pairs.

        Each is sqrt(d^2 + 1e-10), less its value at zero.
        """
        total = theta.new_zeros(len(theta))
        for axis in (2, 3, 4):
            lengths = (theta.diff(dim=axis).square().sum(1) + _TINY).sqrt() - _TINY**0.5
            total = total + lengths.flatten(1).sum(1)
        return total

    def describe(self, theta: Offsets) -> list[str]:
        """Each change in words: "colours changed by at most 0.05 of the ranges of L*, u*, v*"."""
        return [
            f"colours changed by at most {size:.2g} of the ranges of L*, u*, v*" if size else "unchanged"
            for size in self.size(theta).tolist()
        ]


@dataclass(frozen=True)
class ColourMaps:
    """Family of maps of colours on a grid in CIE L*u*v*."""

    kind = "recolor"
    unit = "times the range of L*, u* and v*"
    least = Fraction(0)
    most = Fraction(1)
    sentence = (
        "The colours of an image may pass through a map on a grid of 16 x 32 x 32 colours in CIE L*u*v*, which "
        "changes each of L*, u* and v* by at most {limit} times its range (ReColorAdv)."
    )
    set_type = ColourMapSet

    def within(self, limit: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)) -> BoundedTransformation:
        """Threat that allows changes of colours up to a limit.

        Raises:
            ThreatError: a limit that is not in [0, 1]; an empty box.
        """
        return BoundedTransformation(self, limit, box)

    def advice(self, limit: Fraction) -> str:
        """Nothing."""
        return ""

    def around(self, x: Images, limit: Fraction, box: Box) -> ColourMapSet:
        """Recoloured images around each image, for a limit and a box."""
        check_channels(self.kind, (3,), x.shape)
        return ColourMapSet(x, torch.full((len(x),), float(limit), device=x.device, dtype=x.dtype), box)


RECOLOR = ColourMaps()


@dataclass(frozen=True)
class Cells:
    """Places of pixels in the grid: the eight grid points around each, and their weights.

    Args:
        points: numbers of the grid points, `(N, 8 H W)`.
        weights: `(N, 1, 8, H, W)`; those of a pixel sum to 1.
    """

    points: Int64[Tensor, "n p"]
    weights: Float[Tensor, "n 1 8 h w"]

    def interpolated(self, theta: Offsets) -> Float[Tensor, "n 3 h w"]:
        """Changes of the colours of each pixel, interpolated trilinearly between the grid points."""
        if theta.device.type == "cpu" and not self.weights.requires_grad:
            changes: Tensor = _Trilinear.apply(theta, self)  # type: ignore[no-untyped-call]
            return changes
        count, _, eight, height, width = self.weights.shape
        found = theta.flatten(2).gather(2, self.points[:, None].expand(-1, 3, -1))
        return (found.view(count, 3, eight, height, width) * self.weights).sum(2)

    @cached_property
    def by_image(self) -> list[tuple[Tensor, Tensor]]:
        """Points `(8 H W,)` and weights `(1, 8, H, W)` of each image: to select them anew takes a tenth of a step."""
        return list(zip(self.points.unbind(0), self.weights.unbind(0), strict=True))


class _Trilinear(torch.autograd.Function):
    """The same interpolation image by image: what belongs to one image fits in the cache of a CPU."""

    @staticmethod
    def forward(ctx: Any, theta: Offsets, cells: Cells) -> Tensor:
        """Changes of the colours of each pixel, `(N, 3, H, W)`."""
        ctx.cells, ctx.shape = cells, theta.shape
        count, _, eight, height, width = cells.weights.shape
        found = theta.new_empty(count, 3, height, width)
        own = theta.new_empty(3, theta.shape[2:].numel())
        near = theta.new_empty(3, eight, height, width)
        flat = near.flatten(1)
        grids = theta.flatten(2).unbind(0)
        for changes, grid, (places, shares) in zip(found.unbind(0), grids, cells.by_image, strict=True):
            own.copy_(grid)  # read in order: places at random in memory take three times as long
            torch.index_select(own, 1, places, out=flat)
            torch.sum(near.mul_(shares), 1, out=changes)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Gradient with respect to the grid points."""
        found = unwritten(gradient, *ctx.shape)
        parts = gradient.new_empty(3, *ctx.cells.weights.shape[2:])
        flat = parts.flatten(1)
        grids, along = found.flatten(2).unbind(0), gradient.unsqueeze(2).unbind(0)
        for grid, changes, (places, shares) in zip(grids, along, ctx.cells.by_image, strict=True):
            torch.mul(changes, shares, out=parts)
            grid.zero_().scatter_add_(1, places.expand(3, -1), flat)
        return found, None


def cells_of(luv: Float[Tensor, "n 3 h w"]) -> Cells:
    """Places of colours in the grid; colours beyond it are at its nearest point. Weights are differentiable."""
    near, far, shares = [], [], []
    for channel, side in zip(luv.unbind(1), RESOLUTION, strict=True):
        place = channel.clamp(0.0, 1.0) * (side - 1)
        low = place.detach().floor()
        share = place - low
        near.append(low.long())
        far.append((near[-1] + 1).clamp_max(side - 1))
        shares.append((1 - share, share))
    points, weights = [], []
    for ends in product((0, 1), repeat=3):
        l_point, u_point, v_point = (pair[end] for pair, end in zip(zip(near, far, strict=True), ends, strict=True))
        points.append((l_point * RESOLUTION[1] + u_point) * RESOLUTION[2] + v_point)
        l_share, u_share, v_share = (pair[end] for pair, end in zip(shares, ends, strict=True))
        weights.append(l_share * u_share * v_share)
    return Cells(torch.stack(points, 1).flatten(1), torch.stack(weights, 1)[:, None])
