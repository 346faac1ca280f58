"""Intervals for proportions."""

import math
from dataclasses import dataclass

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `count` >= 1 examples (Wilson, JASA 22, 1927), in [0, 1]."""
    share, z2 = hits / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return 0.0 if hits == 0 else centre - half, 1.0 if hits == count else centre + half


@dataclass(frozen=True)
class Proportion:
    """A share of examples.

    Args:
        hits: examples counted.
        count: examples in total, at least 1.
    """

    hits: int
    count: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return wilson_interval(self.hits, self.count)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
