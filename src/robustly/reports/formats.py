"""Numbers as text: percentages with intervals, counts, durations, hashes."""

from collections.abc import Mapping
from typing import Protocol

from robustly.statistics import Proportion

NO_VALUE = "\u2013"
THIN = "\u202f"
"""Narrow no-break space, between a number and its unit and between thousands."""

_WORDS = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)


class Interval(Protocol):
    """Two ends of an interval, in [0, 1]."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


def percent(share: float | None) -> str:
    """A share in [0, 1] as `97.8 %`; a dash for None."""
    return NO_VALUE if share is None else f"{100 * share:.1f}{THIN}%"


def interval(part: Interval) -> str:
    """The 95 % interval of a share, in per cent: `[96.7, 98.6]`."""
    return f"[{100 * part.low:.1f}, {100 * part.high:.1f}]"


def proportion(part: Proportion | None) -> str:
    """A share and its interval: `97.8 % [96.7, 98.6]`; a dash for None."""
    return NO_VALUE if part is None else f"{percent(part.share)} {interval(part)}"


def deviating(share: float, deviation: float) -> str:
    """A mean share and its standard deviation, in per cent: `45.7 ± 0.8 %`."""
    return f"{100 * share:.1f} ± {100 * deviation:.1f}{THIN}%"


def count(number: float | None) -> str:
    """A whole number with separated thousands; a dash for None."""
    return NO_VALUE if number is None else f"{round(number):,}".replace(",", THIN)


def in_words(number: int) -> str:
    """A whole number as a word up to twelve, else in digits."""
    return _WORDS[number] if 0 <= number < len(_WORDS) else count(number)


def decimal(number: float | None) -> str:
    """A number of three or four leading digits; a dash for None."""
    if number is None:
        return NO_VALUE
    return f"{number:.1f}" if 10 <= abs(number) < 1000 else f"{number:.4g}"


def short(number: float | None) -> str:
    """A measured number with three leading digits; a dash for None."""
    return NO_VALUE if number is None else f"{number:.3g}"


def tenths(number: float | None) -> str:
    """A number with one decimal; a dash for None."""
    return NO_VALUE if number is None else f"{number:.1f}"


def duration(seconds: float | None) -> str:
    """A time in seconds, minutes, hours or, from 100 hours, days; a dash for None."""
    if seconds is None:
        return NO_VALUE
    if seconds < 60:
        return f"{seconds:.1f}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min {rest}{THIN}s"
    if minutes < 6000:
        return f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"
    return f"{count(round(minutes / 1440))}{THIN}days"


def short_hash(digest: str | None) -> str:
    """The first twelve digits of a hash; a dash for None."""
    return NO_VALUE if digest is None else digest[:12]


def setting(value: object) -> str:
    """A setting of an attack on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value)
    return str(value)


def moment(created: str) -> str:
    """An ISO time without its fractions of a second: `2026-09-21 14:03 UTC`."""
    text = created.replace("T", " ")
    zone = " UTC" if text.endswith(("+00:00", "Z")) else ""
    return text[:16] + zone
