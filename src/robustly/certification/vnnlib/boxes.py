"""Bounds of inputs as they are written, and the floating-point boxes around and inside them."""

import math
from collections import ChainMap
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustly.certification.vnnlib.formulas import Condition, VnnlibError
from robustly.certification.vnnlib.places import place_of_number
from robustly.output_text import listed

LARGEST = Fraction(float(np.finfo(np.float32).max))

Array = NDArray[np.floating[Any]]

Bound = tuple[Fraction, bool]
"""`value >= number`, or `value > number` where the second part is True."""


@dataclass(frozen=True)
class Bounds:
    """Exact bounds of inputs.

    Args:
        below: lower bounds of the inputs, by number.
        above: lower bounds of the negated inputs.
    """

    below: MutableMapping[int, Bound]
    above: MutableMapping[int, Bound]

    def over(self, outer: "Bounds") -> "Bounds":
        """These bounds, and those of `outer` for the rest."""
        return Bounds(ChainMap(self.below, outer.below), ChainMap(self.above, outer.above))

    def contradiction(self, among: Iterable[int]) -> int | None:
        """The first of these inputs whose lower bound is above its upper bound; None if there is none."""
        for index in among:
            if index in self.below and index in self.above:
                (low, low_strict), (high, high_strict) = self.below[index], self.above[index]
                if low > -high or (low == -high and (low_strict or high_strict)):
                    return index
        return None


@dataclass(frozen=True)
class Box:
    """The box of a case, `(inputs,)` each.

    Args:
        lower: lower bounds, float64, rounded down.
        upper: upper bounds, float64, rounded up.
        least: lower bounds of a counterexample, float32, rounded up.
        most: upper bounds of a counterexample, float32, rounded down. Where no float32 number is between the
            bounds, as in `X_0 = 0.1`, `least` and `most` are the nearest one, and the outer box includes it.
    """

    lower: Tensor
    upper: Tensor
    least: Tensor
    most: Tensor


def as_bound(condition: Condition) -> tuple[int, bool, Bound] | None:
    """The number of the input, True for an upper bound, and the bound; None for another kind of condition."""
    terms = condition.left.terms
    if len(terms) != 1:
        return None
    ((kind, index), factor) = next(iter(terms.items()))
    if kind != "X":
        return None
    constant = condition.left.constant
    return index, factor > 0, (constant if abs(factor) == 1 else constant / abs(factor), condition.strict)


def tightened(bounds: Bounds, conditions: list[tuple[int, bool, Bound]]) -> Bounds:
    """Only those of the further bounds that are tighter than `bounds`."""
    sides: tuple[dict[int, Bound], dict[int, Bound]] = {}, {}
    for index, is_upper, bound in conditions:
        outer = (bounds.above if is_upper else bounds.below).get(index)
        inner = sides[is_upper].get(index, outer)
        if inner is None or bound > inner:
            sides[is_upper][index] = bound
    return Bounds(*sides)


class BoxBuilder:
    """Boxes of one property: bounds that all cases share, and those of each case.

    Args:
        shared: bounds of all cases.
        inputs: number of inputs.
        source: name of the property, for messages.
        text: contents of the file, for the places in messages.
    """

    def __init__(self, shared: Bounds, inputs: int, source: str, text: str = "") -> None:
        self._source, self._text = source, text
        self._shared = shared
        self._outer = np.full((2, inputs), np.nan)
        self._inner = np.full((2, inputs), np.nan, dtype=np.float32)
        self._put(shared, self._outer, self._inner)

    def box(self, own: Bounds) -> Box:
        """The box of a case.

        Raises:
            VnnlibError: an input has no bound, or one beyond float32.
        """
        outer, inner = self._outer.copy(), self._inner.copy()
        self._put(own, outer, inner)
        self._check(outer, own.over(self._shared))
        lower, upper, least, most = outer[0], -outer[1], inner[0], -inner[1]
        empty = least > most
        if empty.any():
            nearest = (lower / 2 + upper / 2).astype(np.float32)
            least, most = np.where(empty, nearest, least), np.where(empty, nearest, most)
            lower = np.where(empty, np.minimum(lower, nearest), lower)
            upper = np.where(empty, np.maximum(upper, nearest), upper)
        return Box(*(torch.from_numpy(np.ascontiguousarray(one + 0.0)) for one in (lower, upper, least, most)))

    def _put(self, bounds: Bounds, outer: Array, inner: Array) -> None:
        for side, named in enumerate((bounds.below, bounds.above)):
            for index, bound in named.items():
                # An infinite bound is refused in `_check`, unless the case has a tighter one.
                within = abs(bound[0]) <= LARGEST
                outer[side, index], inner[side, index] = _rounded(bound) if within else (math.inf, math.inf)

    def _check(self, outer: Array, bounds: Bounds) -> None:
        for side, index in np.argwhere(np.isinf(outer)).tolist():
            value = -bounds.above[index][0] if side else bounds.below[index][0]
            raise VnnlibError(
                f"{self._source}{place_of_number(self._text, value)}: the bound {decimal(value)} of X_{index} is "
                "beyond the range of float32"
            )
        missing = [
            f"X_{index} ({word})"
            for index in np.flatnonzero(np.isnan(outer).any(0))
            for word, side in (("lower", 0), ("upper", 1))
            if np.isnan(outer[side, index])
        ]
        if missing:
            raise VnnlibError(
                f"{self._source}: every input needs a lower and an upper bound; missing are {listed(missing)}"
            )


def decimal(value: Fraction) -> str:
    """A number for messages, also beyond the range of float64."""
    try:
        return repr(float(value))
    except OverflowError:
        return f"{Decimal(value.numerator) / Decimal(value.denominator):.6g}"


def rounded_down(value: Fraction) -> float:
    """The largest float64 number that is not above `value`, which is in the range of float64."""
    nearest = float(value)
    return math.nextafter(nearest, -math.inf) if Fraction(nearest) > value else nearest


def _rounded(bound: Bound) -> tuple[float, float]:
    """A bound `>= value` as float64 rounded down, and as the least float32 number that fulfils it."""
    value, strict = bound
    outer = rounded_down(value)
    inner = float(np.float32(outer))
    while math.isfinite(inner) and (
        inner < outer or (Fraction(inner) <= value if strict else Fraction(inner) < value)
    ):
        inner = float(np.nextafter(np.float32(inner), np.float32(np.inf)))
    return outer, inner
