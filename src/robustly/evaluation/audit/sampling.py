"""The number of standing verdicts that an audit attacks again, from a stated guarantee."""

import math
import secrets
from dataclasses import dataclass

import numpy as np

from robustly.evaluation.parts import ALONE, Crew
from robustly.evidence.schema import Flags, Whole
from robustly.randomness import shuffled

BROKEN_SHARE, BROKEN_LEAST = 0.1, 20
"""Share and least number of the broken rows of an attack that are attacked again, for their passes."""


@dataclass(frozen=True)
class Sampling:
    """The guarantee of an audit: if a share of the standing verdicts is false, it fails with some probability.

    Args:
        share: share of false verdicts among the standing ones, in (0, 1).
        confidence: probability that an audit fails if at least this share is false, in (0, 1).
        everything: whether all verdicts are checked instead of a sample.
        seed: seed of the sample; None draws one from the operating system, so that the sample cannot be foreseen.

    Raises:
        ValueError: a share or confidence outside (0, 1).
    """

    share: float = 0.02
    confidence: float = 0.99
    everything: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("share", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")

    def size(self, population: int) -> int:
        """Least sample of a population that contains a false verdict with the stated probability.

        The number of false verdicts in a sample drawn without replacement is hypergeometric. With F false verdicts
        among N, a sample of n has none with probability C(N - F, n) / C(N, n).

        Args:
            population: number N of standing verdicts; F is the share of them, rounded up, at least 1.
        """
        if self.everything or population <= 1:
            return population
        false = min(max(1, math.ceil(self.share * population - 1e-9)), population)
        allowed, missed, size = math.log(1 - self.confidence) + 1e-12, 0.0, 0
        while missed > allowed:
            if population - false - size <= 0:
                return size + 1
            missed += math.log((population - false - size) / (population - size))
            size += 1
        return size

    def detected(self, population: int, size: int) -> float | None:
        """Least share of false statements of which a sample has one with the stated probability; None without one.

        Args:
            population: number of statements.
            size: number of them in a sample drawn without replacement.
        """
        allowed = math.log(1 - self.confidence) + 1e-12
        for false in range(1, population + 1):
            if population - false < size:
                return false / population
            left = population - false
            missed = math.lgamma(left + 1) - math.lgamma(left - size + 1)
            missed -= math.lgamma(population + 1) - math.lgamma(population - size + 1)
            if missed <= allowed:
                return false / population
        return None

    def order(self, count: int, crew: Crew = ALONE) -> Whole:
        """A random order of the examples; every sample is a prefix of the rows of its population in this order."""
        seed = crew.first(lambda: secrets.randbits(62)) if self.seed is None else self.seed
        order: Whole = shuffled(count, "audit", seed).numpy()
        return order

    def words(self) -> str:
        """The guarantee as a sentence."""
        if self.everything:
            return "Every standing verdict was attacked again."
        return (
            f"If {100 * self.share:g} % or more of the standing verdicts were false, this audit would fail with "
            f"probability {100 * self.confidence:g} %."
        )


def drawn(order: Whole, population: Flags, count: int) -> Whole:
    """The first `count` rows of a population in a random order, ascending."""
    rows = order[population[order]][:count]
    return np.sort(rows)
