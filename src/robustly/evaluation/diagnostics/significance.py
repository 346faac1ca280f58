"""Tests of significance for counts of images: alarms for more hits than a tolerated share and chance explain."""

from dataclasses import dataclass

from robustly.statistics import excess_p_value

LEVEL = 0.001
"""Probability of a false alarm of each test, at most."""

TOLERATED = 0.01
"""Share of all images that may count against an unmasked network: of two good searches, each misses some."""


@dataclass(frozen=True)
class Excess:
    """A count of images that speaks against a model, with its exact test.

    Args:
        hits: images that speak against the model.
        count: images that could, at least 0.
        allowed: tolerated share of hits, in [0, 1].
        opposite: images that speak for the model; None omits the sign test. See `excess_p_value`.
        tests: number of tests of which this is the most extreme one (Bonferroni).
    """

    hits: int
    count: int
    allowed: float
    opposite: int | None = None
    tests: int = 1

    @property
    def p_value(self) -> float:
        """Probability of at least so many hits if the tolerated share and chance are the only causes."""
        return min(1.0, self.tests * excess_p_value(self.hits, self.count, self.allowed, self.opposite))

    @property
    def passed(self) -> bool:
        """True if the tolerated share and chance explain the hits."""
        return self.p_value >= LEVEL

    @property
    def share(self) -> float:
        """Share of hits, in [0, 1]."""
        return self.hits / self.count if self.count else 0.0

    @property
    def threshold(self) -> str:
        """The values that pass, in words."""
        return f"not significantly above {100 * self.allowed:.3g} %"

    @property
    def words(self) -> str:
        """The p-value in words."""
        return f"(p = {self.p_value:.2g})" if self.p_value >= 1e-99 else "(p < 1e-99)"


def most_significant(tests: list[Excess]) -> Excess:
    """The test with the smallest p-value."""
    return min(tests, key=lambda test: test.p_value)


def tolerated_among(unbroken: int, total: int, allowed: float) -> float:
    """The share of unbroken images that equals a share of all images, at most 1.

    A second search runs on the unbroken images only. Its successes lower robust accuracy, which is a share of all.

    Args:
        unbroken: number of unbroken images, at least 0.
        total: number of images, at least 1.
        allowed: share of all images.
    """
    return min(1.0, allowed * total / unbroken) if unbroken else 1.0
