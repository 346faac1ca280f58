"""Margins that a forger changes so that a plan leaves out examples fail the audit; other rounding does not."""

import numpy as np

from robustly.evaluation.audit.selection import Closeness, misplaced
from robustly.evidence import EvidenceTable
from robustly.evidence.provenance import Plan
from robustly.evidence.schema import ExampleColumns, Flags, Single, WorstCaseColumns

COUNT = 200
PLAN = Plan(closest=0.1, at_least=5)
EVERYONE = np.arange(COUNT)
UNBROKEN: Flags = np.ones(COUNT, dtype=bool)


def table() -> EvidenceTable:
    label = np.zeros(COUNT, dtype=np.int64)
    examples = ExampleColumns(np.arange(COUNT) * 7, label, label, np.ones(COUNT, dtype=np.float32))
    return EvidenceTable(examples, {}, WorstCaseColumns(~UNBROKEN, ~UNBROKEN))


def margins() -> Single:
    rng = np.random.default_rng(0)
    return -rng.gamma(2.0, 2.0, COUNT).astype(np.float32)


def problem(stated: Single, found: Single, plan: Plan = PLAN) -> str:
    return misplaced(table(), plan, UNBROKEN, EVERYONE, Closeness(stated, found))


def test_honest_margins_pass_with_other_rounding() -> None:
    found = margins()
    noise = np.random.default_rng(1).normal(0, 0.03, COUNT).astype(np.float32)
    assert not problem(found, found)
    assert not problem(found + noise, found)


def test_close_examples_that_are_stated_to_be_far_fail() -> None:
    found = margins()
    stated = found.copy()
    stated[np.argsort(found)[-4:]] = -30.0
    assert "4 of 200" in problem(stated, found) or "8 of 200" in problem(stated, found)


def test_far_examples_that_are_stated_to_be_close_fail() -> None:
    """They take the places of the closest ones."""
    found = margins()
    stated = found.copy()
    stated[np.argsort(found)[:15]] = -1e-6
    assert "examples have margins" in problem(stated, found)


def test_unknown_margins_do_not_help() -> None:
    """Examples with unknown margins are attacked first."""
    found = margins()
    stated = found.copy()
    stated[np.argsort(found)[:15]] = np.nan
    assert problem(stated, found)


def test_a_plan_without_a_share_selects_no_examples_by_margins() -> None:
    assert not problem(-margins(), margins(), Plan())


def test_the_highest_margin_counts() -> None:
    one, two = np.array([-1, np.nan, -3], np.float32), np.array([-2, -5, np.nan], np.float32)
    after = Closeness(one, two).after(two, one)
    assert after.stated.tolist() == after.found.tolist() == [-1, -5, -3]
