"""Flow fields: every pixel takes its value from a place nearby, by bilinear interpolation (StAdv)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Box, Images, PerExample, ThreatError, checked_box, per_example
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.parameter_box import exact_at_neutral

FlowTheta = Float[Tensor, "n 2 h w"]
TINY = 1e-8
"""Added to squared differences of neighbours, whose root would have no derivative at zero (StAdv, eq. 4)."""


@dataclass(frozen=True)
class Flow:
    """Flow fields of at most `pixels` along either axis (StAdv, Xiao et al., ICLR 2018).

    Pixel (i, j) of the changed image is the image at (i + v, j + u), interpolated bilinearly. Places outside the
    image have the value of the nearest edge pixel. Each of v and u is within `pixels` of zero.

    Benchmarks give the bound in the coordinates of `grid_sample`, where an image is 2 wide: b is b * W / 2 pixels.
    Their 0.05 is 0.8 pixels at 32 x 32 (Laidlaw and Feizi, NeurIPS 2019).

    Args:
        pixels: largest displacement along an axis, at least 0: a number, a text, or an exact `Fraction`.
        box: least and largest valid value of an image.

    Raises:
        ThreatError: a negative displacement; an empty box; at use, inputs that are not `(N, C, H, W)`, or a
            displacement of a side of the image or more.
    """

    pixels: Fraction
    box: Box

    def __init__(self, pixels: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)) -> None:
        exact = parse_epsilon(pixels)
        if exact < 0:
            raise ThreatError(f"a flow must be by at least 0 pixels, got {fraction_text(exact)}")
        object.__setattr__(self, "pixels", exact)
        object.__setattr__(self, "box", checked_box(box))

    def __str__(self) -> str:
        return f"{self.kind}:{self.extent_text}"

    @property
    def kind(self) -> str:  # noqa: D102
        return "flow"

    @property
    def extent(self) -> Fraction:
        """Largest displacement."""
        return self.pixels

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.pixels)

    @property
    def unit(self) -> str:  # noqa: D102
        return "pixels"

    @property
    def arrays(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {}

    @property
    def set_type(self) -> type["FlowField"]:  # noqa: D102
        return FlowField

    def words(self) -> str:
        """Description of the threat in a sentence."""
        return (
            f"Every pixel may take its value from a place at most {self.extent_text} pixels away along either axis "
            "(bilinear interpolation, edges continued)."
        )

    def scaled(self, factor: float) -> "Flow":
        """Flows by `factor` times the displacement."""
        return self.with_extent(float(self.pixels) * factor)

    def with_extent(self, extent: float | str | Fraction) -> "Flow":
        """Flows by another displacement."""
        return Flow(extent, self.box)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Displacements at multiples of the largest."""
        lengths = {self.pixels * Fraction(factor).limit_denominator(1000) for factor in factors}
        return sorted(length for length in lengths if length > 0)

    def select(self, index: Tensor) -> "Flow":
        """The same threat: its displacement does not differ between examples."""
        return self

    def around(self, x: Images) -> "FlowField":
        """Displaced images around each image of a batch.

        Raises:
            ThreatError: inputs that are not `(N, C, H, W)`; a displacement of a side of the image or more.
        """
        if x.ndim != 4:
            raise ThreatError(f"a flow is defined for images (N, C, H, W), got {tuple(x.shape)}")
        height, width = x.shape[2:]
        if self.pixels >= min(height, width):
            raise ThreatError(
                f"{self} moves pixels across the whole image: images of {height} x {width} pixels allow less than "
                f"{min(height, width)}"
            )
        return FlowField(x, torch.full((len(x),), float(self.pixels), device=x.device, dtype=x.dtype), self.box)


@dataclass(frozen=True)
class FlowField:
    """Images displaced by flows; theta `(N, 2, H, W)` holds the displacements down and to the right, in pixels.

    Args:
        x: original images `(N, C, H, W)`.
        radius: largest displacement along an axis, in pixels, `(N,)`.
        box: least and largest valid value of an image.
    """

    x: Float[Tensor, "n c h w"]
    radius: PerExample
    box: Box

    def apply(self, theta: FlowTheta) -> Images:
        """Displaced images."""
        moved = displaced(self.x, theta).clamp(*self.box)
        return exact_at_neutral(moved, self.x, (theta == 0).flatten(1).all(1))

    def moved_to(self, images: Images) -> "FlowField":
        """The same flows of other images."""
        return replace(self, x=images)

    def identity(self) -> FlowTheta:
        """Displacements of zero."""
        return self.x.new_zeros(len(self.x), 2, *self.x.shape[2:])

    def random_start(self, generator: KeyedGenerator) -> FlowTheta:
        """Independent displacements of the pixels, uniform in their range."""
        share = generator.uniform(2, *self.x.shape[2:]).to(self.x) * 2 - 1
        return share * per_example(self.radius, share)

    def project(self, theta: FlowTheta) -> FlowTheta:
        """Displacements clipped to their range."""
        reach = per_example(self.radius, theta)
        return theta.clamp(-reach, reach)

    def step(self, theta: FlowTheta, gradient: FlowTheta, step_size: PerExample) -> FlowTheta:
        """Step of every displacement by `step_size` pixels along the sign of its gradient."""
        return self.project(theta + gradient.sign() * per_example(step_size, theta))

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 radii over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def size(self, theta: FlowTheta) -> PerExample:
        """Largest displacement along an axis, in pixels."""
        return theta.abs().flatten(1).amax(1)

    def contains(self, theta: FlowTheta) -> Bool[Tensor, " n"]:
        """True where each displacement is in its range, up to float32 rounding."""
        return self.size(theta) <= self.radius * (1 + 1e-6) + 1e-6

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

    def select(self, index: Tensor) -> "FlowField":
        """Sets of some of the examples."""
        return FlowField(self.x[index], self.radius[index], self.box)


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
    lengths = squares / ((squares + TINY).sqrt() + TINY**0.5)  # sqrt(s + tiny) - sqrt(tiny), and exactly 0 at 0
    total: Tensor = lengths.flatten(1).sum(1)
    return total
