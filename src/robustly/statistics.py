"""Shares of examples and their confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `count` >= 1 examples (Wilson, JASA 22, 1927), in [0, 1]."""
    share, z2 = hits / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return 0.0 if hits == 0 else centre - half, 1.0 if hits == count else centre + half


def collapsed_class(predicted: Sequence[int], labels: Sequence[int]) -> int | None:
    """The class of all predictions, if there is one and the labels are of several classes; else None.

    Args:
        predicted: number of predictions of each class, from class 0.
        labels: number of examples of each class, from class 0.
    """
    found = [number for number, count in enumerate(predicted) if count]
    several = sum(count > 0 for count in labels) > 1
    return found[0] if len(found) == 1 and several else None


@dataclass(frozen=True)
class Proportion:
    """A share of examples.

    Args:
        hits: examples counted, in 0..count.
        count: examples in total, at least 1.

    Raises:
        ValueError: no examples, or more hits than examples.
    """

    hits: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count should be at least 1, but is {self.count}")
        if not 0 <= self.hits <= self.count:
            raise ValueError(f"{self.hits} should be between 0 and {self.count} examples")

    @property
    def share(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval, both ends in [0, 1]."""
        return wilson_interval(self.hits, self.count)

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.interval[1]

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
