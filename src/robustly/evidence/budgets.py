"""Accuracy against budget: how many examples are unbroken after so many passes per image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustly.evidence.schema import AttackColumns, Double, Flags, Whole

BUDGETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Budgets in tables."""


@dataclass(frozen=True)
class Spent:
    """The cost of an attack on each of N examples.

    Args:
        broken: whether the example is broken, by this attack or before it.
        tried: whether this attack was run on it.
        passes: forward and backward passes that this attack spent on it; 0 where it was not run.
    """

    broken: Flags
    tried: Flags
    passes: Whole


@dataclass(frozen=True)
class BudgetCurve:
    """Accuracy as a falling step function: from `passes[i]` passes per image on, it is `accuracy[i]`.

    Args:
        passes: passes per image, ascending from 0.
        accuracy: shares of all examples, in [0, 1].
        end: largest number of passes spent on an example, where the curve ends.
    """

    passes: Whole
    accuracy: Double
    end: int

    def at(self, passes: int) -> float:
        """The accuracy after that many passes per image."""
        place = int(np.searchsorted(self.passes, passes, side="right")) - 1
        return float(self.accuracy[max(place, 0)])


def spent_by(columns: AttackColumns) -> Spent:
    """The cost of an attack, from its columns in the evidence table."""
    passes = np.where(columns.tried, columns.forwards + columns.backwards, 0)
    return Spent(columns.broken, columns.tried, passes)


def budget_curve(correct: Flags, spent: Spent) -> BudgetCurve:
    """Accuracy against the passes per image of one attack on the examples that were unbroken before it.

    If an attack does not stop at its first success, the passes are those of its whole run, so that the curve falls
    late.

    Args:
        correct: mask of the examples that are classified correctly without an attack.
        spent: the cost of the attack.
    """
    unbroken = correct & ~(spent.broken & ~spent.tried)
    fell = unbroken & spent.broken & spent.tried
    return _staircase(unbroken, fell, spent.passes, spent.passes[spent.tried & unbroken])


def suite_curve(correct: Flags, attacks: Sequence[Spent]) -> BudgetCurve:
    """Accuracy against the passes per image of all attacks in order, each on the examples unbroken before it."""
    unbroken, total = correct.copy(), np.zeros(len(correct), dtype=np.int64)
    fell = np.zeros(len(correct), dtype=bool)
    for spent in attacks:
        total = total + np.where(unbroken & spent.tried, spent.passes, 0)
        now = unbroken & spent.tried & spent.broken
        fell |= now
        unbroken = unbroken & ~now
    return _staircase(correct, fell, total, total[correct])


def _staircase(unbroken: Flags, fell: Flags, passes: Whole, all_passes: Whole) -> BudgetCurve:
    steps, falls = np.unique(passes[fell], return_counts=True)
    start = int(unbroken.sum())
    held = np.concatenate([[start], start - np.cumsum(falls)])
    end = int(all_passes.max()) if len(all_passes) else 0
    places = np.concatenate([[0], steps]).astype(np.int64)
    if len(steps) and steps[0] == 0:  # broken at no cost: the first step is the start
        places, held = places[1:], held[1:]
    return BudgetCurve(places, held / max(len(unbroken), 1), max(end, int(places[-1])))
