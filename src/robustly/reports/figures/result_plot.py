"""A result as a picture: accuracy by attack, and the security curve; SVG, so that no library draws it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustly.evidence import Summary
from robustly.evidence.provenance import ThreatRecord
from robustly.evidence.summary import SecurityCurve
from robustly.files import write_text
from robustly.reports.figures.charts import shortened
from robustly.reports.figures.drawing import hover, line, picture, points, shape, text
from robustly.reports.figures.evaluation_figures import size_text, size_words
from robustly.reports.formats import percent, proportion
from robustly.reports.run import ReportError
from robustly.statistics import Proportion

CLEAN, ROBUST, CERTIFIED = "#84909f", "#2f80d8", "#189b76"
"""Colours that are readable on white and on black; text has the colour of the page around it."""
WIDTH, LEFT, RIGHT, TOP, ROW = 460.0, 196.0, 66.0, 34.0, 26.0
_PLOT = (52.0, 436.0, 60.0)
"""Left, right and upper edge of the curve."""
_ROW_STYLE = "display: flex; flex-wrap: wrap; align-items: flex-start; gap: 8px 24px; color: inherit;"
_STYLE = (
    "<style>svg{color:#151a22;background:#fff}@media(prefers-color-scheme:dark){svg{color:#e7ebf1;background:#161b22}}"
    "</style>"
)


@dataclass(frozen=True)
class Panel:
    """One part of a picture, `WIDTH` wide.

    Args:
        inside: shapes of SVG.
        height: its height, in pixels.
        words: description for screen readers.
    """

    inside: str
    height: float
    words: str


@dataclass(frozen=True, repr=False)
class Plot:
    """A figure that notebooks show, in the colours of the page around it.

    Args:
        title: the text above the panels in a file.
        panels: the parts, side by side where there is room.
        columns: most panels side by side in a file.
    """

    title: str
    panels: tuple[Panel, ...]
    columns: int = 2

    def __repr__(self) -> str:
        return f"Plot: {self.title} (shown in notebooks; .save('plot.svg') writes it)"

    def _repr_html_(self) -> str:
        drawn = [picture(one.inside, WIDTH, one.height, one.words) for one in self.panels]
        return f'<div style="{_ROW_STYLE}">{"".join(drawn)}</div>'

    def _repr_svg_(self) -> str:
        return self.svg

    @property
    def svg(self) -> str:
        """The whole figure as one SVG document, which is light or dark as its reader prefers."""
        moved, top, width = [], 30.0, min(self.columns, len(self.panels)) * WIDTH
        for first in range(0, len(self.panels), self.columns):
            row = self.panels[first : first + self.columns]
            for index, one in enumerate(row):
                moved.append(shape("g", {"transform": f"translate({index * WIDTH:g} {top:g})"}, one.inside))
            top += max(one.height for one in row)
        inside = _STYLE + text(self.title, 14, 22, {"font-weight": "600", "font-size": 14}) + "".join(moved)
        words = " ".join(one.words for one in self.panels)
        return picture(inside, width, top, words, colour="")  # the style sheet sets it

    def save(self, path: str | Path) -> Path:
        """Write the figure as `.svg`, or as a page `.html`, and return the path; missing folders are created.

        Raises:
            ReportError: another suffix.
            OSError: the file cannot be written.
        """
        file = Path(path)
        if file.suffix.lower() not in (".svg", ".html"):
            raise ReportError(f"a plot is saved as .svg or .html, got {file.name!r}.")
        file.parent.mkdir(parents=True, exist_ok=True)
        head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        write_text(file, self.svg if file.suffix.lower() == ".svg" else f"{head}<body>{self.svg}</body>")
        return file


def result_plot(evaluation: Summary) -> Plot:
    """Accuracy by attack with 95 % intervals and, if the evaluation has it, the security curve."""
    curve = evaluation.metrics.security_curve
    bars = _bars(evaluation)
    worst, height = evaluation.metrics.worst_case.robust, max(bars.height, 290.0)
    panels = (bars,) if curve is None else (bars, curve_panel(evaluation.threat, worst, curve, height))
    named = evaluation.run or evaluation.model.name
    return Plot(shortened(f"{named}, {evaluation.threat.text}, {evaluation.data.source}", 100), panels)


def _bars(evaluation: Summary) -> Panel:
    """A bar for each attack, the clean accuracy first, worst case and certified accuracy last."""
    metrics, worst = evaluation.metrics, evaluation.metrics.worst_case.robust
    rows: list[tuple[str, Proportion | None, str, str]] = [("No attack (clean)", metrics.clean, CLEAN, "")]
    for outcome in evaluation.outcomes:
        share = None if outcome.state else outcome.numbers.robust
        rows.append((outcome.attack.title, share, ROBUST, outcome.state))
    rows.append(("Worst case", worst, ROBUST, ""))
    if metrics.proved is not None:
        rows.append(("Certified", metrics.proved, CERTIFIED, ""))
    bottom = TOP + ROW * len(rows)
    inside = text("Accuracy by attack", 14, 18, {"font-weight": "600"}) + _grid_of_bars(bottom)
    for index, (name, share, colour, state) in enumerate(rows):
        strong = name in ("Worst case", "Certified") and index > len(evaluation.outcomes)
        inside += _bar(name, share, colour, state, TOP + ROW * index, strong)
    words = f"Bar chart. Clean accuracy {percent(metrics.clean.share)}, worst case {percent(worst.share)}."
    return Panel(inside, bottom + 28, words)


def _grid_of_bars(bottom: float) -> str:
    drawn = ""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _bar_x(share)
        drawn += line((x, TOP), (x, bottom), {"stroke-opacity": "0.15"})
        drawn += text(
            f"{100 * share:.0f}", x, bottom + 16, {"text-anchor": "middle", "opacity": "0.75", "font-size": 11}
        )
    return drawn + text("%", _bar_x(1) + 16, bottom + 16, {"opacity": "0.75", "font-size": 11})


def _bar(name: str, share: Proportion | None, colour: str, state: str, top: float, strong: bool) -> str:
    middle = top + ROW / 2
    weight = "600" if strong else "400"
    label = text(shortened(name, 26), LEFT - 8, middle + 4, {"text-anchor": "end", "font-weight": weight})
    if share is None:
        return label + text(state, LEFT + 6, middle + 4, {"opacity": "0.75"})
    width, words = _bar_x(share.share) - LEFT, hover(f"{name}: {proportion(share)}")
    drawn = shape(
        "rect", {"x": LEFT, "y": top + 5, "width": width, "height": ROW - 10, "fill": colour, "rx": 2}, words
    )
    drawn += line((_bar_x(share.low), middle), (_bar_x(share.high), middle), {"stroke-width": "1.5"})
    for end in (share.low, share.high):
        drawn += line((_bar_x(end), middle - 4), (_bar_x(end), middle + 4), {"stroke-width": "1.5"})
    return label + drawn + text(percent(share.share), _bar_x(share.high) + 7, middle + 4, {"font-weight": weight})


def _bar_x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


@dataclass(frozen=True)
class _Frame:
    """Places of a curve's points; sizes from 0 to `largest`, shares from 0 to 1."""

    largest: float
    bottom: float

    def at(self, size: float, share: float) -> tuple[float, float]:
        """Place of a point, in pixels."""
        left, right, top = _PLOT
        return left + size / self.largest * (right - left), self.bottom - share * (self.bottom - top)


