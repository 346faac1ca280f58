"""Accuracy against budget, from a table made by hand and from random ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import attack, examples

from robustly.evidence.budgets import Spent, budget_curve, spent_by, suite_curve

EXAMPLES = examples([0, 0, 0, 0, 0], [1, 0, 0, 0, 0])
FIRST = attack(
    5, broken=[1, 1, 0, 1, 0], tried=[0, 1, 1, 1, 1], forwards=[0, 2, 6, 4, 6], backwards=[0, 1, 4, 3, 4]
)
SECOND = attack(  # run on what the first left unbroken
    5, broken=[1, 1, 1, 1, 0], tried=[0, 0, 1, 0, 1], forwards=[0, 0, 5, 0, 50], backwards=[0, 0, 0, 0, 0]
)


def test_the_budget_curve_of_a_table_made_by_hand() -> None:
    first, second = spent_by(FIRST), spent_by(SECOND)
    alone = budget_curve(EXAMPLES.correct, first)
    assert alone.passes.tolist() == [0, 3, 7]
    assert alone.accuracy.tolist() == pytest.approx([0.8, 0.6, 0.4])
    after = budget_curve(EXAMPLES.correct, second)
    assert after.passes.tolist() == [0, 5]
    assert after.accuracy.tolist() == pytest.approx([0.4, 0.2])
    suite = suite_curve(EXAMPLES.correct, [first, second])
    assert suite.passes.tolist() == [0, 3, 7, 15]  # 10 passes of the first, then 5 of the second
    assert suite.accuracy.tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert suite.end == 60
    assert [suite.at(budget) for budget in (2, 10, 50)] == pytest.approx([0.8, 0.4, 0.2])


def test_passes_count_only_where_the_attack_was_run() -> None:
    columns = attack(2, tried=[1, 0], forwards=[3, 3], backwards=[2, 2])
    assert spent_by(columns).passes.tolist() == [5, 0]


@given(data=st.data(), count=st.integers(1, 30), attacks=st.integers(1, 4), every=st.booleans())
def test_accuracy_never_rises_with_the_budget_and_ends_at_the_worst_case(
    data: st.DataObject, count: int, attacks: int, every: bool
) -> None:
    draw = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    correct = draw.random(count) < 0.8
    unbroken, broken_by_any, spent = correct.copy(), ~correct, []
    for _ in range(attacks):
        tried = correct if every else unbroken & (draw.random(count) < 0.7)
        own = tried & (draw.random(count) < 0.4)
        broken = own | (~correct if every else ~unbroken)
        spent.append(Spent(broken, tried, np.where(tried, draw.integers(1, 40, count), 0)))
        unbroken, broken_by_any = unbroken & ~broken, broken_by_any | broken
    whole = suite_curve(correct, spent)
    for curve in (whole, *(budget_curve(correct, one) for one in spent)):
        assert (np.diff(curve.passes) > 0).all()
        assert (np.diff(curve.accuracy) < 0).all()
        budgets = [curve.at(budget) for budget in range(0, 200, 7)]
        assert budgets == sorted(budgets, reverse=True)
    assert whole.at(0) == pytest.approx(correct.mean())
    assert whole.at(whole.end) == pytest.approx((~broken_by_any).mean())
    for one in spent:
        assert budget_curve(correct, one).at(10**6) == pytest.approx((correct & ~one.broken).mean())
