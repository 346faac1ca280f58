"""ReColorAdv: one map of colours per image (Laidlaw and Feizi, "Functional Adversarial Attacks", NeurIPS 2019).

The map is a grid of 16 x 32 x 32 colours in CIE L*u*v*, interpolated trilinearly: pixels of the same colour keep a
common colour. The paper's limit is 0.06 per channel, of the ranges 100 of L* and 200 of u* and v*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from jaxtyping import Float

from robustly.threats.colour.cie import luv_of
from robustly.threats.colour.grid import RESOLUTION, Cells, Offsets, cells_of, recoloured
from robustly.threats.colour.unit_range import to_unit
from robustly.threats.colour.used_points import UsedPointsSet, used_places
from robustly.threats.contract import Box, Images, PerExample
from robustly.threats.offset_field import OffsetField
from robustly.threats.transformation import BoundedTransformation, check_channels

_TINY = 1e-10  # added to squared differences, whose root would have no derivative at 0


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
        return recoloured(self.x, luv, cells, theta, self.box)

    def condensed(self) -> "ColourMapSet | UsedPointsSet":
        """The same images from the changes at the grid points that pixels use; on a CPU only."""
        if self.x.device.type != "cpu" or self.x.requires_grad or len(self.x) == 0:
            return self
        luv, cells = self._fixed_colours
        places = used_places(luv, cells)
        return UsedPointsSet(self.x, self.radius, self.box, places, torch.arange(len(self.x)))

    def _colours(self) -> tuple[Float[torch.Tensor, "n 3 h w"], Cells]:
        """Colours of the pixels in L*u*v*, and their places in the grid."""
        luv = luv_of(to_unit(self.x, self.box))
        return luv, cells_of(luv)

    @cached_property
    def _fixed_colours(self) -> tuple[Float[torch.Tensor, "n 3 h w"], Cells]:
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
