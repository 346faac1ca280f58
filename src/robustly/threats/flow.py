"""Flow fields: every pixel takes its value from a place nearby, by bilinear interpolation (StAdv)."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.threats.contract import Box, Images, PerExample, ThreatError
from robustly.threats.exact_size import fraction_text
from robustly.threats.offset_field import OffsetField
from robustly.threats.parameter_box import all_zero, exact_at_neutral
from robustly.threats.transformation import BoundedTransformation, check_channels

FlowTheta = Float[Tensor, "n 2 h w"]
TINY = 1e-8
"""Added to squared differences of neighbours, whose root would have no derivative at zero (StAdv, eq. 4)."""


@dataclass(frozen=True)
class FlowField(OffsetField):
    """Images displaced by flows; theta `(N, 2, H, W)` holds the displacements down and to the right, in pixels.

    Args:
        x: original images `(N, C, H, W)`.
        radius: largest displacement along an axis, in pixels, `(N,)`.
        box: least and largest valid value of an image.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the displacements of one image, `(2, H, W)`."""
        return 2, *self.x.shape[2:]

    def apply(self, theta: FlowTheta) -> Images:
        """Displaced images."""
        moved = displaced(self.x, theta).clamp(*self.box)
        return exact_at_neutral(moved, self.x, all_zero(theta))

    def roughness(self, theta: FlowTheta) -> PerExample:
        """Lengths of the differences of neighbouring displacements, in pixels, summed over each pixel's neighbours.

        Sum over pixels p and their neighbours q above, below, left and right of sqrt(|d_p - d_q|^2 + 1e-8), less
        its value at zero (StAdv, eq. 4).
        """
        down, right = theta.diff(dim=2), theta.diff(dim=3)
        return 2 * (_lengths(down) + _lengths(right))  # each pair of neighbours counts from both of its pixels

    def describe(self, theta: FlowTheta) -> list[str]:
        """One phrase per example: the largest and the mean displacement."""
        lengths = theta.square().sum(1).sqrt().flatten(1)
        pairs = zip(lengths.amax(1).tolist(), lengths.mean(1).tolist(), strict=True)
        return [
            f"pixels moved by up to {most:.2f} pixels, {mean:.2f} on average" if most else "unchanged"
            for most, mean in pairs
        ]


@dataclass(frozen=True)
class Flows:
    """Family of flow fields of at most some pixels along either axis (StAdv, Xiao et al., ICLR 2018).

    Pixel (i, j) of the changed image is the image at (i + v, j + u), interpolated bilinearly. Places outside the
    image have the value of the nearest edge pixel. Each of v and u is within the limit.

    Benchmarks give the bound in the coordinates of `grid_sample`, where an image is 2 wide: b is b * W / 2 pixels.
    Their 0.05 is 0.8 pixels at 32 x 32 (Laidlaw and Feizi, NeurIPS 2019).
    """

    kind = "flow"
    unit = "pixels"
    least = Fraction(0)
    most = None
    sentence = (
        "Every pixel may take its value from a place at most {limit} pixels away along either axis "
        "(bilinear interpolation, edges continued)."
    )
    set_type = FlowField

    def within(self, limit: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)) -> BoundedTransformation:
        """Threat that allows flows up to a limit in pixels.

        Raises:
            ThreatError: a negative limit; an empty box.
        """
        return BoundedTransformation(self, limit, box)

    def advice(self, limit: Fraction) -> str:
        """Nothing."""
        return ""

    def around(self, x: Images, limit: Fraction, box: Box) -> FlowField:
        """Displaced images around each image, for a limit and a box.

        Raises:
            ThreatError: inputs that are not `(N, C, H, W)`; a limit of a side of the image or more.
        """
        check_channels(self.kind, None, x.shape)
        height, width = x.shape[2:]
        if limit >= min(height, width):
            raise ThreatError(
                f"{self.kind}:{fraction_text(limit)} moves pixels across the whole image: images of {height} x "
                f"{width} pixels allow less than {min(height, width)}"
            )
        return FlowField(x, torch.full((len(x),), float(limit), device=x.device, dtype=x.dtype), box)


FLOW = Flows()
Flow = FLOW.within
"""Flows by at most some pixels: `Flow(0.8)`, with the box of the images as a second argument."""


def displaced(images: Float[Tensor, "n c h w"], flow: FlowTheta) -> Float[Tensor, "n c h w"]:
    """Images whose pixel (i, j) is the image at (i + flow[0], j + flow[1]); differentiable in both arguments.

    Args:
        images: `(N, C, H, W)`; places outside have the value of the nearest edge pixel.
        flow: displacements in pixels `(N, 2, H, W)`: down, then right.
    """
    if len(images) == 0:  # the interpolation raises on an empty batch
        return images
    height, width = images.shape[2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 0]
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _lengths(differences: Tensor) -> PerExample:
    """Sum of the smoothed lengths of vectors `(N, 2, ...)`."""
    squares = differences.square().sum(1)
    tiny = max(TINY, torch.finfo(squares.dtype).tiny)  # 1e-8 is zero in float16
    lengths = squares / ((squares + tiny).sqrt() + tiny**0.5)  # sqrt(s + tiny) - sqrt(tiny), exactly 0 at 0
    total: Tensor = lengths.flatten(1).sum(1)
    return total
