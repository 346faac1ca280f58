"""Comparison of several runs: differences between their tests, the best of each column, and joint figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from robustly.evidence import Summary
from robustly.reports.figures.certificate_figures import intervals_of_runs
from robustly.reports.figures.charts import (
    MUTED,
    PERCENT_AXIS,
    RUN_COLOURS,
    Figure,
    Table,
    Words,
    axis_title,
    figure,
    label,
    run_symbol,
    shortened,
    template_label,
)
from robustly.reports.figures.evaluation_figures import size_axis, size_column, size_text
from robustly.reports.figures.front import Point, clean_against_robust
from robustly.reports.figures.training_figures import epoch_axis
from robustly.reports.formats import NO_VALUE, percent
from robustly.reports.run import RunEvidence
from robustly.statistics import Proportion


class ShareInterval(Protocol):
    """A share in [0, 1] with the ends of its interval."""

    @property
    def share(self) -> float:
        """The share itself."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


S = TypeVar("S", bound=ShareInterval)


@dataclass(frozen=True)
class ComparedNumber(Generic[S]):
    """One number of the comparison; `best` in its column, `clearly` if no other interval overlaps."""

    value: S | None
    best: bool = False
    clearly: bool = False


@dataclass(frozen=True)
class Comparison:
    """Numbers of all runs, and the differences that make them incomparable, if any."""

    runs: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[ComparedNumber[Proportion], ...], ...]
    differences: tuple[str, ...]


def compare(runs: Sequence[RunEvidence]) -> Comparison:
    """Compare runs; those without an evaluation get empty rows."""
    evaluated = [run.evaluation for run in runs if run.evaluation is not None]
    apart = differences(evaluated)
    titles = {attack.name: attack.title for one in evaluated for attack in one.suite.attacks}
    certified = any(one.metrics.certified for one in evaluated)
    names = ["Clean", *titles.values(), "Worst case", *(["Certified"] if certified else [])]
    rows = [_row(run.evaluation, list(titles), certified) for run in runs]
    trusted = [run.evaluation is None or not run.evaluation.masking for run in runs]
    columns = [
        marked([row[i] for row in rows], trusted if i else [True] * len(rows), comparable=not apart)
        for i in range(len(names))
    ]
    cells = tuple(tuple(column[i] for column in columns) for i in range(len(runs)))
    return Comparison(tuple(run.name for run in runs), tuple(names), cells, apart)


def _row(evaluation: Summary | None, attacks: Sequence[str], certified: bool) -> list[Proportion | None]:
    if evaluation is None:
        return [None] * (len(attacks) + 2 + certified)
    metrics = evaluation.metrics
    own = {one.attack.name: one.numbers.robust for one in evaluation.outcomes if not one.state}
    row = [metrics.clean, *(own.get(name) for name in attacks), metrics.worst_case.robust]
    if certified:
        row.append(metrics.proved)
    return row


def marked(column: Sequence[S | None], trusted: Sequence[bool], comparable: bool) -> list[ComparedNumber[S]]:
    """Mark the best of a column; numbers under suspicion of masking are never marked.

    Args:
        column: the numbers; None where one is missing.
        trusted: whether each number may be best.
        comparable: whether the numbers of the column are comparable.
    """
    known = [part for part, sound in zip(column, trusted, strict=True) if part is not None and sound]
    if not comparable or len({part.share for part in known}) < 2:  # one number, or all equal
        return [ComparedNumber(part) for part in column]
    top = max(part.share for part in known)
    cells = []
    for part, sound in zip(column, trusted, strict=True):
        best = part is not None and sound and part.share == top
        others = [other for other in known if other is not part]
        cells.append(ComparedNumber(part, best, best and all(part.low > other.high for other in others if part)))
    return cells


def differences(evaluations: Sequence[Summary]) -> tuple[str, ...]:
    """Differences between the tests of runs that make their numbers incomparable, in words."""
    found = []
    for aspect, values in [
        ("threat models", [one.threat.text for one in evaluations]),
        ("data", [f"{one.data.source} {one.data.split or ''}".strip() for one in evaluations]),
        ("numbers of examples", [str(one.data.count) for one in evaluations]),
        ("attack suites", [f"{one.suite.name} ({one.suite.mode})" for one in evaluations]),
    ]:
        if len(set(values)) > 1:
            found.append(f"different {aspect}: {', '.join(sorted(set(values)))}")
    failed = [", ".join(one.suite.title(name) for name in one.failures) or "none" for one in evaluations]
    if len(set(failed)) > 1:
        found.append(f"different attacks that failed: {', '.join(sorted(set(failed)))}")
    hashes = {one.data.sha256 for one in evaluations}
    if len(hashes) > 1 and not found:
        found.append("different examples of the same data set (their hashes differ)")
    return tuple(found)


