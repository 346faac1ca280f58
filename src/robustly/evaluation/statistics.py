"""Intervals for proportions."""

import math
from dataclasses import dataclass

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Proportion:
    """A share of examples with its 95 % Wilson interval.

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
        """The Wilson score interval (Wilson 1927), in [0, 1]."""
        share, n, z2 = self.value, self.count, Z_95**2
        centre = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        low = 0.0 if self.hits == 0 else centre - half
        return low, 1.0 if self.hits == n else centre + half

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
