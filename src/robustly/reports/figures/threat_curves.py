"""Security curves under several threats: one small panel for each, with sizes in the threat's own unit."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustly.evidence.provenance import ThreatRecord
from robustly.evidence.summary import SecurityCurve
from robustly.reports.figures.charts import (
    MUTED,
    PERCENT_AXIS,
    ROBUST,
    RUN_COLOURS,
    Figure,
    Table,
    Words,
    band,
    figure,
    label,
    run_symbol,
    shortened,
    template_label,
)
from robustly.reports.figures.evaluation_figures import size_axis, size_column, size_text
from robustly.reports.figures.threat_rows import threat_title
from robustly.reports.formats import count, percent
from robustly.reports.run import RunEvidence, ThreatTest

HEIGHT, MOST_LABELS = 215, 4


@dataclass(frozen=True)
class Line:
    """The curve of one run under a threat; `index` is the number of its colour."""

    index: int
    name: str
    attack: str
    curve: SecurityCurve


def threat_curves(runs: Sequence[RunEvidence]) -> tuple[Figure, ...]:
    """One panel for each threat with a curve, by falling accuracy; none unless two threats have one.

    Args:
        runs: one run, whose curves have their bands; or several, with a line each.
    """
    panels: dict[str, list[Line]] = {}
    threats: dict[str, ThreatRecord] = {}
    for index, run in enumerate(runs):
        for test in _tests(run):
            if test.curve is not None:
                threats.setdefault(test.threat.text, test.threat)
                panels.setdefault(test.threat.text, []).append(Line(index, run.name, test.attack, test.curve))
    if len(panels) < 2:
        return ()
    alone, ordered = len(runs) == 1, sorted(panels, key=lambda text: -_accuracy(runs, text))
    return tuple(_panel(number, threats[text], panels[text], alone) for number, text in enumerate(ordered))


def _tests(run: RunEvidence) -> tuple[ThreatTest, ...]:
    if run.tests or run.evaluation is None:
        return run.tests
    return (ThreatTest.of(run.evaluation),)


def _accuracy(runs: Sequence[RunEvidence], text: str) -> float:
    """Mean accuracy of the runs under a threat; 0 without one."""
    unions = [run.union for run in runs if run.union is not None]
    shares = [one.robust.share for union in unions for one in union.threats if one.text == text]
    return sum(shares) / max(len(shares), 1)


def _panel(number: int, threat: ThreatRecord, lines: Sequence[Line], alone: bool) -> Figure:
    longest = max((line.curve for line in lines), key=lambda curve: max(curve.epsilon))
    ends = "; ".join(
        f"{'' if alone else f'{line.name} '}from {percent(line.curve.accuracy[0])} to "
        f"{percent(line.curve.accuracy[-1])} at {size_text(threat, line.curve.epsilon_text[-1])}"
        for line in lines
    )
    mark = {"type": "line", "x0": threat.limit, "x1": threat.limit, "yref": "paper", "y0": 0, "y1": 1}
    return figure(
        Words(
            f"threat-curve-{_letters(number)}",
            threat_title(threat.text),
            _caption(lines),
            f"Line chart. Accuracy falls {ends}.",
        ),
        [trace for line in lines for trace in _traces(threat, line, alone)],
        _table(threat, lines, alone),
        x={**size_axis(longest, threat, MOST_LABELS), "range": _range(longest), "ticklabeloverflow": "allow"},
        y={**PERCENT_AXIS, "range": [0, 1.02], "dtick": 0.25},
        layout={
            "shapes": [{**mark, "line": {"color": MUTED, "width": 1, "dash": "dot"}, "layer": "above"}],
            "showlegend": False,
        },
        height=HEIGHT,
    )


def _range(curve: SecurityCurve) -> list[float]:
    """Ends of the axis, with room for half of the last label, which plotly hides at the edge of a narrow panel."""
    low, high = min(curve.epsilon), max(curve.epsilon)
    span = high - low or 1.0
    return [low - 0.02 * span, high + 0.07 * span]


def _letters(number: int) -> str:
    """A number as letters, for the keys of figures: a to z, aa, ab, ..."""
    first, last = divmod(number, 26)
    return ("" if first == 0 else _letters(first - 1)) + chr(ord("a") + last)


def _caption(lines: Sequence[Line]) -> str:
    attacks = ", ".join(sorted({line.attack for line in lines}))
    numbers = sorted({line.curve.count for line in lines})
    return f"{attacks}; {' or '.join(map(count, numbers))} examples"


def _traces(threat: ThreatRecord, line: Line, alone: bool) -> list[object]:
    curve, colour = line.curve, ROBUST if alone else RUN_COLOURS[line.index % 8]
    extra = "" if alone else template_label(shortened(line.name, 30))
    ends = [f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in zip(curve.low, curve.high, strict=True)]
    drawn: dict[str, object] = {
        "type": "scatter",
        "x": curve.epsilon,
        "y": curve.accuracy,
        "text": [label(size_text(threat, text)) for text in curve.epsilon_text],
        "customdata": ends,
        "mode": "lines+markers",
        "line": {"color": colour, "width": 2.25},
        "marker": {"size": 5 if alone else 6, "symbol": "circle" if alone else run_symbol(line.index)},
        "hovertemplate": f"%{{text}}: %{{y:.1%}} %{{customdata}}<extra>{extra}</extra>",
    }
    return [band(curve.epsilon, curve.low, curve.high, colour, "attacked"), drawn] if alone else [drawn]


def _table(threat: ThreatRecord, lines: Sequence[Line], alone: bool) -> Table:
    rows = [
        (
            *(() if alone else (line.name,)),
            text,
            percent(share),
            f"[{100 * low:.1f}, {100 * high:.1f}]",
        )
        for line in lines
        for text, share, low, high in zip(
            line.curve.epsilon_text, line.curve.accuracy, line.curve.low, line.curve.high, strict=True
        )
    ]
    head = (size_column(threat), "Accuracy", "95 % interval (%)")
    return Table(head if alone else ("Run", *head), tuple(rows))
