"""Accuracy against budget: what an attack or a suite has broken after so many passes an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Spent:
    """What an attack did to each of N examples.

    Args:
        broken: whether the example is broken, by this attack or before it.
        tried: whether this attack saw it.
        passes: forward and backward passes that this attack spent on it; 0 where it did not try.
    """

    broken: Flags
    tried: Flags
    passes: Counts


@dataclass(frozen=True)
class BudgetCurve:
    """A falling staircase: from `passes[i]` passes an image on, the accuracy is `accuracy[i]`.

    Args:
        passes: ascending, from 0.
        accuracy: shares of all examples, in [0, 1].
        end: the most passes that any example got; the curve holds up to there.
    """

    passes: Counts
    accuracy: NDArray[np.float64]
    end: int

    def at(self, passes: int) -> float:
        """The accuracy after that many passes an image."""
        place = int(np.searchsorted(self.passes, passes, side="right")) - 1
        return float(self.accuracy[max(place, 0)])


def budget_curve(correct: Flags, spent: Spent) -> BudgetCurve:
    """Accuracy after b passes an image of one attack, among the examples that it found standing.

    An attack that does not stop at its first success reports what the whole run cost, so that its curve falls later
    than it might.

    Args:
        right: which examples are classified rightly without any attack.
        spent: the attack's columns.
    """
    unbroken = correct & ~(spent.broken & ~spent.tried)
    fell = unbroken & spent.broken & spent.tried
    return _staircase(unbroken, fell, spent.passes, spent.passes[spent.tried & unbroken])


def suite_curve(correct: Flags, attacks: Sequence[Spent]) -> BudgetCurve:
    """Accuracy after b passes an image of all attacks in their order, each spared what an earlier one broke."""
    unbroken, total = correct.copy(), np.zeros(len(correct), dtype=np.int64)
    fell = np.zeros(len(correct), dtype=bool)
    for spent in attacks:
        total = total + np.where(unbroken & spent.tried, spent.passes, 0)
        now = unbroken & spent.tried & spent.broken
        fell |= now
        unbroken = unbroken & ~now
    return _staircase(correct, fell, total, total[correct])


def spent_from(table: Mapping[str, NDArray[np.generic]], name: str) -> Spent:
    """The columns of an attack in an evidence table; tables without `NAME.tried` tried what they spent passes on.

    Raises:
        KeyError: a column is missing.
    """
    passes = table[f"{name}.forwards"].astype(np.int64) + table[f"{name}.backwards"].astype(np.int64)
    tried = table[f"{name}.tried"].astype(bool) if f"{name}.tried" in table else passes > 0
    return Spent(table[f"{name}.broken"].astype(bool), tried, np.where(tried, passes, 0))


def _staircase(unbroken: Flags, fell: Flags, passes: Counts, all_passes: Counts) -> BudgetCurve:
    steps, falls = np.unique(passes[fell], return_counts=True)
    start = int(unbroken.sum())
    held = np.concatenate([[start], start - np.cumsum(falls)])
    end = int(all_passes.max()) if len(all_passes) else 0
    places = np.concatenate([[0], steps]).astype(np.int64)
    if len(steps) and steps[0] == 0:  # broken at no cost: the first step is the start
        places, held = places[1:], held[1:]
    return BudgetCurve(places, held / max(len(unbroken), 1), max(end, int(places[-1])))
