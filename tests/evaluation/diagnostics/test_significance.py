"""Significance of counts: levels by simulation, and the least counts that raise an alarm."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from robustly.evaluation.diagnostics.reference import reference_attacks
from robustly.evaluation.diagnostics.significance import (
    LEVEL,
    TOLERATED,
    Excess,
    most_significant,
    tolerated_among,
)
from robustly.evaluation.sentinel import SentinelOutcome
from robustly.statistics import excess_p_value

TRIALS = 10_000


def alarms(draws: "np.ndarray[Any, Any]", test: Callable[..., Excess]) -> int:
    """Number of draws on which a test alarms; each row holds the arguments of a test."""
    rows, counts = np.unique(draws.reshape(TRIALS, -1), axis=0, return_counts=True)
    failed = [not test(*(int(value) for value in row)).passed for row in rows]
    return int(counts[failed].sum())


def most_alarms(trials: int, level: float) -> int:
    """A number of alarms that a test of this level exceeds with probability 1e-6."""
    allowed = int(trials * level)
    while beta.sf(level, allowed + 1, trials - allowed) > 1 - 1e-6:
        allowed += 1
    return allowed


@pytest.mark.parametrize("count", [50, 200, 1000])
@pytest.mark.parametrize("allowed", [0.01, 0.1, 0.5])
def test_false_alarms_are_rarer_than_the_level(count: int, allowed: float) -> None:
    """The worst honest network: its share of hits is the tolerated one."""
    hits = np.random.default_rng(0).binomial(count, allowed, TRIALS)
    assert alarms(hits, lambda one: Excess(one, count, allowed)) <= most_alarms(TRIALS, LEVEL)


@pytest.mark.parametrize("count", [50, 200, 1000])
def test_false_alarms_of_paired_attacks_are_rarer_than_the_level(count: int) -> None:
    """Equally good attacks that each miss 10 % of the images: far above the tolerated share, and no alarm."""
    draws = np.random.default_rng(1).multinomial(count, [0.1, 0.1, 0.8], TRIALS)[:, :2]
    found = alarms(draws, lambda one, other: Excess(one, count, TOLERATED, opposite=other))
    assert found <= most_alarms(TRIALS, LEVEL)


def test_false_alarms_of_the_most_extreme_of_three_are_rarer_than_the_level() -> None:
    draws = np.random.default_rng(2).binomial(200, 0.1, (TRIALS, 3))
    found = alarms(draws, lambda *row: most_significant([Excess(hits, 200, 0.1, tests=3) for hits in row]))
    assert found <= most_alarms(TRIALS, LEVEL)


def sentinel(broken: int) -> SentinelOutcome:
    return SentinelOutcome("square", "Square", broken, tried=80, unbroken=400, total=1000)


def test_a_sentinel_of_a_sample_is_calibrated_too() -> None:
    """Of 1,000 images 400 are unbroken and 10 of these wrongly so (1 % of all); the sentinel tries 80."""
    hits = np.random.default_rng(3).binomial(80, 10 / 400, TRIALS)
    found = alarms(hits, lambda one: sentinel(one).test)
    assert found <= most_alarms(TRIALS, LEVEL)
    assert not sentinel(20).test.passed


@pytest.mark.parametrize(("count", "least"), [(50, 5), (200, 9), (1000, 22)])
def test_the_least_count_that_raises_an_alarm(count: int, least: int) -> None:
    """As stated in docs/diagnostics.md."""
    assert Excess(least - 1, count, TOLERATED).passed
    assert not Excess(least, count, TOLERATED).passed


def test_an_image_or_two_never_raise_an_alarm_and_nothing_is_certain_without_images() -> None:
    assert all(Excess(hits, count, TOLERATED).passed for count in (20, 50, 200) for hits in (0, 1, 2))
    assert Excess(0, 0, TOLERATED).passed
    assert Excess(0, 0, TOLERATED).share == 0
    test = Excess(9, 200, TOLERATED, tests=3)
    assert test.p_value == pytest.approx(3 * excess_p_value(9, 200, TOLERATED))
    assert (test.share, test.threshold) == (0.045, "not significantly above 1 %")
    assert most_significant([Excess(1, 50, 0.1), test, Excess(2, 50, 0.1)]) is test


def test_the_tolerated_share_among_the_unbroken_is_one_percent_of_all() -> None:
    assert tolerated_among(100, 1000, 0.01) == pytest.approx(0.1)
    assert tolerated_among(1000, 1000, 0.01) == pytest.approx(0.01)
    assert tolerated_among(3, 1000, 0.01) == 1
    assert tolerated_among(0, 1000, 0.01) == 1


def test_the_reference_is_the_gradient_stages_of_the_suite() -> None:
    assert list(reference_attacks("linf")) == ["screen", "near_targets", "far_targets", "long_runs", "pma"]
    assert list(reference_attacks("l0")) == ["sigma_zero"]
    assert list(reference_attacks("rotation")) == ["screen", "near_targets", "far_targets", "pma", "adam"]
