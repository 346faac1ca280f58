"""Figures of one evaluation: security curve, accuracy by class, distances of the adversarial examples."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.provenance import ThreatRecord
from robustly.evidence.summary import ClassSummary, SecurityCurve
from robustly.reports.figures.budget_figure import accuracy_against_budget
from robustly.reports.figures.charts import (
    BROKEN,
    CERTIFIED,
    CLEAN,
    INK,
    MUTED,
    PERCENT_AXIS,
    ROBUST,
    Figure,
    Table,
    Words,
    axis_title,
    band,
    count_axis,
    figure,
    label,
    shortened,
)
from robustly.reports.formats import NO_VALUE, count, interval, percent, proportion
from robustly.statistics import Proportion

MOST_CLASSES = 30
"""Most classes in the figure; with more, it has the weakest only, and the table has all."""
BINS = 24
NORM_WORDS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


def evaluation_figures(evaluation: Summary, table: EvidenceTable | None) -> tuple[Figure, ...]:
    """All figures for which the evaluation has numbers."""
    curve, classes = evaluation.metrics.security_curve, evaluation.metrics.per_class
    found = [
        None if curve is None else security_curve(evaluation, curve),
        None if table is None else distances(evaluation, table),
        None if table is None else accuracy_against_budget(evaluation, table),
        by_class(classes) if classes else None,
    ]
    return tuple(each for each in found if each is not None)


def size_words(threat: ThreatRecord) -> str:
    """The size of a change under a threat: `L∞` for a norm, else the kind and its unit."""
    return f"{_kind(threat)}, {threat.unit}" if threat.norm is None else NORM_WORDS.get(threat.norm, threat.norm)


def size_text(threat: ThreatRecord, size: str) -> str:
    """A size of a change under a threat with its name or unit: "epsilon 8/255", "30 degrees"."""
    return f"epsilon {size}" if threat.norm is not None else f"{size} {threat.unit}"


def size_axis(curve: SecurityCurve, threat: ThreatRecord, most: int = 6) -> dict[str, object]:
    """An axis of allowed sizes with at most `most` labels and one at 0, in the notation of the threat's text."""
    span = max(curve.epsilon) - min(curve.epsilon) or 1.0
    shown: list[int] = []
    for i, epsilon in enumerate(curve.epsilon):
        if not shown or epsilon - curve.epsilon[shown[-1]] >= span / most * (1 - 1e-9):
            shown.append(i)
    return {
        "title": axis_title(_size_title(threat)),
        "tickvals": [curve.epsilon[i] for i in shown],
        "ticktext": [label(curve.epsilon_text[i]) for i in shown],
        "range": [min(curve.epsilon) - 0.02 * span, max(curve.epsilon) + 0.02 * span],
    }


def size_column(threat: ThreatRecord) -> str:
    """Heading of a column of sizes."""
    return "Epsilon" if threat.norm is not None else f"Size ({threat.unit})"


def _kind(threat: ThreatRecord) -> str:
    return threat.kind.replace("_", " ")


def _size_title(threat: ThreatRecord) -> str:
    return f"{_kind(threat)} ({threat.unit})" if threat.norm is None else f"epsilon ({size_words(threat)})"


def security_curve(evaluation: Summary, curve: SecurityCurve) -> Figure:
    """Accuracy against the allowed size of a change, with the evaluated size marked."""
    threat = evaluation.threat
    attack = evaluation.suite.title(evaluation.suite.curve or "attack")
    caption = (
        f"Accuracy under {attack} against the size of the allowed change. The band is the 95 % interval, the "
        f"diamond the worst case over all attacks at the evaluated {size_text(threat, threat.limit_text)}."
    )
    if curve.certified:
        caption += " Examples between the two lines are neither broken nor proved."
    line = {"type": "line", "x0": threat.limit, "x1": threat.limit, "yref": "paper", "y0": 0, "y1": 1}
    return figure(
        Words(
            "security-curve",
            "Accuracy against the strength of the attack",
            caption,
            f"Line chart. Accuracy falls from {percent(curve.accuracy[0])} at "
            f"{size_text(threat, curve.epsilon_text[0])} to {percent(curve.accuracy[-1])} at "
            f"{size_text(threat, curve.epsilon_text[-1])}.",
        ),
        [*_curve_lines(threat, curve, attack), _worst_case_mark(threat, evaluation.metrics.worst_case.robust)],
        Table((size_column(threat), "Under attack", "95 % interval (%)", "Proved"), tuple(_curve_rows(curve))),
        x=size_axis(curve, threat),
        y={**PERCENT_AXIS, "range": [0, 1.02], "title": axis_title("Accuracy")},
        layout={"shapes": [{**line, "line": {"color": MUTED, "width": 1, "dash": "dot"}, "layer": "below"}]},
    )