def comparison_figures(runs: Sequence[RunEvidence]) -> tuple[Figure, ...]:
    """Figures that show all runs together."""
    found = [
        clean_against_robust(_points(runs)),
        intervals_of_runs(runs),
        security_curves(runs),
        robust_by_epoch(runs),
    ]
    return tuple(each for each in found if each is not None)


def _points(runs: Sequence[RunEvidence]) -> list[Point]:
    """Clean accuracy and worst case of each run; points are ranked only if the tests were the same."""
    tested = [(i, run.name, run.evaluation) for i, run in enumerate(runs) if run.evaluation is not None]
    comparable = not differences([one for *_, one in tested])
    return [
        Point.of_shares(
            i, name, one.metrics.clean, one.metrics.worst_case.robust, ranked=comparable and not one.masking
        )
        for i, name, one in tested
    ]


def security_curves(runs: Sequence[RunEvidence]) -> Figure | None:
    """Security curves of all runs under the kind of threat of the first."""
    curves = [
        (i, run.name, run.evaluation, curve)
        for i, run in enumerate(runs)
        if run.evaluation is not None and (curve := run.evaluation.metrics.security_curve) is not None
    ]
    if not curves:
        return None
    threat = curves[0][2].threat
    curves = [entry for entry in curves if entry[2].threat.kind == threat.kind]
    longest = max((curve for *_, curve in curves), key=lambda curve: max(curve.epsilon))
    traces = [
        {
            "type": "scatter",
            "x": curve.epsilon,
            "y": curve.accuracy,
            "text": [label(size_text(threat, text)) for text in curve.epsilon_text],
            "name": label(shortened(name, 30)),
            "mode": "lines+markers",
            "line": {"color": RUN_COLOURS[i % 8], "width": 2.25},
            "marker": {"size": 7, "symbol": run_symbol(i)},
            "hovertemplate": "%{text}: %{y:.1%}<extra>" + template_label(name) + "</extra>",
        }
        for i, name, _, curve in curves
    ]
    rows = [
        (name, text, percent(accuracy))
        for _, name, _, curve in curves
        for text, accuracy in zip(curve.epsilon_text, curve.accuracy, strict=True)
    ]
    line = {"type": "line", "x0": threat.limit, "x1": threat.limit, "yref": "paper", "y0": 0, "y1": 1}
    attacks = ", ".join(sorted({one.suite.title(one.suite.curve or "attack") for _, _, one, _ in curves}))
    return figure(
        Words(
            "security-curves",
            "Accuracy against the strength of the attack",
            f"Accuracy under {attacks}; the dotted line is the evaluated {size_text(threat, threat.limit_text)}.",
            f"Line chart of accuracy against the allowed size for {len(curves)} runs.",
        ),
        traces,
        Table(("Run", size_column(threat), "Accuracy"), tuple(rows)),
        x=size_axis(longest, threat),
        y={**PERCENT_AXIS, "range": [0, 1.02], "title": axis_title("Accuracy")},
        layout={"shapes": [{**line, "line": {"color": MUTED, "width": 1, "dash": "dot"}, "layer": "below"}]},
    )


def robust_by_epoch(runs: Sequence[RunEvidence]) -> Figure | None:
    """Robust accuracy on the validation examples of all runs, by epoch."""
    column = "validation_robust_accuracy"
    trained = [
        (i, run.name, run.training.columns["epoch"], values)
        for i, run in enumerate(runs)
        if run.training is not None and (values := run.training.column(column)) is not None
    ]
    if not trained:
        return None
    traces = [
        {
            "type": "scatter",
            "x": epochs.tolist(),
            "y": values.tolist(),
            "name": label(shortened(name, 30)),
            "mode": "lines" if len(epochs) > 1 else "markers",
            "line": {"color": RUN_COLOURS[i % 8], "width": 2.25},
            "hovertemplate": "%{y:.1%}<extra>" + template_label(name) + "</extra>",
        }
        for i, name, epochs, values in trained
    ]
    rows = [
        (name, f"{epoch:g}", percent(float(value)) if np.isfinite(value) else NO_VALUE)
        for _, name, epochs, values in trained
        for epoch, value in zip(epochs, values, strict=True)
    ]
    return figure(
        Words(
            "robust-by-epoch",
            "Robust accuracy during training",
            "On the validation examples, under the attack used in validation.",
            f"Line chart of robust validation accuracy by epoch for {len(trained)} runs.",
        ),
        traces,
        Table(("Run", "Epoch", "Robust, validation"), tuple(rows)),
        x=epoch_axis([float(epoch) for _, _, epochs, _ in trained for epoch in epochs]),
        y={**PERCENT_AXIS, "title": axis_title("Accuracy")},
        layout={"hovermode": "x unified"},
    )
