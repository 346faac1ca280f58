"""Threats with one limit: rotations by at most 30 degrees, shifts by at most 3 pixels, changes of hue."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from robustly.threats.contract import Box, Images, Link, ThreatError, checked_box
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.known_slopes import clipped
from robustly.threats.parameter_box import ParameterBox, Parameters, exact_at_neutral
from robustly.threats.precision import at_least_float32


class Family(Protocol):
    """Perturbations of images that one limit bounds."""

    @property
    def kind(self) -> str:
        """Word in front of the colon of the text form: "rotation"."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the limit: "degrees"."""
        ...

    @property
    def least(self) -> Fraction:
        """Limit at which nothing changes."""
        ...

    @property
    def most(self) -> Fraction | None:
        """Largest limit; None for any."""
        ...

    @property
    def sentence(self) -> str:
        """Description of the threat, with `{limit}` in the place of the limit: "Each image may ... ."."""
        ...

    @property
    def set_type(self) -> type:
        """Class of the sets."""
        ...

    def advice(self, limit: Fraction) -> str:
        """Addition to the message that refuses a limit, such as its value in another unit; mostly empty."""
        ...

    def around(self, x: Images, limit: Fraction, box: Box) -> Link:
        """Set of allowed images around each image of a batch.

        Raises:
            ThreatError: images that the perturbations are not defined for.
        """
        ...


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
        sentence: description of the threat, with `{limit}` in the place of the limit: "Each image may ... ."
        words: description of one change, from its P parameters: "rotated by 12.3 degrees".
        check: raises `ThreatError` for a limit and a shape `(N, C, H, W)` that do not fit; None accepts all.
        channels: numbers of channels that the images may have; None for any.
        prepare: what is computed of the images and the box alone, once for all parameters; `change` then takes its
            result in place of the images, and its images lie in the box. None for nothing.
        other_unit: the number that a refused limit may have meant, in words; None for nothing.
    """

    kind: str
    unit: str
    most: Fraction | None
    neutral: tuple[float, ...]
    change: Callable[[Images, Parameters, Box], Images] = field(repr=False)
    sentence: str = field(repr=False)
    words: Callable[[Sequence[float]], str] = field(repr=False)
    check: Callable[[Fraction, torch.Size], None] | None = field(repr=False, default=None)
    channels: tuple[int, ...] | None = None
    other_unit: Callable[[Fraction], str] | None = field(repr=False, default=None)
    prepare: Callable[[Images, Box], Images] | None = field(repr=False, default=None)

    least = Fraction(0)
    set_type = ParameterBox

    def within(self, limit: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)) -> "BoundedTransformation":
        """Threat that allows these transformations up to a limit.

        Raises:
            ThreatError: a limit that is not a number or out of range; an empty box.
        """
        return BoundedTransformation(self, limit, box)

    def advice(self, limit: Fraction) -> str:
        """The number that a refused limit may have meant."""
        return "" if self.other_unit is None else self.other_unit(limit)

    def require(self, limit: Fraction, shape: torch.Size) -> None:
        """Check that the transformation is defined for images of a shape.

        Raises:
            ThreatError: it is not.
        """
        check_channels(self.kind, self.channels, shape)
        if self.check is not None:
            self.check(limit, shape)

    def around(self, x: Images, limit: Fraction, box: Box) -> ParameterBox:
        """Transformed images around each image of a batch.

        Raises:
            ThreatError: inputs that are not `(N, C, H, W)`, or that the transformation is not defined for.
        """
        self.require(limit, x.shape)
        neutral = x.new_tensor(self.neutral)
        radius = torch.full((len(x),), float(limit), device=x.device, dtype=x.dtype)
        change, prepare = self.change, self.prepare
        if prepare is None:
            transform = bounded_change(change, neutral, box)
            return ParameterBox(x, radius, neutral, torch.ones_like(neutral), transform, self.words)
        return ParameterBox(
            x,
            radius,
            neutral,
            torch.ones_like(neutral),
            lambda prepared, theta: change(prepared, theta, box),
            self.words,
            lambda images: prepare(images, box),
        )


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

    transformation: Family
    limit: Fraction
    box: Box

    def __init__(
        self, transformation: Family, limit: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)
    ) -> None:
        object.__setattr__(self, "transformation", transformation)
        object.__setattr__(self, "limit", parse_limit(transformation, limit))
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
    def set_type(self) -> type:  # noqa: D102
        return self.transformation.set_type

    def words(self) -> str:
        """Description of the threat in a sentence."""
        return self.transformation.sentence.format(limit=self.extent_text)

    def scaled(self, factor: float) -> "BoundedTransformation":
        """The same transformations within `factor` times the limit, as far as that is allowed."""
        scaled, most = max(float(self.limit) * factor, float(self.transformation.least)), self.transformation.most
        return self.with_extent(scaled if most is None else min(scaled, float(most)))

    def with_extent(self, extent: float | str | Fraction) -> "BoundedTransformation":
        """The same transformations within another limit."""
        return BoundedTransformation(self.transformation, extent, self.box)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Multiples of the limit, as far as they are allowed."""
        least, most = self.transformation.least, self.transformation.most
        limits = {self.limit * Fraction(factor).limit_denominator(1000) for factor in factors}
        return sorted(limit for limit in limits if limit > least and (most is None or limit <= most))

    def select(self, index: Tensor) -> "BoundedTransformation":
        """The same threat: its limit does not differ between examples."""
        return self

    def around(self, x: Images) -> Link:
        """Transformed images around each image of a batch.

        Raises:
            ThreatError: inputs that are not `(N, C, H, W)`, or that the transformation is not defined for.
        """
        return self.transformation.around(at_least_float32(x), self.limit, self.box)


