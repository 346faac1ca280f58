"""Figures of certificates: the band between proof and attack, an interval for each image, deciding methods."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.certified_numbers import CertificateSummary
from robustly.evidence.metrics import MODEL
from robustly.evidence.schema import Double
from robustly.reports.figures.charts import (
    BROKEN,
    CERTIFIED,
    CLEAN,
    LEGEND,
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
from robustly.reports.figures.evaluation_figures import size_column, size_text, size_words
from robustly.reports.formats import NO_VALUE, count, duration, percent
from robustly.reports.run import RunEvidence

MOST_SIZES, MOST_LINES, TABLE_SIZES = 200, 400, 11
_LEGEND = {**LEGEND, "traceorder": "normal"}  # plotly reverses the entries of stacked bars


@dataclass(frozen=True)
class Intervals:
    """Bounds of the distance to the nearest error, for each example, in the threat's unit.

    Args:
        low: proved: no change up to this size, itself included, alters the label; 0 without a proof, `(N,)`.
        high: size of the nearest error found; 0 where the example is misclassified without a change, inf where no
            error was found, `(N,)`.
        limit: size of the evaluated threat.
    """

    low: Double
    high: Double
    limit: float

    @property
    def searched(self) -> float:
        """Largest size up to which errors were searched for: the limit, or that of the largest error found."""
        return max(self.limit, float(np.max(self.high, initial=0.0, where=np.isfinite(self.high))))

    @property
    def top(self) -> float:
        """Largest size to draw."""
        return max(self.searched, float(self.low.max(initial=0.0))) * 1.05 or 1.0

    def at(self, size: float) -> tuple[float, float]:
        """Shares of the examples that are proved up to a size, and without an error up to it."""
        proved = (self.low >= size) & (self.high > 0)
        return float(proved.mean()), float((self.high > size).mean())


def intervals(evaluation: Summary, table: EvidenceTable) -> Intervals | None:
    """The bounds of each example; None without a certificate of the model itself."""
    names = [name for name, terms in evaluation.terms.items() if terms.certifies == MODEL]
    if not names:
        return None
    low, high = np.zeros(len(table)), np.where(table.correct, np.inf, 0.0)
    label_of, limit = table.examples.label, evaluation.threat.limit
    for attack in table.attacks.values():
        high = np.fmin(high, attack.distance.astype(np.float64))
        high = np.where(attack.broken & attack.tried, np.fmin(high, limit), high)
    if table.curve is not None:
        high = np.fmin(high, table.curve.distance.astype(np.float64))
    for name in names:
        columns = table.certificates[name]
        proved = np.where(columns.prediction == label_of, columns.radius, 0.0)
        low = np.maximum(low, np.where(columns.verified, np.maximum(proved, limit), proved))
        high = np.where(columns.falsified, np.fmin(high, limit), high)
    return Intervals(low, high, limit)


def certificate_figures(evaluation: Summary, table: EvidenceTable | None) -> tuple[Figure, ...]:
    """All figures of certificates for which there are numbers."""
    found = None if table is None else intervals(evaluation, table)
    drawn = [] if found is None else [band_of_sizes(evaluation, found), line_of_each(evaluation, found)]
    return (*drawn, *(one for one in [stages(evaluation.metrics.certificates)] if one is not None))


def band_of_sizes(evaluation: Summary, found: Intervals) -> Figure:
    """Certified and attacked accuracy against the size of the change; between them, examples are undecided."""
    threat = evaluation.threat
    sizes = _sizes(found)
    low, high = (list(shares) for shares in zip(*(found.at(size) for size in sizes), strict=True))
    searched = sum(size <= found.searched for size in sizes)
    here = found.at(found.limit)
    line = {"type": "line", "x0": found.limit, "x1": found.limit, "yref": "paper", "y0": 0, "y1": 1}
    step = {"type": "scatter", "mode": "lines"}
    traces: list[object] = [
        band(sizes[:searched], low[:searched], high[:searched], ROBUST, "undecided"),
        {
            **step,
            "x": sizes[:searched],
            "y": high[:searched],
            "name": "No error found (attacked)",
            "line": {"color": ROBUST, "width": 2.5},
            "hovertemplate": "size %{x:.4g}: %{y:.1%} without an error found<extra></extra>",
        },
        {
            **step,
            "x": sizes,
            "y": low,
            "name": "Proved (certified)",
            "line": {"color": CERTIFIED, "width": 2.5},
            "hovertemplate": "size %{x:.4g}: %{y:.1%} proved<extra></extra>",
        },
    ]
    shown = np.linspace(0, sizes[-1], TABLE_SIZES)
    rows = [_row(float(size), found) for size in shown]
    return figure(
        Words(
            "certified-band",
            "Proved and attacked accuracy",
            f"At {size_text(threat, threat.limit_text)} (dotted), {percent(here[0])} of the examples are proved, "
            f"and {percent(here[1])} have no error found. The shaded ones are undecided. Attacks that do not "
            "search for the smallest change end near the evaluated size.",
            f"Two falling lines against the size of the change: proved, from {percent(low[0])} to "
            f"{percent(low[-1])}; without an error found, from {percent(high[0])} to "
            f"{percent(high[searched - 1])}.",
        ),
        traces,
        Table((size_column(threat), "Proved", "No error found", "Undecided"), tuple(rows)),
        x={"title": axis_title(size_words(threat)), "range": [0, sizes[-1] * 1.02]},
        y={**PERCENT_AXIS, "range": [0, 1.02], "title": axis_title("Examples")},
        layout={"shapes": [{**line, "line": {"color": MUTED, "width": 1, "dash": "dot"}, "layer": "below"}]},
    )


def line_of_each(evaluation: Summary, found: Intervals) -> Figure:
    """A vertical line for each image from its certified radius to its nearest error, sorted."""
    threat, total = evaluation.threat, len(found.low)
    ends = np.where(np.isfinite(found.high), found.high, np.maximum(found.searched, found.low))
    order = np.lexsort((-ends, -found.low))
    places = np.unique(np.linspace(0, total - 1, min(total, MOST_LINES)).round().astype(np.int64))
    rows = order[places]
    low, high, broken = found.low[rows], ends[rows], np.isfinite(found.high[rows])
    x = places + 1
    parts = [
        ("Proved", CERTIFIED, x, np.zeros(len(x)), low, low > 0),
        ("Undecided", ROBUST, x, low, high, high > low),
    ]
    width = 3.0 if len(x) <= 120 else 1.5
    traces: list[object] = [
        {
            "type": "scatter",
            "x": [value for one in x[there] for value in (int(one), int(one), None)],
            "y": [v for a, b in zip(begin[there], end[there], strict=True) for v in (float(a), float(b), None)],
            "name": name,
            "mode": "lines",
            "line": {"color": colour, "width": width},
            "hoverinfo": "skip",
        }
        for name, colour, x, begin, end, there in parts
    ]
    traces.append(
        {
            "type": "scatter",
            "x": x[broken].tolist(),
            "y": high[broken].tolist(),
            "name": "Nearest error found",
            "mode": "markers",
            "marker": {"color": BROKEN, "size": 4},
            "hovertemplate": "image %{x} of the order: nearest error at %{y:.4g}<extra></extra>",
        }
    )
    some = "" if len(rows) == total else f" {len(rows)} of {count(total)} are drawn, evenly from the order."
    decided = int(((found.low >= found.limit) | (found.high <= found.limit)).sum())
    table = tuple(
        (str(int(place)), f"{a:.4g}", f"{b:.4g}" if has else "none found")
        for place, a, b, has in zip(x, low, found.high[rows], broken, strict=True)
    )
    line = {"type": "line", "y0": found.limit, "y1": found.limit, "xref": "paper", "x0": 0, "x1": 1}
    return figure(
        Words(
            "interval-of-each-image",
            "The interval of each image",
            "One line for each image, sorted: green up to the proved radius, blue up to the nearest error found, "
            f"or to the largest size that was searched. {count(decided)} of {count(total)} are decided at the "
            f"evaluated size (dotted).{some}",
            f"{len(rows)} vertical lines, one for each image, from the certified radius to the nearest error.",
        ),
        traces,
        Table(("Place in the order", "Proved radius", "Nearest error"), table),
        x={"title": axis_title("Images, sorted"), "range": [0, total + 1], "showgrid": False},
        y={"title": axis_title(size_words(threat)), "range": [0, found.top]},
        layout={"shapes": [{**line, "line": {"color": MUTED, "width": 1, "dash": "dot"}}]},
    )


def stages(certificates: Sequence[CertificateSummary]) -> Figure | None:
    """The examples by the method that decided them, or was the last to try; None if no certificate records it."""
    entries = [(one.name, stage, numbers) for one in certificates for stage, numbers in one.stages.items()]
    if not entries:
        return None
    several = len({name for name, _, _ in entries}) > 1
    titles = [f"{name}: {stage}" if several else stage for name, stage, _ in entries]
    places = list(range(len(entries)))
    kinds = [
        ("Verified", CERTIFIED, [one.verified for *_, one in entries]),
        ("Counterexample", BROKEN, [one.falsified for *_, one in entries]),
        ("Open", MUTED, [one.count - one.verified - one.falsified for *_, one in entries]),
    ]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "y": places,
            "x": numbers,
            "name": name,
            "marker": {"color": colour},
            "customdata": [label(title) for title in titles],
            "hovertemplate": f"%{{customdata}}: %{{x}} {name.lower()}<extra></extra>",
        }
        for name, colour, numbers in kinds
        if any(numbers)
    ]
    most = max(entries, key=lambda entry: entry[2].count)
    rows = [
        (
            title,
            count(one.count),
            count(one.verified),
            count(one.falsified),
            count(one.count - one.verified - one.falsified),
            count(one.work),
            duration(one.seconds),
        )
        for title, (*_, one) in zip(titles, entries, strict=True)
    ]
    return figure(
        Words(
            "stages",
            "Deciding methods",
            "Examples by the method that decided them, or was the last one tried, from cheap to costly. Times are "
            "stated, not audited.",
            f"Stacked bar chart of {len(entries)} methods; {most[1]} has the most examples, {most[2].count}.",
        ),
        traces,
        Table(("Method", "Examples", "Verified", "Counterexample", "Open", "Work", "Time"), tuple(rows)),
        x=count_axis("Examples", most[2].count),
        y={
            "autorange": "reversed",
            "tickvals": places,
            "ticktext": [label(shortened(title, 24)) for title in titles],
            "ticksuffix": "  ",
            "showgrid": False,
            "zeroline": False,
        },
        layout={"barmode": "stack", "bargap": 0.3, "legend": _LEGEND},
        height=max(220, 120 + 36 * len(entries)),
    )


def intervals_of_runs(runs: Sequence[RunEvidence]) -> Figure | None:
    """The examples of each run as proved, undecided, broken and misclassified; None without a certificate."""
    tested = [(run.name, run.evaluation) for run in runs if run.evaluation is not None]
    if not any(one.metrics.proved for _, one in tested):
        return None
    shares = [_outcomes(one) for _, one in tested]
    kinds = [("Proved", CERTIFIED), ("Undecided", ROBUST), ("Broken", BROKEN), ("Misclassified", CLEAN)]
    places = list(range(len(tested)))
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "y": places,
            "x": [one[i] for one in shares],
            "name": name,
            "marker": {"color": colour},
            "customdata": [label(run) for run, _ in tested],
            "hovertemplate": f"%{{customdata}}: %{{x:.1%}} {name.lower()}<extra></extra>",
        }
        for i, (name, colour) in enumerate(kinds)
    ]
    rows = tuple((name, *map(percent, parts)) for (name, _), parts in zip(tested, shares, strict=True))
    return figure(
        Words(
            "intervals",
            "From proved to attacked",
            "Robust accuracy of each run lies between the green part and the green and blue parts together. A run "
            "without a certificate has no green part.",
            f"Stacked bar chart of the outcomes of the examples for {len(tested)} runs.",
        ),
        traces,
        Table(("Run", *(name for name, _ in kinds)), rows),
        x={**PERCENT_AXIS, "range": [0, 1], "title": axis_title("Examples")},
        y={
            "autorange": "reversed",
            "tickvals": places,
            "ticktext": [label(shortened(name, 24)) for name, _ in tested],
            "ticksuffix": "  ",
            "showgrid": False,
            "zeroline": False,
        },
        layout={"barmode": "stack", "bargap": 0.3, "legend": _LEGEND},
        height=max(220, 120 + 36 * len(tested)),
    )


def _outcomes(evaluation: Summary) -> tuple[float, float, float, float]:
    """Shares of the examples that are proved, undecided, broken, and misclassified without a change."""
    metrics = evaluation.metrics
    proved = 0.0 if metrics.proved is None else metrics.proved.share
    attacked, clean = metrics.attacked.share, metrics.clean.share
    return proved, max(attacked - proved, 0.0), max(clean - attacked, 0.0), 1 - clean


def _row(size: float, found: Intervals) -> tuple[str, ...]:
    """A row of the table of sizes; nothing is stated of errors beyond the largest size that was searched."""
    low, high = found.at(size)
    if size > found.searched:
        return f"{size:.4g}", percent(low), NO_VALUE, NO_VALUE
    return f"{size:.4g}", percent(low), percent(high), percent(max(high - low, 0.0))


def _sizes(found: Intervals) -> list[float]:
    """Sizes at which a share changes, twice each, so that the lines are steps; evenly chosen ones of too many."""
    top = found.top
    low, high = (np.unique(one[np.isfinite(one) & (one > 0) & (one < top)]) for one in (found.low, found.high))
    every = np.unique(np.concatenate([low, np.nextafter(low, np.inf), high, np.nextafter(high, -np.inf)]))
    places = np.linspace(0, len(every) - 1, min(len(every), 2 * MOST_SIZES)).round().astype(np.int64)
    ends = [0.0, np.nextafter(found.limit, 0), found.limit, found.searched, top]
    return [float(size) for size in np.unique(np.concatenate([every[np.unique(places)], ends]))]
