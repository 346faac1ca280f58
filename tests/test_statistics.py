"""Wilson intervals against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from robustly.statistics import Proportion, collapsed_class, wilson_interval


@given(st.integers(1, 20_000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_agrees_with_scipy(share: tuple[int, int]) -> None:
    hits, count = share
    reference = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(hits, count)
    assert low == pytest.approx(reference.low, abs=1e-7)
    assert high == pytest.approx(reference.high, abs=1e-7)
    assert 0 <= low <= hits / count <= high <= 1


@given(st.integers(1, 5000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_hits_and_misses_mirror_each_other(share: tuple[int, int]) -> None:
    hits, count = share
    low, high = wilson_interval(hits, count)
    assert wilson_interval(count - hits, count) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_a_proportion_prints_its_interval() -> None:
    half = Proportion(50, 100)
    assert half.share == 0.5
    assert (half.low, half.high) == half.interval == wilson_interval(50, 100)
    assert str(half) == "50.0 % [40.4, 59.6]"
    assert str(Proportion(100, 100)) == "100.0 % [96.3, 100.0]"


@pytest.mark.parametrize(("hits", "count", "named"), [(0, 0, "at least 1"), (3, 2, "0 and 2"), (-1, 2, "0 and 2")])
def test_a_proportion_of_nothing_or_of_more_than_all_is_refused(hits: int, count: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Proportion(hits, count)


@pytest.mark.parametrize(
    ("predicted", "labels", "found"),
    [
        ([0, 0, 9], [3, 3, 3], 2),
        ([9, 0, 0], [8, 1], 0),
        ([8, 0, 1], [3, 3, 3], None),
        ([0, 0, 9], [0, 0, 9], None),
        ([0, 9], [9, 0], None),
        ([0, 0], [1, 1], None),
    ],
)
def test_a_collapsed_network_predicts_one_class_of_several(
    predicted: list[int], labels: list[int], found: int | None
) -> None:
    assert collapsed_class(predicted, labels) == found
