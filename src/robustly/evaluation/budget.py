"""Accuracy against budget, from the evidence table alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from robustly.budgets import BudgetCurve, budget_curve, spent_from, suite_curve

BUDGETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def budget_curves(table: Mapping[str, Tensor], attacks: Sequence[str]) -> dict[str, Any]:
    """Accuracy after b forward and backward passes an image, as plain values.

    Args:
        table: the evidence table: `NAME.broken`, `NAME.tried`, `NAME.forwards`, `NAME.backwards` of each attack,
            `clean_prediction` and `label`.
        attacks: their names, in the order of the suite.

    Returns:
        `attacks` (by name) and `suite` (one after the other, survivors only), each with the staircase `passes`,
        `accuracy`, its `end`, and the accuracy `at` round budgets up to it.
    """
    plain = {name: np.asarray(values.cpu().numpy()) for name, values in table.items()}
    correct = plain["clean_prediction"] == plain["label"]
    spent = {name: spent_from(plain, name) for name in attacks}
    return {
        "attacks": {name: _plain(budget_curve(correct, one)) for name, one in spent.items()},
        "suite": _plain(suite_curve(correct, list(spent.values()))),
    }


def _plain(curve: BudgetCurve) -> dict[str, Any]:
    return {
        "passes": curve.passes.tolist(),
        "accuracy": curve.accuracy.tolist(),
        "end": curve.end,
        "at": {str(budget): curve.at(budget) for budget in BUDGETS if budget <= curve.end},
    }