def curve_panel(
    threat: ThreatRecord,
    worst: Proportion,
    curve: SecurityCurve,
    height: float,
    title: str = "Accuracy against the size of the change",
) -> Panel:
    """Accuracy against the size of the change, with the evaluated size marked.

    Args:
        threat: the threat.
        worst: worst case over all attacks at its size.
        curve: the security curve.
        height: height of the panel, in pixels.
        title: text above the curve.
    """
    frame = _Frame(max(*curve.epsilon, threat.limit) or 1.0, height - 48)
    inside = text(shortened(title, 62), 14, 18, {"font-weight": "600"})
    inside += _legend(curve.certified is not None) + _axes(threat, curve, frame)
    upper = [frame.at(*pair) for pair in zip(curve.epsilon, curve.high, strict=True)]
    lower = [frame.at(*pair) for pair in zip(curve.epsilon, curve.low, strict=True)]
    inside += shape("polygon", {"points": points([*upper, *reversed(lower)]), "fill": ROBUST, "opacity": "0.2"})
    inside += _line(frame, curve.epsilon, curve.accuracy, ROBUST)
    for size, words, share in zip(curve.epsilon, curve.epsilon_text, curve.accuracy, strict=True):
        x, y = frame.at(size, share)
        said = hover(f"{size_text(threat, words)}: {percent(share)}")
        inside += shape("circle", {"cx": x, "cy": y, "r": 3.5, "fill": ROBUST}, said)
    if curve.certified is not None:
        inside += _line(frame, curve.epsilon, curve.certified, CERTIFIED, dash="5 4")
    inside += _diamond(frame, threat, worst)
    ends = f"from {percent(curve.accuracy[0])} to {percent(curve.accuracy[-1])}"
    return Panel(
        inside, height, f"Line chart. Accuracy falls {ends} at {size_text(threat, curve.epsilon_text[-1])}."
    )