def parse_limit(family: Family, limit: float | str | Fraction) -> Fraction:
    """Exact limit from a number or its text, without a unit.

    Raises:
        ThreatError: not a finite number, or out of range.
    """
    try:
        exact = parse_epsilon(limit)
    except ThreatError:
        raise ThreatError(
            f"the size of {family.kind} must be a finite number without its unit ({family.unit}), got {limit!r}"
        ) from None
    if exact < family.least or (family.most is not None and exact > family.most):
        least = fraction_text(family.least)
        allowed = f"at least {least}" if family.most is None else f"{least} to {fraction_text(family.most)}"
        raise ThreatError(
            f"the size of {family.kind} must be {allowed} {family.unit}, got {fraction_text(exact)}"
            f"{family.advice(exact)}"
        )
    return exact


def check_channels(kind: str, channels: tuple[int, ...] | None, shape: torch.Size) -> None:
    """Check that inputs are images with one of some numbers of channels, or with any for None.

    Raises:
        ThreatError: they are not.
    """
    if len(shape) != 4:
        raise ThreatError(f"{kind} is defined for images (N, C, H, W), got {tuple(shape)}")
    if channels is not None and shape[1] not in channels:
        allowed = " or ".join(str(count) for count in channels)
        advice = ""
        if shape[1] == 1 and 3 in channels:
            advice = ": grey images have no colour (brightness, contrast and lightness are defined for them)"
        raise ThreatError(f"{kind} is defined for images (N, {allowed}, H, W), got {tuple(shape)}{advice}")


def bounded_change(
    change: Callable[[Images, Parameters, Box], Images], neutral: Tensor, box: Box
) -> Callable[[Images, Parameters], Images]:
    """The change, clipped to the box, and exactly the identity at the neutral values `(P,)`."""
    low, high = box

    def transform(images: Images, theta: Parameters) -> Images:
        changed = clipped(change(images, theta, box), low, high)
        return exact_at_neutral(changed, images, (theta == neutral.to(theta)).all(1))

    return transform
