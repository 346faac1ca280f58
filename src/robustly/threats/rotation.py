"""Rotation about the centre of an image, by bilinear interpolation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.threats.contract import Images, ThreatError
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.parameter_box import ParameterBox, exact_at_neutral

HALF_TURN = 180


@dataclass(frozen=True)
class Rotation:
    """Rotations by at most `degrees` in either direction (Engstrom et al., ICML 2019, use 30).

    Pixels between the grid points are interpolated bilinearly. Pixels from outside the image have the least value
    of the box.

    Args:
        degrees: largest angle, in [0, 180]: a number, a text, or an exact `Fraction`.
        box: least and largest valid value of an image.

    Raises:
        ThreatError: an angle out of range; at use, inputs that are not `(N, C, H, W)`.
    """

    degrees: Fraction
    box: tuple[float, float]

    def __init__(self, degrees: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)) -> None:
        exact = parse_epsilon(degrees)
        if not 0 <= exact <= HALF_TURN:
            raise ThreatError(f"a rotation must be by 0 to {HALF_TURN} degrees, got {fraction_text(exact)}")
        if len(box) != 2 or not float(box[0]) < float(box[1]):
            raise ThreatError(f"box {tuple(box)} is empty: give (least, largest) pixel value, such as (0, 1)")
        object.__setattr__(self, "degrees", exact)
        object.__setattr__(self, "box", (float(box[0]), float(box[1])))

    def __str__(self) -> str:
        return f"{self.kind}:{self.extent_text}"

    @property
    def kind(self) -> str:  # noqa: D102
        return "rotation"

    @property
    def extent(self) -> Fraction:
        """Largest angle."""
        return self.degrees

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.degrees)

    @property
    def unit(self) -> str:  # noqa: D102
        return "degrees"

    @property
    def arrays(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {}

    @property
    def set_type(self) -> type[ParameterBox]:  # noqa: D102
        return ParameterBox

    def words(self) -> str:
        """Description of the threat in a sentence."""
        return (
            f"Each image may be rotated about its centre by at most {self.extent_text} degrees in either direction "
            "(bilinear interpolation, the background filled with the least value)."
        )

    def scaled(self, factor: float) -> "Rotation":
        """Rotations by `factor` times the angle, at most a half turn."""
        return self.with_extent(min(float(self.degrees) * factor, float(HALF_TURN)))

    def with_extent(self, extent: float | str | Fraction) -> "Rotation":
        """Rotations by another angle."""
        return Rotation(extent, self.box)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Angles at multiples of the largest, up to a half turn."""
        angles = {self.degrees * Fraction(factor).limit_denominator(1000) for factor in factors}
        return sorted(angle for angle in angles if 0 < angle <= HALF_TURN)

    def select(self, index: Tensor) -> "Rotation":
        """The same threat: its angle does not differ between examples."""
        return self

    def around(self, x: Images) -> ParameterBox:
        """Rotated images around each image of a batch.

        Raises:
            ThreatError: inputs that are not `(N, C, H, W)`.
        """
        if x.ndim != 4:
            raise ThreatError(f"a rotation is defined for images (N, C, H, W), got {tuple(x.shape)}")
        low, high = self.box
        radius = torch.full((len(x),), float(self.degrees), device=x.device, dtype=x.dtype)

        def transform(images: Images, angles: Float[Tensor, "n 1"]) -> Images:
            turned = rotated(images - low, angles[:, 0]) + low
            return exact_at_neutral(turned.clamp(low, high), images, angles[:, 0] == 0)

        return ParameterBox(x, radius, x.new_zeros(1), x.new_ones(1), transform)


def rotated(images: Float[Tensor, "n c h w"], degrees: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Images rotated counter-clockwise about their centre, zero outside; differentiable in both arguments."""
    if len(images) == 0:  # the interpolation raises on an empty batch
        return images
    height, width = images.shape[2:]
    angle = degrees * (torch.pi / 180)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # grid coordinates run from -1 to 1 along either side: a rotation in pixels includes the ratio of the sides
    rows = (
        torch.stack([cosine, -sine * (height / width), zero], 1),
        torch.stack([sine * (width / height), cosine, zero], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