def _distance_words(threat: ThreatRecord) -> str:
    return f"size ({size_words(threat)})" if threat.norm is None else f"{size_words(threat)} distance"


def _curve_lines(threat: ThreatRecord, curve: SecurityCurve, attack: str) -> list[object]:
    """The accuracy under attack with its band, and the certified accuracy."""
    words = [label(size_text(threat, text)) for text in curve.epsilon_text]
    traces: list[object] = [
        band(curve.epsilon, curve.low, curve.high, ROBUST, "attacked"),
        {
            "type": "scatter",
            "x": curve.epsilon,
            "y": curve.accuracy,
            "text": words,
            "name": f"Under attack ({label(attack)})",
            "legendgroup": "attacked",
            "mode": "lines+markers",
            "line": {"color": ROBUST, "width": 2.5},
            "marker": {"size": 6},
            "hovertemplate": "%{text}: %{y:.1%} under attack<extra></extra>",
        },
    ]
    if curve.certified is not None:
        traces.append(
            {
                "type": "scatter",
                "x": curve.epsilon,
                "y": curve.certified,
                "text": words,
                "name": "Proved (certificate)",
                "mode": "lines",
                "line": {"color": CERTIFIED, "width": 2.5, "dash": "dash", "shape": "hv"},
                "hovertemplate": "%{text}: %{y:.1%} proved<extra></extra>",
            }
        )
    return traces


def _worst_case_mark(threat: ThreatRecord, worst: Proportion) -> object:
    """The worst case over all attacks at the evaluated size."""
    return {
        "type": "scatter",
        "x": [threat.limit],
        "y": [worst.share],
        "error_y": {
            "array": [worst.high - worst.share],
            "arrayminus": [worst.share - worst.low],
            "color": INK,
            "thickness": 1.5,
        },
        "text": [f"{label(size_text(threat, threat.limit_text))}: {proportion(worst)}"],
        "name": "Worst case over all attacks",
        "mode": "markers",
        "marker": {"size": 11, "symbol": "diamond", "color": INK},
        "hovertemplate": "evaluated %{text}<extra></extra>",
    }


def _curve_rows(curve: SecurityCurve) -> list[tuple[str, ...]]:
    """The numbers of the curve as text, one row for each epsilon."""
    proved = [NO_VALUE] * len(curve.epsilon) if not curve.certified else [percent(one) for one in curve.certified]
    intervals = [f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in zip(curve.low, curve.high, strict=True)]
    shares = [percent(one) for one in curve.accuracy]
    return list(zip(curve.epsilon_text, shares, intervals, proved, strict=True))


