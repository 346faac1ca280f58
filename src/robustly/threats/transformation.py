"""Threats with one limit: rotations by at most 30 degrees, shifts by at most 3 pixels, changes of hue."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from robustly.threats.contract import Box, Images, ThreatError, checked_box
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.parameter_box import ParameterBox, Parameters, exact_at_neutral


@dataclass(frozen=True)
class Transformation:
    """Family of transformations of images whose parameters share one limit.

    With a limit it is a threat: `ROTATION.within(30)`. Parameter p may then take values in `neutral[p] +- limit`.

    Args:
        kind: word in front of the colon of the text form: "rotation".
        unit: unit of the limit: "degrees".
        most: largest limit; None for any.
        neutral: values of no change, one per parameter.
        change: from images `(N, C, H, W)`, parameters `(N, P)` and the box to changed images; differentiable.
            They need not lie in the box, nor equal the images bit for bit at the neutral values.
        sentence: description of the threat, in which `{limit}` stands for the limit: "Each image may ... ."
        words: description of one change, from its P parameters: "rotated by 12.3 degrees".
        check: raises `ThreatError` for a limit and a shape `(N, C, H, W)` that do not fit; None accepts all.
    """

    kind: str
    unit: str
    most: Fraction | None
    neutral: tuple[float, ...]
    change: Callable[[Images, Parameters, Box], Images] = field(repr=False)
    sentence: str = field(repr=False)
    words: Callable[[Sequence[float]], str] = field(repr=False)
    check: Callable[[Fraction, torch.Size], None] | None = field(repr=False, default=None)

    def within(self, limit: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)) -> "BoundedTransformation":
        """Threat that allows these transformations up to a limit.

        Raises:
            ThreatError: a limit that is not a number or out of range; an empty box.
        """
        return BoundedTransformation(self, limit, box)

    def parse_limit(self, limit: float | str | Fraction) -> Fraction:
        """Exact limit from a number or its text, without a unit.

        Raises:
            ThreatError: not a finite number, or out of range.
        """
        try:
            exact = parse_epsilon(limit)
        except ThreatError:
            raise ThreatError(
                f"the size of {self.kind} must be a finite number without its unit ({self.unit}), got {limit!r}"
            ) from None
        if exact < 0 or (self.most is not None and exact > self.most):
            allowed = "at least 0" if self.most is None else f"0 to {fraction_text(self.most)}"
            raise ThreatError(f"the size of {self.kind} must be {allowed} {self.unit}, got {fraction_text(exact)}")
        return exact

    def require(self, limit: Fraction, shape: torch.Size) -> None:
        """Check that the transformation is defined for images of a shape.

        Raises:
            ThreatError: it is not.
        """
        if len(shape) != 4:
            raise ThreatError(f"{self.kind} is defined for images (N, C, H, W), got {tuple(shape)}")
        if self.check is not None:
            self.check(limit, shape)


@dataclass(frozen=True)
class BoundedTransformation:
    """Threat of one transformation whose parameters stay within a limit around their neutral values.

    Args:
        transformation: the family.
        limit: largest deviation of a parameter, in the family's unit: a number, a text, or an exact `Fraction`.
        box: least and largest valid value of an image.

    Raises:
        ThreatError: a limit that is not a number or out of range; an empty box; at use, inputs that do not fit.
    """

    transformation: Transformation
    limit: Fraction
    box: Box

    def __init__(
        self, transformation: Transformation, limit: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)
    ) -> None:
        object.__setattr__(self, "transformation", transformation)
        object.__setattr__(self, "limit", transformation.parse_limit(limit))
        object.__setattr__(self, "box", checked_box(box))

    def __str__(self) -> str:
        return f"{self.kind}:{self.extent_text}"

    @property
    def kind(self) -> str:  # noqa: D102
        return self.transformation.kind

    @property
    def extent(self) -> Fraction:
        """The limit."""
        return self.limit

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.limit)

    @property
    def unit(self) -> str:  # noqa: D102
        return self.transformation.unit

    @property
    def arrays(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {}

    @property
    def set_type(self) -> type[ParameterBox]:  # noqa: D102
        return ParameterBox

    def words(self) -> str:
        """Description of the threat in a sentence."""
        return self.transformation.sentence.format(limit=self.extent_text)

    def scaled(self, factor: float) -> "BoundedTransformation":
        """The same transformations within `factor` times the limit, at most the largest limit."""
        scaled, most = float(self.limit) * factor, self.transformation.most
        return self.with_extent(scaled if most is None else min(scaled, float(most)))

    def with_extent(self, extent: float | str | Fraction) -> "BoundedTransformation":
        """The same transformations within another limit."""
        return BoundedTransformation(self.transformation, extent, self.box)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Multiples of the limit, as far as they are allowed."""
        most = self.transformation.most
        limits = {self.limit * Fraction(factor).limit_denominator(1000) for factor in factors}
        return sorted(limit for limit in limits if limit > 0 and (most is None or limit <= most))

    def select(self, index: Tensor) -> "BoundedTransformation":
        """The same threat: its limit does not differ between examples."""
        return self

    def around(self, x: Images) -> ParameterBox:
        """Transformed images around each image of a batch.

        Raises:
            ThreatError: inputs that are not `(N, C, H, W)`, or that the transformation is not defined for.
        """
        self.transformation.require(self.limit, x.shape)
        family, neutral = self.transformation, x.new_tensor(self.transformation.neutral)
        radius = torch.full((len(x),), float(self.limit), device=x.device, dtype=x.dtype)
        return ParameterBox(
            x,
            radius,
            neutral,
            torch.ones_like(neutral),
            bounded_change(family.change, neutral, self.box),
            family.words,
        )


def bounded_change(
    change: Callable[[Images, Parameters, Box], Images], neutral: Tensor, box: Box
) -> Callable[[Images, Parameters], Images]:
    """The change, clipped to the box, and exactly the identity at the neutral values `(P,)`."""
    low, high = box

    def transform(images: Images, theta: Parameters) -> Images:
        changed = change(images, theta, box).clamp(low, high)
        return exact_at_neutral(changed, images, (theta == neutral.to(theta)).all(1))

    return transform
