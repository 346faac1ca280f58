"""Sizes of threats as exact fractions, and their text: "8/255" stays 8/255."""

import math
from fractions import Fraction

from robustly.threats.contract import ThreatError


def parse_epsilon(value: float | str | Fraction, name: str = "epsilon") -> Fraction:
    """Parse an exact radius from `8/255`, "8/255", "0.3" or a Fraction.

    A number becomes the simplest fraction that rounds to the same float, so that `8 / 255` is 8/255. A text becomes
    the number that it shows.

    Args:
        value: the radius.
        name: what it is, for the message.

    Raises:
        ThreatError: not a finite number.
    """
    try:
        if isinstance(value, str):
            top, *bottom = (_exact(part.strip()) for part in value.split("/"))
            exact = top / bottom.pop() if bottom else top
            if bottom:
                raise ValueError("more than one slash")
        else:
            exact = value if isinstance(value, Fraction) else Fraction(repr(float(value)))
        simple = exact.limit_denominator(1_000_000)
        return simple if float(simple) == float(exact) else exact
    except (ValueError, OverflowError, ZeroDivisionError, TypeError):
        raise ThreatError(
            f"{name} must be a finite number of at least 0, such as 0.3 or 8/255, got {value!r}"
        ) from None


def _exact(text: str) -> Fraction:
    """The number that a text shows; 0 where it is below all floats, whose exact fraction could fill the memory."""
    rounded = float(text)
    return Fraction(text) if rounded and math.isfinite(rounded) else Fraction(rounded)


def fraction_text(value: Fraction) -> str:
    """Text of a radius: short decimals as decimals, multiples of 1/255 as such.

    `parse_epsilon` returns the same radius from it.
    """
    decimal = f"{float(value):g}"
    if "e" not in decimal and Fraction(decimal) == value:
        return decimal
    if (value * 255).denominator == 1:
        return f"{value * 255}/255"
    if value.denominator >= 10_000 and parse_epsilon(repr(float(value))) == value:
        return repr(float(value))
    return f"{value.numerator}/{value.denominator}"