def by_class(classes: Sequence[ClassSummary]) -> Figure:
    """Clean and robust accuracy of each class; the caption names the weakest class."""
    weakest = sorted(classes, key=lambda one: one.robust.share)
    shown = list(classes) if len(classes) <= MOST_CLASSES else weakest[:MOST_CLASSES]
    places = list(range(len(shown)))  # not the names: two classes may share one
    traces = [
        {
            "type": "bar",
            "y": places,
            "x": [part.share for part in parts],
            "name": name,
            "orientation": "h",
            "marker": {"color": colour},
            "customdata": [[label(one.name), interval(part)] for one, part in zip(shown, parts, strict=True)],
            "error_x": {
                "array": [part.high - part.share for part in parts],
                "arrayminus": [part.share - part.low for part in parts],
                "color": INK,
                "thickness": 1,
                "width": 2,
            },
            "hovertemplate": f"%{{customdata[0]}}: %{{x:.1%}} %{{customdata[1]}} {name.lower()}<extra></extra>",
        }
        for name, colour, parts in [
            ("Clean", CLEAN, [one.clean for one in shown]),
            ("Robust", ROBUST, [one.robust for one in shown]),
        ]
    ]
    low, high = weakest[0], weakest[-1]
    some = "" if len(shown) == len(classes) else f" The {len(shown)} weakest of {len(classes)} classes are shown."
    return figure(
        Words(
            "by-class",
            "Accuracy by class",
            f"Weakest under attack: {low.name} ({percent(low.robust.share)}); strongest: {high.name} "
            f"({percent(high.robust.share)}). Whiskers are 95 % intervals; robust is the worst case over all "
            f"attacks.{some}",
            f"Bar chart of clean and robust accuracy for {len(shown)} classes. Robust accuracy lies between "
            f"{percent(low.robust.share)} ({low.name}) and {percent(high.robust.share)} ({high.name}).",
        ),
        traces,
        Table(
            ("Class", "Examples", "Clean", "Robust (worst case)"),
            tuple(
                (one.name, count(one.clean.count), proportion(one.clean), proportion(one.robust)) for one in classes
            ),
        ),
        x={**PERCENT_AXIS, "range": [0, 1.02], "dtick": 0.25, "title": axis_title("Accuracy")},
        y={
            "autorange": "reversed",
            "tickvals": places,
            "ticktext": [label(shortened(one.name, 18)) for one in shown],
            "ticksuffix": "  ",
            "showgrid": False,
            "zeroline": False,
        },
        layout={"barmode": "group", "bargap": 0.28, "bargroupgap": 0.05},
        height=110 + 40 * len(shown),
        wide=len(shown) > 12,
    )


def smallest_distances(table: EvidenceTable) -> NDArray[np.float64]:
    """Distance of the nearest adversarial picture of each broken example, over all attacks."""
    nearest: NDArray[np.float64] = np.full(len(table), np.inf)
    for name, columns in table.attacks.items():
        found = table.broken_by(name) & np.isfinite(columns.distance)
        nearest[found] = np.minimum(nearest[found], columns.distance[found])
    found_at_all: NDArray[np.float64] = nearest[np.isfinite(nearest)]
    return found_at_all


def distances(evaluation: Summary, table: EvidenceTable) -> Figure | None:
    """Distances of the nearest adversarial pictures; None if nearly all lie at the limit."""
    nearest, epsilon = smallest_distances(table), evaluation.threat.limit
    if len(nearest) < 5 or epsilon <= 0 or np.mean(nearest < 0.98 * epsilon) < 0.05:
        return None
    counts, edges = np.histogram(nearest, bins=BINS, range=(0.0, max(epsilon, float(nearest.max()))))
    ranges = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    middle = float(np.median(nearest))
    return figure(
        Words(
            "distances",
            "Size of the smallest change found",
            f"Distance of the nearest adversarial picture found for each of the {count(len(nearest))} broken "
            f"examples; at most {middle:.3g} for half of them. Attacks that do not search for the smallest change "
            "end near the limit, so true distances may be smaller.",
            f"Histogram of {len(nearest)} distances between 0 and {edges[-1]:.3g}, median {middle:.3g}.",
        ),
        [
            {
                "type": "bar",
                "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
                "y": counts.tolist(),
                "width": float(edges[1] - edges[0]) * 0.92,
                "marker": {"color": BROKEN},
                "customdata": ranges,
                "hovertemplate": "distance %{customdata}: %{y} examples<extra></extra>",
                "showlegend": False,
            }
        ],
        Table(("Distance", "Broken examples"), tuple(zip(ranges, map(str, counts.tolist()), strict=True))),
        x={"title": axis_title(_distance_words(evaluation.threat))},
        y=count_axis("Examples", int(counts.max())),
    )