def _legend(certified: bool) -> str:
    entries = [("under attack", ROBUST, 52.0, "none")]
    entries += [("certified", CERTIFIED, 168.0, "5 4")] if certified else []
    drawn = "".join(
        line((x, 38), (x + 18, 38), {"stroke": colour, "stroke-width": "2.5", "stroke-dasharray": dash})
        + text(words, x + 24, 42, {"font-size": 11.5})
        for words, colour, x, dash in entries
    )
    return drawn + text("\u25c6 worst case of all attacks", 270, 42, {"font-size": 11.5})


def _axes(threat: ThreatRecord, curve: SecurityCurve, frame: _Frame) -> str:
    left, right, top = _PLOT
    drawn = ""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = frame.at(0, share)[1]
        drawn += line((left, y), (right, y), {"stroke-opacity": "0.15"})
        drawn += text(
            f"{100 * share:.0f} %", left - 7, y + 4, {"text-anchor": "end", "opacity": "0.75", "font-size": 11}
        )
    last = -1e9
    for size, words in zip(curve.epsilon, curve.epsilon_text, strict=True):
        x = frame.at(size, 0)[0]
        if x - last >= 52:
            drawn += text(
                words, x, frame.bottom + 16, {"text-anchor": "middle", "opacity": "0.75", "font-size": 11}
            )
            last = x
    x = frame.at(threat.limit, 0)[0]
    drawn += line((x, top), (x, frame.bottom), {"stroke-dasharray": "2 3", "stroke-opacity": "0.6"})
    title = f"epsilon ({size_words(threat)})" if threat.norm is not None else size_words(threat)
    return drawn + text(title, (left + right) / 2, frame.bottom + 36, {"text-anchor": "middle", "opacity": "0.75"})


def _line(frame: _Frame, sizes: Sequence[float], shares: Sequence[float], colour: str, dash: str = "none") -> str:
    places = [frame.at(*pair) for pair in zip(sizes, shares, strict=True)]
    return shape(
        "polyline",
        {
            "points": points(places),
            "fill": "none",
            "stroke": colour,
            "stroke-width": "2.5",
            "stroke-dasharray": dash,
        },
    )


def _diamond(frame: _Frame, threat: ThreatRecord, worst: Proportion) -> str:
    x, y = frame.at(threat.limit, worst.share)
    ends = [frame.at(threat.limit, share)[1] for share in worst.interval]
    said = hover(f"worst case at {size_text(threat, threat.limit_text)}: {proportion(worst)}")
    corners = points([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)])
    return line((x, ends[0]), (x, ends[1]), {"stroke-width": "1.5"}) + shape(
        "polygon", {"points": corners, "fill": "currentColor"}, said
    )
