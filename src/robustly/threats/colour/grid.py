"""The grid of colours in CIE L*u*v*, and trilinear interpolation between its points at the colours of pixels."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustly.threats.colour.cie import rgb_of_luv
from robustly.threats.colour.unit_range import from_unit
from robustly.threats.contract import Box, Images
from robustly.threats.offset_field import unwritten
from robustly.threats.parameter_box import all_zero, exact_at_neutral

RESOLUTION = (16, 32, 32)
"""Grid points along L*, u* and v*."""
Offsets = Float[Tensor, "n 3 ..."]
"""Changes of L*, u* and v* at the grid points, `(N, 3, 16, 32, 32)`, or at P of them, `(N, 3, P)`."""


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
        """Points `(8 H W,)` and weights `(1, 8, H, W)` of each image; to select them takes a tenth of the time."""
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


def recoloured(x: Images, luv: Float[Tensor, "n 3 h w"], cells: Cells, theta: Offsets, box: Box) -> Images:
    """Images with changed colours, clipped to the gamut of sRGB; exactly the originals where theta is 0.

    Args:
        x: original images.
        luv: their colours.
        cells: places of the colours among the grid points.
        theta: changes at the grid points.
        box: least and largest valid value of an image.
    """
    changed = from_unit(rgb_of_luv(luv + cells.interpolated(theta)), box)
    return exact_at_neutral(changed, x, all_zero(theta))
