"""Printed patches: a square of any content, seen under a scale, a rotation and a brightness that are drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from robustly.threats.contract import Box, Images, ThreatError, checked_box
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.patch import whole_sides
from robustly.threats.physical_patch_set import PhysicalPatchSet, drawn_from
from robustly.threats.precision import at_least_float32

DEFAULTS = {"rotation": "20", "scale": "1/5", "brightness": "1/10"}
"""Limits of the conditions where the text has none: degrees, deviation of the factor from 1, share of the box."""
MOST = {"rotation": Fraction(180), "scale": Fraction(9, 10), "brightness": Fraction(1)}


@dataclass(frozen=True)
class PhysicalPatch:
    """One printed square in each image, seen under conditions that are drawn once for each image.

    The adversary chooses the contents and the place of the print. Its rotation, scale and brightness are drawn
    uniformly from the image itself, rounded to 8 bits: they do not depend on other images, seeds or machines, and
    an audit draws them again. An accuracy is therefore the mean over images of being right under one random
    condition. If the attack does not use the conditions, it is an unbiased estimate of the accuracy in expectation
    over conditions. `ExpectedPatch` optimises in expectation and does not use an image's own conditions
    (expectation over transformation: Brown et al., arXiv 1712.09665; Athalye et al., ICML 2018). Other attacks use
    them, as no printer can.

    Args:
        side: of the upright print at scale 1 in pixels, a whole number of at least 0.
        rotation: largest rotation in degrees, either way, at most 180.
        scale: largest deviation of the scale from 1, at most 0.9.
        brightness: largest value that is added to the print, as a share of the box's width, at most 1.
        box: least and largest valid value of an image.

    Raises:
        ThreatError: a limit out of range; an empty box; at use, inputs that are not `(N, C, H, W)`, or images that
            are smaller than the print.
    """

    side: Fraction
    rotation: Fraction
    scale: Fraction
    brightness: Fraction
    box: Box

    def __init__(
        self,
        side: float | str | Fraction,
        rotation: float | str | Fraction = DEFAULTS["rotation"],
        scale: float | str | Fraction = DEFAULTS["scale"],
        brightness: float | str | Fraction = DEFAULTS["brightness"],
        box: Sequence[float] = (0.0, 1.0),
    ) -> None:
        exact = parse_epsilon(side)
        if exact < 0 or exact.denominator != 1:
            raise ThreatError(
                f"the side of a patch must be a whole number of pixels of at least 0, got {fraction_text(exact)}"
            )
        object.__setattr__(self, "side", exact)
        for name, given in (("rotation", rotation), ("scale", scale), ("brightness", brightness)):
            limit = parse_epsilon(given)
            if not 0 <= limit <= MOST[name]:
                raise ThreatError(
                    f"the {name} of a physical patch must be between 0 and {fraction_text(MOST[name])}"
                    f"{' degrees' if name == 'rotation' else ''}, got {fraction_text(limit)}"
                )
            object.__setattr__(self, name, limit)
        object.__setattr__(self, "box", checked_box(box))

    @staticmethod
    def parse(text: str, box: Sequence[float] = (0.0, 1.0)) -> "PhysicalPatch":
        """Parse "8" or "8,rotation=20,scale=0.2,brightness=0.1"; conditions that are left out have `DEFAULTS`.

        Raises:
            ThreatError: another form, an unknown condition, one twice, or a limit out of range.
        """
        side, *rest = (piece.strip() for piece in text.split(","))
        pairs = [tuple(word.strip() for word in piece.partition("=")) for piece in rest]
        names = [name for name, _, _ in pairs]
        if len(set(names)) < len(names) or not all(name in DEFAULTS and value for name, _, value in pairs):
            raise ThreatError(
                "physical_patch has the form physical_patch:8,rotation=20,scale=0.2,brightness=0.1 (the conditions "
                f"may be left out, each may occur once), got {text!r}"
            )
        given = DEFAULTS | {name: value for name, _, value in pairs}
        return PhysicalPatch(side, given["rotation"], given["scale"], given["brightness"], box)

    def __str__(self) -> str:
        limits = ",".join(f"{name}={fraction_text(getattr(self, name))}" for name in DEFAULTS)
        return f"{self.kind}:{self.extent_text},{limits}"

    @property
    def kind(self) -> str:  # noqa: D102
        return "physical_patch"

    @property
    def extent(self) -> Fraction:
        """Side of the upright print at scale 1."""
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
    def set_type(self) -> type["PhysicalPatchSet"]:  # noqa: D102
        return PhysicalPatchSet

    def words(self) -> str:
        """Description of the threat in sentences."""
        turn, factor, light = (fraction_text(getattr(self, name)) for name in DEFAULTS)
        return (
            f"One printed square of {self.extent_text} x {self.extent_text} pixels, of any content and at any "
            f"place, is seen rotated by at most {turn} degrees, scaled by 1 +- {factor} and brighter or darker by "
            f"at most {light} of the range of values. These conditions are drawn once for each image, which counts "
            "as right if it is classified correctly under its own: accuracies are means over images and conditions."
        )

    def scaled(self, factor: float) -> "PhysicalPatch":
        """Prints of `factor` times the side, rounded up to whole pixels, under the same conditions."""
        return self.with_extent(math.ceil(float(self.side) * factor))

    def with_extent(self, extent: float | str | Fraction) -> "PhysicalPatch":
        """Prints of another side."""
        return PhysicalPatch(extent, self.rotation, self.scale, self.brightness, self.box)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Whole sides nearest to multiples of this one."""
        return whole_sides(self.side, factors)

    def select(self, index: Tensor) -> "PhysicalPatch":
        """The same threat: its limits do not differ between examples."""
        return self

    def around(self, x: Images) -> "PhysicalPatchSet":
        """Images with a print around each image of a batch.

        Raises:
            ThreatError: inputs that are not `(N, C, H, W)`; images that are smaller than the print.
        """
        if x.ndim != 4:
            raise ThreatError(f"a physical patch is defined for images (N, C, H, W), got {tuple(x.shape)}")
        height, width = x.shape[2:]
        if self.side > min(height, width):
            raise ThreatError(f"a print of {self.side} pixels is larger than images of {height} x {width} pixels")
        x = at_least_float32(x)
        limits = x.new_tensor([float(getattr(self, name)) for name in DEFAULTS])
        return PhysicalPatchSet(x, int(self.side), self.box, limits, drawn_from(x, self.box).to(x))
