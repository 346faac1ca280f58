"""Figures of a report: a chart for plotly, a text for screen readers, and the numbers as a table."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CLEAN, ROBUST, CERTIFIED, BROKEN, INK, MUTED = (
    "var(--clean)",
    "var(--robust)",
    "var(--certified)",
    "var(--broken)",
    "var(--ink)",
    "var(--muted)",
)
"""Colours are CSS variables, which the page sets for its theme, light or dark."""
RUN_COLOURS = tuple(f"var(--run-{i})" for i in range(1, 9))
RUN_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "pentagon", "hexagram")


def run_symbol(index: int) -> str:
    """The symbol of run number `index`. The first 64 runs differ in colour or symbol."""
    return RUN_SYMBOLS[(index + index // 8) % 8]


LEGEND: dict[str, object] = {
    "orientation": "h",
    "x": 0,
    "y": 1.02,
    "yanchor": "bottom",
    "font": {"color": INK},
}
PERCENT_AXIS: dict[str, object] = {"tickformat": ".0%", "rangemode": "tozero"}


@dataclass(frozen=True)
class Table:
    """The numbers behind a figure, as text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Words:
    """Texts of a figure.

    `name` (`[a-z-]+`) is unique within the run, `caption` explains the chart in one or two sentences, `description`
    is for screen readers.
    """

    key: str
    title: str
    caption: str
    description: str = ""


@dataclass(frozen=True)
class Figure:
    """One chart: `data` and `layout` for plotly, as JSON values, and its texts and table."""

    words: Words
    data: tuple[object, ...]
    layout: Mapping[str, object]
    table: Table
    height: int = 340
    wide: bool = False


def figure(
    words: Words,
    traces: Sequence[object],
    table: Table,
    *,
    x: Mapping[str, object],
    y: Mapping[str, object],
    layout: Mapping[str, object] | None = None,
    height: int = 340,
    wide: bool = False,
) -> Figure:
    """Build a figure in the common style of reports.

    Args:
        words: texts of the figure.
        traces: plotly's traces as dictionaries. `type` is scatter, bar, heatmap or contour: the page's plotly.js
            has no other types.
        table: the same numbers.
        x: settings of the x axis.
        y: settings of the y axis.
        layout: further settings of plotly's layout.
        height: height in pixels.
        wide: whether the figure takes the whole width of the page.
    """
    axis = {
        "gridcolor": "var(--grid)",
        "zerolinecolor": "var(--grid)",
        "linecolor": "var(--line)",
        "automargin": True,
    }
    style: dict[str, object] = {
        "height": height,
        "margin": {"l": 48, "r": 16, "t": 8, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": MUTED, "size": 12.5},
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--line)",
            "font": {"color": INK, "size": 12.5},
        },
        "legend": LEGEND,
        "hovermode": "closest",
        "xaxis": {**axis, **x},
        "yaxis": {**axis, **y},
    }
    data = [json_safe(trace) for trace in traces]
    shape = {key: json_safe(value) for key, value in {**style, **(layout or {})}.items()}
    return Figure(words, tuple(data), shape, table, height, wide)


def label(text: str) -> str:
    """Escape text of users, in which plotly would interpret tags."""
    return html.escape(text, quote=False)


def shortened(text: str, most: int) -> str:
    """Text cut to at most `most` characters, with an ellipsis if it was longer."""
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def template_label(text: str) -> str:
    """Escape text of users in a hover template, where `%{` begins a field."""
    return label(text).replace("%{", "% {")


def axis_title(text: str) -> dict[str, object]:
    """The title of an axis."""
    return {"text": text, "standoff": 8, "font": {"size": 13}}


def count_axis(text: str, largest: int) -> dict[str, object]:
    """An axis of whole numbers from 0, labelled at whole numbers only.

    Args:
        text: its title.
        largest: the largest number that is drawn.
    """
    whole = {"title": axis_title(text), "rangemode": "tozero", "tickformat": ",d", "separatethousands": True}
    return {**whole, "dtick": 1} if largest < 8 else whole


def band(x: Sequence[object], low: Sequence[object], high: Sequence[object], colour: str, group: str) -> object:
    """A shaded band between two lines, without hover or legend; `colour` is a CSS variable."""
    return {
        "type": "scatter",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": colour.replace(")", "-band)"),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": group,
    }


def json_safe(value: object) -> object:
    """Plain lists, dictionaries, numbers of six digits and text; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
