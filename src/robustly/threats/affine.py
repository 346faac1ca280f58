"""Rotation, shift, scaling and shear at once, with one interpolation (Engstrom et al., ICML 2019)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustly.threats.contract import Box, Images, ThreatError, checked_box
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.geometry import SCALE, SHEAR, SHIFT, warped
from robustly.threats.parameter_box import ParameterBox, Parameters
from robustly.threats.precision import at_least_float32
from robustly.threats.rotation import ROTATION
from robustly.threats.transformation import BoundedTransformation, Transformation, bounded_change

PARTS: dict[str, Transformation] = {part.kind: part for part in (ROTATION, SHIFT, SCALE, SHEAR)}
"""Parts of the family, in the order of its text and of its parameters."""
_WORDS = {
    "rotation": "rotated about its centre by at most {} degrees",
    "shift": "moved by at most {} pixels along each axis",
    "scale": "scaled by a factor of 1 +- {}",
    "shear": "sheared horizontally by at most {} degrees",
}


@dataclass(frozen=True)
class Affine:
    """Some of rotation, shift, scaling and shear at once: "affine:rotation=30,shift=3".

    A chain of them interpolates once per part and blurs; here the image is interpolated once. The image is scaled,
    sheared, rotated about its centre and then shifted. The size of a perturbation is the largest share that a part
    uses of its own limit; the extent is therefore 1. Theta holds the angle in degrees, the shift to the right and
    down in pixels, the factor of the size, and the angle of the shear in degrees, as far as they take part.

    Args:
        parts: threats of rotation, shift, scale and shear, in this order, each at most once, of one box.
        share: share of its limit that each part may use, at least 0 (security curves, epsilon ramps).

    Raises:
        ThreatError: no part, another part, a part twice or in another order, different boxes; at use, inputs that
            are not `(N, C, H, W)` or smaller than a shift.
    """

    parts: tuple[BoundedTransformation, ...]
    share: Fraction

    def __init__(self, parts: Sequence[BoundedTransformation], share: float | str | Fraction = Fraction(1)) -> None:
        _check_names([part.kind for part in parts])
        if len({part.box for part in parts}) > 1:
            raise ThreatError(f"the parts of affine must share one box, got {[part.box for part in parts]}")
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "share", parse_epsilon(share, "the share of the parts' limits"))
        if self.share < 0:
            raise ThreatError(f"the share of the parts' limits must be at least 0, got {share}")

    @staticmethod
    def parse(text: str, box: Sequence[float] = (0.0, 1.0)) -> "Affine":
        """Parse the limits of the parts: "rotation=30,shift=3".

        Raises:
            ThreatError: another form, an unknown part, a part twice, or a limit that it cannot have.
        """
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(equals and limit.strip() for _, equals, limit in pairs):
            raise ThreatError(f"affine has the form affine:rotation=30,shift=3 (PART=LIMIT,...), got {text!r}")
        named = [(name.strip().lower(), limit.strip()) for name, _, limit in pairs]
        _check_names([name for name, _ in named])
        return Affine([PARTS[name].within(limit, checked_box(box)) for name, limit in named])

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(f'{part.kind}={part.extent_text}' for part in self._limited)}"

    @property
    def kind(self) -> str:  # noqa: D102
        return "affine"

    @property
    def box(self) -> Box:  # noqa: D102
        return self.parts[0].box

    @property
    def extent(self) -> Fraction:
        """Share of its own limit that each part may use."""
        return self.share

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.share)

    @property
    def unit(self) -> str:  # noqa: D102
        return "times each part's limit"

    @property
    def arrays(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {}

    @property
    def set_type(self) -> type[ParameterBox]:  # noqa: D102
        return ParameterBox

    def words(self) -> str:
        """Description of the threat in a sentence."""
        *first, last = (_WORDS[part.kind].format(part.extent_text) for part in self._limited)
        listed = f"{', '.join(first)} and {last}" if first else last
        return (
            f"Each image may be {listed}, at once (one bilinear interpolation, the background filled with the "
            "least value)."
        )

    def scaled(self, factor: float) -> "Affine":
        """The same parts, each within `factor` times its share."""
        return self.with_extent(float(self.share) * factor)

    def with_extent(self, extent: float | str | Fraction) -> "Affine":
        """The same parts, each within another share of its limit."""
        return Affine(self.parts, extent)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Multiples of this share that are possible for every part."""
        shares = sorted({self.share * Fraction(factor).limit_denominator(1000) for factor in factors})
        return [share for share in shares if share > 0 and self._exists(share)]

    def whole(self) -> "Affine":
        """The same limits as a family of share 1, to which its text form parses."""
        return Affine(self._limited)

    def select(self, index: Tensor) -> "Affine":
        """The same threat: its limits do not differ between examples."""
        return self

    def around(self, x: Images) -> ParameterBox:
        """Transformed images around each image of a batch.

        Raises:
            ThreatError: inputs that are not `(N, C, H, W)`, or smaller than a shift.
        """
        for part in self._limited:
            PARTS[part.kind].require(part.limit, x.shape)
        x = at_least_float32(x)
        neutral = x.new_tensor([value for part in self.parts for value in PARTS[part.kind].neutral])
        scale = x.new_tensor([float(part.limit) for part in self.parts for _ in PARTS[part.kind].neutral])
        radius = torch.full((len(x),), float(self.share), device=x.device, dtype=x.dtype)
        return ParameterBox(
            x, radius, neutral, scale, bounded_change(self._change, neutral, self.box), self._in_words
        )

    @property
    def _limited(self) -> tuple[BoundedTransformation, ...]:
        if self.share == 1:
            return self.parts
        return tuple(part.scaled(float(self.share)) for part in self.parts)

    def _exists(self, share: Fraction) -> bool:
        return all(part.extents_at([float(share)]) for part in self.parts if part.limit != 0)

    def _change(self, images: Images, theta: Parameters, box: Box) -> Images:
        given = {name: list(values.unbind(1)) for name, values in self._split(theta).items()}
        zero, one = torch.zeros_like(theta[:, 0]), torch.ones_like(theta[:, 0])
        right, down = given.get("shift", [zero, zero])
        moved = warped(
            images - box[0],
            degrees=given.get("rotation", [zero])[0],
            right=right,
            down=down,
            factor=given.get("scale", [one])[0],
            shear=given.get("shear", [zero])[0],
        )
        return moved + box[0]

    def _split(self, theta: Parameters) -> dict[str, Parameters]:
        """Parameters of each part by its name."""
        counts = [len(PARTS[part.kind].neutral) for part in self.parts]
        return dict(zip([part.kind for part in self.parts], torch.split(theta, counts, dim=1), strict=True))

    def _in_words(self, theta: Sequence[float]) -> str:
        parts, rest = [], list(theta)
        for part in self.parts:
            family = PARTS[part.kind]
            own, rest = rest[: len(family.neutral)], rest[len(family.neutral) :]
            if tuple(own) != family.neutral:
                parts.append(family.words(own))
        return ", ".join(parts)


def _check_names(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise ThreatError(f"the parts of affine are {', '.join(PARTS)}, got {', '.join(unknown) or 'none'}")
    twice = [name for name in PARTS if names.count(name) > 1]
    if twice:
        raise ThreatError(f"affine names {', '.join(twice)} twice: give each part one limit")
    if list(names) != [name for name in PARTS if name in names]:
        raise ThreatError(f"the parts of affine have the order {', '.join(PARTS)}, got {', '.join(names)}")
