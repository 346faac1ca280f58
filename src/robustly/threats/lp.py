"""What the adversary may do: a norm, a radius epsilon and the box of valid images.

A threat model is a value. It alone knows the geometry (see `balls.py`): how to project, to draw a start, to take
a steepest step and to measure a distance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.threats.balls import Ball, L0Ball, L1Ball, L2Ball, LinfBall

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[str, ...] = get_args(Norm)
_BALLS: dict[str, type[Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball, "l0": L0Ball}


class ThreatError(ValueError):
    """A threat model that makes no sense; the message says what is allowed."""


@dataclass(frozen=True, eq=False)
class ThreatModel:
    """All images within `epsilon` of the original, measured in `norm`, inside `box`.

    Args:
        norm: "linf" (largest change of a value), "l2", "l1", or "l0" (number of changed pixels, all channels of a
            pixel counting once).
        epsilon: radius in the units of the images, at least 0; a number, a text such as "8/255", an exact
            `Fraction`, or one value per example `(N,)`. Numbers are kept exactly: 8/255 stays 8/255.
        box: least and largest valid value of an image.

    Raises:
        ThreatError: unknown norm; negative, NaN or infinite epsilon; an l-inf epsilon wider than the box; a box
            that is empty; an l0 epsilon that is no whole number.
    """

    norm: Norm
    epsilon: Fraction | Tensor
    box: tuple[float, float]

    def __init__(
        self, norm: str, epsilon: float | str | Fraction | Tensor, box: Sequence[float] = (0.0, 1.0)
    ) -> None:
        if norm not in NORMS:
            raise ThreatError(f"unknown norm {norm!r}: allowed are {', '.join(NORMS)}")
        if len(box) != 2 or not float(box[0]) < float(box[1]):
            raise ThreatError(f"box {tuple(box)} is empty: give (least, largest) pixel value, such as (0, 1)")
        exact = epsilon if isinstance(epsilon, Tensor) else parse_epsilon(epsilon)
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "epsilon", exact)
        object.__setattr__(self, "box", (float(box[0]), float(box[1])))
        self._check_epsilon()

    def _check_epsilon(self) -> None:
        if isinstance(self.epsilon, Tensor):
            if self.epsilon.ndim != 1:
                raise ThreatError(f"per-example epsilon must be (N,), got {tuple(self.epsilon.shape)}")
            if self.epsilon.numel() == 0:
                return
            least, largest = float(self.epsilon.min()), float(self.epsilon.max())
        else:
            least = largest = float(self.epsilon)
        if not (least >= 0 and math.isfinite(largest)):
            wrong = largest if least >= 0 else least
            raise ThreatError(f"epsilon must be a finite number of at least 0, got {wrong:g}")
        low, high = self.box
        if self.norm == "linf" and largest > high - low:
            meant = f": did you mean {largest:g}/255?" if largest <= 255 * (high - low) else "."
            raise ThreatError(
                f"epsilon {largest:g} is wider than the box [{low:g}, {high:g}] that images live in{meant}"
            )
        if self.norm == "l0" and not _is_whole(self.epsilon):
            raise ThreatError(f"l0 counts pixels: epsilon must be a whole number, got {self.epsilon_text}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ThreatModel) or (self.norm, self.box) != (other.norm, other.box):
            return False
        mine, theirs = self.epsilon, other.epsilon
        if isinstance(mine, Tensor) or isinstance(theirs, Tensor):
            return isinstance(mine, Tensor) and isinstance(theirs, Tensor) and torch.equal(mine, theirs)
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self.norm, self.box, self.epsilon_text))

    def __str__(self) -> str:
        return f"{self.norm}:{self.epsilon_text}"

    @property
    def epsilon_text(self) -> str:
        """Epsilon as a person writes it: "8/255", "0.3", "12"."""
        if isinstance(self.epsilon, Tensor):
            return "per-example"
        return fraction_text(self.epsilon)

    def with_epsilon(self, epsilon: float | str | Fraction | Tensor) -> "ThreatModel":
        """The same threat with another radius."""
        return ThreatModel(self.norm, epsilon, self.box)

    def select(self, index: Tensor) -> "ThreatModel":
        """The threat for some of the examples (it differs only if epsilon is per example)."""
        return self.with_epsilon(self.epsilon[index]) if isinstance(self.epsilon, Tensor) else self

    def around(self, x: Float[Tensor, "n ..."]) -> Ball:
        """The set of allowed images around each image of a batch."""
        if isinstance(self.epsilon, Tensor):
            if len(self.epsilon) != len(x):
                raise ThreatError(f"epsilon has {len(self.epsilon)} entries for {len(x)} images")
            radius = self.epsilon.to(device=x.device, dtype=x.dtype)
        else:
            radius = torch.full((len(x),), float(self.epsilon), device=x.device, dtype=x.dtype)
        return _BALLS[self.norm](x, radius, self.box)

    def project(self, x_adv: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The allowed image nearest to `x_adv` (Euclidean, exact for ball and box together)."""
        return self.around(x).project(x_adv)

    def distance(self, x_adv: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """How far each image was moved, in the threat's norm (l0: pixels)."""
        return self.around(x).distance(x_adv)

    def contains(self, x_adv: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."]) -> Bool[Tensor, " n"]:
        """Whether each image is allowed, up to float32 rounding (1e-6 absolute + 1e-6 relative; l1, l2: 1e-5)."""
        return self.around(x).contains(x_adv)

    def words(self) -> str:
        """The threat in a sentence for people."""
        low, high = self.box
        scale = f"on a scale from {low:g} to {high:g}"
        size = self.epsilon_text
        if self.norm == "linf":
            return f"Every value of every pixel may change by at most {size} ({scale}), all of them at once."
        if self.norm == "l2":
            return f"The change as a whole may have a Euclidean length of at most {size} ({scale})."
        if self.norm == "l1":
            return f"The changes of all values may add up to at most {size} ({scale})."
        return f"At most {size} pixels may change, each to any colour."


def parse_epsilon(value: float | str | Fraction) -> Fraction:
    """An exact radius from `8/255`, "8/255", "0.3" or a Fraction.

    A number is read as the simplest fraction that rounds to the same float, so that `8 / 255` is 8/255, and a text
    as the number that it shows.

    Raises:
        ThreatError: not a finite number.
    """
    try:
        if isinstance(value, str):
            top, *bottom = (Fraction(part.strip()) for part in value.split("/"))
            exact = top / bottom.pop() if bottom else top
            if bottom:
                raise ValueError("more than one slash")
        else:
            exact = value if isinstance(value, Fraction) else Fraction(repr(float(value)))
        simple = exact.limit_denominator(1_000_000)
        return simple if float(simple) == float(exact) else exact
    except (ValueError, OverflowError, ZeroDivisionError, TypeError):
        raise ThreatError(
            f"epsilon must be a finite number of at least 0, such as 0.3 or 8/255, got {value!r}"
        ) from None


def fraction_text(value: Fraction) -> str:
    """A radius as a person writes it: short decimals as decimals, multiples of 1/255 as such.

    `parse_epsilon` reads the same radius from it.
    """
    decimal = f"{float(value):g}"
    if "e" not in decimal and Fraction(decimal) == value:
        return decimal
    if (value * 255).denominator == 1:
        return f"{value * 255}/255"
    if value.denominator >= 10_000 and parse_epsilon(repr(float(value))) == value:
        return repr(float(value))
    return f"{value.numerator}/{value.denominator}"


def _is_whole(epsilon: Fraction | Tensor) -> bool:
    if isinstance(epsilon, Tensor):
        return bool((epsilon == epsilon.round()).all())
    return epsilon.denominator == 1


def parse_threat(text: str) -> ThreatModel:
    """A threat model from its text, `NORM:EPSILON`, such as "linf:8/255", "l2:0.5", "l1:12" or "l0:10".

    Raises:
        ThreatError: another form, or values that `ThreatModel` refuses.
    """
    norm, colon, epsilon = str(text).partition(":")
    if not colon:
        raise ThreatError(f"threat {text!r} is not of the form NORM:EPSILON, such as linf:8/255 or l2:0.5")
    return ThreatModel(norm.strip().lower(), epsilon)
