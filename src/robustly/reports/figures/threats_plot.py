"""Results under several threats as a picture: a dot with its interval for each, and the security curves; SVG."""

from collections.abc import Sequence

from robustly.evidence.unions import ThreatUnion
from robustly.reports.figures.charts import shortened
from robustly.reports.figures.drawing import Attributes, hover, line, shape, text
from robustly.reports.figures.result_plot import CLEAN, ROBUST, WIDTH, Panel, Plot, curve_panel
from robustly.reports.figures.threat_rows import ThreatRow, threat_rows, threat_title, wrapped
from robustly.reports.formats import count, interval, percent
from robustly.reports.run import ThreatTest

LEFT, RIGHT, TOP, ROW, RADIUS = 190.0, 62.0, 34.0, 30.0, 4.5
MOST_LETTERS, CURVE_HEIGHT = 26, 290.0


def threats_plot(name: str, union: ThreatUnion, tests: Sequence[ThreatTest] = ()) -> Plot:
    """A row for each threat with a dot and its 95 % interval, and a panel for each security curve.

    Args:
        name: name of the run or the model.
        union: the accuracies.
        tests: the evaluations behind them, one for each threat.
    """
    dots = _dots(union, tests)
    worst = {one.text: one.robust for one in union.threats}
    curves = [
        curve_panel(one.threat, worst[one.threat.text], one.curve, CURVE_HEIGHT, threat_title(one.threat.text))
        for one in sorted(tests, key=lambda test: -worst[test.threat.text].share)
        if one.curve is not None
    ]
    images = f"{count(union.clean.count)} image{'' if union.clean.count == 1 else 's'}"
    title = f"{name}, {len(union.threats)} threats, {images}"
    return Plot(shortened(title, 100), (dots, *curves), columns=2 if len(curves) < 4 else 3)


def _dots(union: ThreatUnion, tests: Sequence[ThreatTest]) -> Panel:
    rows = threat_rows(union, tests)
    bottom = TOP + ROW * len(rows)
    inside = text("Accuracy by threat", 14, 18, {"font-weight": "600"}) + _grid(bottom)
    clean = _x(union.clean.share)
    inside += line((clean, TOP), (clean, bottom), {"stroke-dasharray": "3 3", "stroke-opacity": "0.6"})
    inside += "".join(_row(row, TOP + ROW * (index + 0.5)) for index, row in enumerate(rows))
    words = "; ".join(f"{row.name} {percent(row.share)}" for row in rows)
    return Panel(inside, bottom + 40, f"Dot chart with 95 % intervals. {words}.")


def _grid(bottom: float) -> str:
    drawn = ""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _x(share)
        drawn += line((x, TOP), (x, bottom), {"stroke-opacity": "0.15"})
        style: Attributes = {"text-anchor": "middle", "opacity": "0.75", "font-size": 11}
        drawn += text(f"{100 * share:.0f}", x, bottom + 16, style)
    return drawn + text("%", _x(1) + 16, bottom + 16, {"opacity": "0.75", "font-size": 11})


def _row(row: ThreatRow, middle: float) -> str:
    """A row around a height: its name on one or two lines, the interval, the dot, and the number."""
    strong = row.kind == "union"
    lines = wrapped(row.name, MOST_LETTERS)
    style = {"text-anchor": "end", "font-weight": "600" if strong else "400", "font-size": 12.0}
    said = hover(f"{row.name}: {percent(row.share)} {interval(row)}")
    names = "".join(
        text(part, LEFT - 10, middle + 4 + 13 * (index - (len(lines) - 1) / 2), style)
        for index, part in enumerate(lines)
    )
    colour = CLEAN if row.kind == "clean" else ROBUST
    hollow = row.kind == "mean"
    drawn = _interval(row, middle, {"stroke": colour, "stroke-width": "2"}, RADIUS if hollow else 0.0)
    filled = {"fill": "none", "stroke": colour, "stroke-width": "2"} if hollow else {"fill": colour}
    drawn += shape("circle", {"cx": _x(row.share), "cy": middle, "r": RADIUS, **filled})
    place = {"text-anchor": "end", "font-weight": "600" if strong else "400"}
    number = text(percent(row.share), WIDTH - 8, middle + 4, place)
    return shape("g", {"data-kind": row.kind}, said + names + drawn + number)


def _interval(row: ThreatRow, middle: float, style: Attributes, gap: float) -> str:
    """The interval on both sides of the dot, which begins `gap` pixels from its centre."""
    centre = _x(row.share)
    ends = [(_x(row.low), centre - gap), (centre + gap, _x(row.high))]
    return "".join(line((start, middle), (end, middle), style) for start, end in ends if start < end)


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)
