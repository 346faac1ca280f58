"""Shares of examples: confidence intervals and exact tests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution
_T_95 = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912),
    *(2.364624, 2.306004, 2.262157, 2.228139, 2.200985, 2.178813),
)
"""Two-sided 95 % quantiles of Student's t distribution, from one degree of freedom."""


def wilson_interval(hits: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `count` >= 1 examples (Wilson, JASA 22, 1927), in [0, 1].

    Args:
        hits: number of hits, or the sum of values in [0, 1]. The variance of such values is at most that of hits
            with the same mean, so that the interval of their mean is at least as wide as needed.
        count: number of examples.
    """
    share, z2 = hits / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return 0.0 if hits == 0 else centre - half, 1.0 if hits == count else centre + half


def difference_interval(one: "Proportion", other: "Proportion") -> tuple[float, float]:
    """The 95 % interval of a difference of shares of two independent samples, both ends in [-1, 1].

    It joins the Wilson intervals of the two shares (Newcombe, Statistics in Medicine 17, 1998, method 10).

    Args:
        one: the first share.
        other: the share that is subtracted.
    """
    difference = one.share - other.share
    below = math.hypot(one.share - one.low, other.high - other.share)
    above = math.hypot(one.high - one.share, other.share - other.low)
    return max(-1.0, difference - below), min(1.0, difference + above)


def student_t_95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t distribution.

    Up to 12 degrees of freedom it is tabulated, beyond it is expanded in their inverse (Abramowitz and Stegun,
    26.7.5), with an error below 0.0001.

    Raises:
        ValueError: fewer than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"freedom should be at least 1, but is {freedom}")
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    z, inverse = Z_95, 1 / freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first * inverse + second * inverse**2 + third * inverse**3


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


@dataclass(frozen=True)
class Difference:
    """A difference of two shares of the same examples, the first less the second.

    Args:
        only_first: number of examples that are hits of the first share alone.
        only_second: number of examples that are hits of the second share alone.
        count: examples in total, at least 1.

    Raises:
        ValueError: no examples, or more hits than examples.
    """

    only_first: int
    only_second: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count should be at least 1, but is {self.count}")
        if min(self.only_first, self.only_second) < 0 or self.only_first + self.only_second > self.count:
            raise ValueError(
                f"only_first and only_second should be at least 0 and at most {self.count} together, but are "
                f"{self.only_first} and {self.only_second}"
            )

    @property
    def value(self) -> float:
        """The difference, in [-1, 1]."""
        return (self.only_first - self.only_second) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval: the adjusted Wald interval for paired data (Bonett and Price, JEBS 37, 2012)."""
        total = self.count + 2
        first, second = (self.only_first + 1) / total, (self.only_second + 1) / total
        centre = first - second
        half = Z_95 * math.sqrt((first + second - centre**2) / total)
        return max(-1.0, centre - half), min(1.0, centre + half)


def binomial_tail(hits: int, count: int, share: float) -> float:
    """P(X >= hits) for X binomial with `count` trials and success probability `share`.

    Args:
        hits: any integer; 0 or less gives 1, more than `count` gives 0.
        count: number of trials, at least 0.
        share: success probability, in [0, 1].

    Raises:
        ValueError: a negative count, or a share outside [0, 1].
    """
    if count < 0:
        raise ValueError(f"count should be at least 0, but is {count}")
    if not 0 <= share <= 1:
        raise ValueError(f"share should be between 0 and 1, but is {share:g}")
    if hits <= 0 or share == 1:
        return float(hits <= count)
    if hits > count or share == 0:
        return 0.0
    successes, failures, constant = math.log(share), math.log1p(-share), math.lgamma(count + 1)
    terms: list[float] = []
    for number in range(hits, count + 1):
        choices = constant - math.lgamma(number + 1) - math.lgamma(count - number + 1)
        terms.append(math.exp(choices + number * successes + (count - number) * failures))
        if number > count * share and terms[-1] < 1e-18 * terms[0]:
            break  # the rest, which falls geometrically, is below the precision
    return min(1.0, math.fsum(terms))


def excess_p_value(hits: int, count: int, allowed: float, opposite: int | None = None) -> float:
    """The p-value of the hypothesis that at most an `allowed` share of all examples are hits.

    The test is exact: the hits of independent examples are binomial, and the tail is largest at the allowed share.
    With `opposite`, the hypothesis also holds if hits are not more frequent than opposite hits. Two attacks that
    are equally good break some examples each that the other does not (sign test, as in McNemar's). The p-value is
    the larger of the two, so that the level holds (intersection-union test).

    Args:
        hits: number of examples that count against the hypothesis, in 0..count.
        count: number of examples, at least 0.
        allowed: share of hits that is tolerated, in [0, 1].
        opposite: number of examples that count for the other side, at least 0; None omits the sign test.

    Raises:
        ValueError: a number outside its range.
    """
    if not 0 <= hits <= max(count, 0) or (opposite is not None and opposite < 0):
        raise ValueError(f"hits should be in 0..{count} and opposite at least 0, got {hits} and {opposite}")
    excess = binomial_tail(hits, count, allowed)
    return excess if opposite is None else max(excess, binomial_tail(hits, hits + opposite, 0.5))
