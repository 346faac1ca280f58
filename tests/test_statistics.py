"""Wilson intervals and exact tests against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial, t

from robustly.statistics import (
    Difference,
    Proportion,
    binomial_tail,
    collapsed_class,
    excess_p_value,
    student_t_95,
    wilson_interval,
)


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


@pytest.mark.parametrize("freedom", [1, 2, 3, 11, 12, 13, 14, 20, 50, 1000])
def test_quantiles_of_student_agree_with_scipy(freedom: int) -> None:
    assert student_t_95(freedom) == pytest.approx(t.ppf(0.975, freedom), abs=1e-4)


def test_a_quantile_of_student_needs_two_numbers() -> None:
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        student_t_95(0)


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


@given(
    st.integers(0, 2000).flatmap(lambda count: st.tuples(st.integers(-2, count + 2), st.just(count))),
    st.sampled_from([0.0, 1e-6, 0.005, 0.01, 0.1, 0.5, 0.9, 1.0]),
)
def test_the_binomial_tail_is_scipys(trial: tuple[int, int], share: float) -> None:
    hits, count = trial
    assert binomial_tail(hits, count, share) == pytest.approx(float(binom.sf(hits - 1, count, share)), rel=1e-8)


def test_binomial_tails_in_closed_form() -> None:
    assert binomial_tail(3, 3, 0.5) == pytest.approx(1 / 8, rel=1e-12)
    assert binomial_tail(1, 50, 0.01) == pytest.approx(1 - 0.99**50, rel=1e-12)
    assert binomial_tail(50, 50, 0.01) == pytest.approx(1e-100, rel=1e-9)
    assert binomial_tail(0, 0, 0.3) == 1
    assert binomial_tail(1, 0, 0.3) == 0


@given(st.integers(1, 300).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_an_excess_is_the_one_sided_test_of_scipy(trial: tuple[int, int]) -> None:
    hits, count = trial
    expected = float(binomtest(hits, count, 0.01, alternative="greater").pvalue)
    assert excess_p_value(hits, count, 0.01) == pytest.approx(expected, rel=1e-8)
    sign = float(binomtest(hits, hits + 3, 0.5, alternative="greater").pvalue)
    assert excess_p_value(hits, count, 0.01, opposite=3) == pytest.approx(max(expected, sign), rel=1e-8)


def test_one_image_of_two_hundred_is_no_excess_and_thirty_are() -> None:
    assert excess_p_value(1, 200, 0.01) > 0.8
    assert excess_p_value(30, 200, 0.01) < 1e-20
    assert excess_p_value(30, 200, 0.01, opposite=30) > 0.5
    assert excess_p_value(0, 0, 0.01) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((3, -1, 0.1), "count"),
        ((1, 2, 1.5), "share should be between 0 and 1"),
        ((1, 2, float("nan")), "share should be between 0 and 1"),
    ],
)
def test_a_tail_outside_its_range_is_refused(arguments: tuple[int, int, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        binomial_tail(*arguments)


@pytest.mark.parametrize("arguments", [(3, 2, 0.1), (-1, 2, 0.1), (1, 2, 0.1, -1)])
def test_more_hits_than_examples_are_refused(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match=r"hits should be in 0\.\.2"):
        excess_p_value(*arguments)


def test_a_paired_difference_has_the_interval_of_its_formula() -> None:
    found = Difference(10, 2, 48)
    assert found.value == pytest.approx(8 / 48)
    first, second = 11 / 50, 3 / 50
    half = 1.959964 * ((first + second - (first - second) ** 2) / 50) ** 0.5
    assert found.interval == pytest.approx((0.16 - half, 0.16 + half))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_a_paired_difference_lies_in_its_interval_and_is_antisymmetric(first: int, second: int, rest: int) -> None:
    count = max(first + second + rest, 1)
    found, swapped = Difference(first, second, count), Difference(second, first, count)
    low, high = found.interval
    assert -1 <= low <= found.value <= high <= 1
    assert swapped.interval == pytest.approx((-high, -low))


@pytest.mark.parametrize("chances", [(0.3, 0.1), (0.05, 0.05), (0.5, 0.0), (0.02, 0.2)])
def test_the_interval_of_a_paired_difference_covers_the_truth(chances: tuple[float, float]) -> None:
    first, second = chances
    count, covered, rest = 40, 0.0, 1 - first - second
    for one in range(count + 1):
        for two in range(count + 1 - one):
            low, high = Difference(one, two, count).interval
            if low <= first - second <= high:
                covered += multinomial.pmf([one, two, count - one - two], count, [first, second, rest])
    assert 0.93 <= covered <= 1


@pytest.mark.parametrize(("first", "second", "count"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_paired_counts_are_refused(first: int, second: int, count: int) -> None:
    with pytest.raises(ValueError, match="should be at least"):
        Difference(first, second, count)
