"""Figure of accuracy against the budget, from the evidence table."""

from collections.abc import Sequence

import numpy as np

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.budgets import BUDGETS, BudgetCurve, budget_curve, spent_by, suite_curve
from robustly.reports.figures.charts import (
    INK,
    PERCENT_AXIS,
    RUN_COLOURS,
    Figure,
    Table,
    Words,
    axis_title,
    figure,
    label,
    shortened,
    template_label,
)
from robustly.reports.formats import NO_VALUE, count, percent

MOST_LINES = 6
"""Most attacks with their own lines; with more, only the whole suite is drawn."""
_POINTS = 300


def accuracy_against_budget(evaluation: Summary, table: EvidenceTable) -> Figure | None:
    """Accuracy against the passes spent; None if no attack ran."""
    spent_by_title = [
        (outcome.attack.title, spent_by(columns))
        for outcome in evaluation.outcomes
        if not outcome.state
        and (columns := table.attacks.get(outcome.attack.name)) is not None
        and columns.tried.any()
    ]
    if not spent_by_title:
        return None
    whole = suite_curve(table.correct, [spent for _, spent in spent_by_title])
    lines: list[tuple[str, BudgetCurve]] = []
    if evaluation.suite.mode == "every" and 1 < len(spent_by_title) <= MOST_LINES:
        lines = [(title, budget_curve(table.correct, spent)) for title, spent in spent_by_title]
    name = "All attacks in their order" if len(spent_by_title) > 1 else spent_by_title[0][0]
    traces = [_line(name, whole, INK, 4.0)]
    traces += [_line(title, curve, RUN_COLOURS[i % 8], 2.0) for i, (title, curve) in enumerate(lines)]
    late = whole.at(whole.end // 2) - whole.at(whole.end)
    return figure(
        Words(
            "budget",
            "Accuracy against the work of the attacks",
            "Accuracy after a number of passes through the network for each picture (a forward and a backward "
            f"pass count one each). {_late_sentence(late)}",
            f"Falling line from {percent(whole.at(0))} to {percent(whole.at(whole.end))} after {whole.end} passes.",
        ),
        traces,
        _table([(name, whole), *lines]),
        x={
            "title": axis_title("Passes for each picture (logarithmic)"),
            "type": "log",
            "dtick": 1,
            "tickformat": ",d",
        },
        y={**PERCENT_AXIS, "range": [0, 1.02], "title": axis_title("Accuracy")},
        layout={"showlegend": bool(lines)},
    )


def _late_sentence(late: float) -> str:
    """A sentence on the share of examples that the second half of the work broke."""
    if late > 0.005:
        return (
            f"The second half of the work broke another {percent(late)} of the examples: with more work, accuracy "
            "may fall further."
        )
    return (
        f"The second half of the work broke {percent(late)} of the examples: more work "
        "of the same kind would change little."
    )


def _line(title: str, curve: BudgetCurve, colour: str, width: float) -> object:
    grid = np.unique(np.geomspace(1, max(curve.end, 2), _POINTS).round().astype(int))
    return {
        "type": "scatter",
        "x": grid.tolist(),
        "y": [curve.at(int(passes)) for passes in grid],
        "name": label(shortened(title, 34)),
        "mode": "lines",
        "line": {"color": colour, "width": width, "shape": "hv"},
        "hovertemplate": f"%{{x}} passes: %{{y:.1%}}<extra>{template_label(shortened(title, 34))}</extra>",
    }


def _table(curves: Sequence[tuple[str, BudgetCurve]]) -> Table:
    end = max(curve.end for _, curve in curves)
    budgets = sorted({*(budget for budget in BUDGETS if budget < end), end})
    rows = [
        (count(budget), *(percent(curve.at(budget)) if budget <= curve.end else NO_VALUE for _, curve in curves))
        for budget in budgets
    ]
    return Table(("Passes for each picture", *(title for title, _ in curves)), tuple(rows))
