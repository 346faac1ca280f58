"""The stated guarantee of an audit: sizes in closed form, and by simulation on a forged evaluation."""

import math

import numpy as np
import pytest
from scipy.stats import hypergeom

from robustly.evaluation import Sampling
from robustly.evaluation.audit.sampling import drawn

POPULATIONS = [1, 2, 7, 49, 50, 51, 100, 196, 500, 781, 1000, 7000]


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize(("share", "confidence"), [(0.02, 0.99), (0.05, 0.9), (0.001, 0.999), (0.5, 0.5)])
def test_the_size_is_the_least_with_the_stated_probability(
    population: int, share: float, confidence: float
) -> None:
    size = Sampling(share, confidence).size(population)
    false = max(1, math.ceil(share * population - 1e-9))
    assert 1 <= size <= population
    assert hypergeom(population, false, size).cdf(0) <= 1 - confidence + 1e-12
    if size > 1:
        assert hypergeom(population, false, size - 1).cdf(0) > 1 - confidence


def test_sizes_by_hand() -> None:
    assert Sampling().size(0) == 0
    assert Sampling().size(50) == 50  # one false verdict of 50 is in a sample of n with probability n / 50
    assert Sampling(0.5, 0.5).size(2) == 1
    assert Sampling(everything=True).size(1000) == 1000
    # without end: the binomial size, log(0.01) / log(0.98)
    assert Sampling().size(1_000_000) == math.ceil(math.log(0.01) / math.log(0.98))


@pytest.mark.parametrize(("share", "confidence"), [(0, 0.9), (1, 0.9), (0.1, 0), (0.1, 1), (math.nan, 0.5)])
def test_shares_and_confidences_lie_between_0_and_1(share: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        Sampling(share, confidence)


@pytest.mark.parametrize("standing", [200, 500])
def test_500_forgeries_of_2_per_cent_are_caught_in_99_per_cent(standing: int) -> None:
    """A forged verdict is found if it is in the sample: `test_forgeries` shows that the attack breaks it again."""
    rng, total = np.random.default_rng(0), 700
    caught = 0
    for trial in range(500):
        population = np.zeros(total, dtype=bool)
        population[rng.choice(total, standing, replace=False)] = True
        forged = rng.choice(np.flatnonzero(population), math.ceil(0.02 * standing), replace=False)
        sampling = Sampling(seed=trial)
        sample = drawn(sampling.order(total), population, sampling.size(standing))
        assert len(sample) == sampling.size(standing)
        assert population[sample].all()
        caught += bool(np.isin(forged, sample).any())
    assert caught >= 495


def test_samples_differ_and_are_prefixes_of_one_order() -> None:
    population = np.arange(300) % 3 > 0
    order = Sampling(seed=5).order(300)
    small, large = (drawn(order, population, size) for size in (20, 60))
    assert np.isin(small, large).all()
    assert not np.array_equal(Sampling().order(300), Sampling().order(300))
    assert sorted(order) == list(range(300))


def test_the_share_that_a_smaller_sample_detects() -> None:
    """C(N - F, n) / C(N, n) at most 1 % for the first F, and more for the one before."""
    sampling = Sampling()
    for population, size in ((100, 90), (500, 32), (11, 6)):
        share = sampling.detected(population, size)
        assert share is not None
        false = round(share * population)
        missed = [math.comb(population - one, size) / math.comb(population, size) for one in (false, false - 1)]
        assert missed[0] <= 0.01 < missed[1]
    assert sampling.detected(100, 100) == 0.01
    assert sampling.detected(3, 0) is None
