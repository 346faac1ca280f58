"""Bars of measured accuracies with their intervals, and published numbers as hollow markers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from robustly.reports.figures.front import Whiskers
from robustly.reports.formats import NO_VALUE, percent

PUBLISHED = "Published (another scale)"


@dataclass(frozen=True)
class Bars:
    """One method: measured and published shares by column; a column may be missing in both."""

    name: str
    measured: Mapping[str, Whiskers]
    published: Mapping[str, float]


def clean_bars(rows: Sequence[Bars], key: str = "clean") -> Figure | None:
    """Clean accuracy of each method as a horizontal bar; None without any number of ours.

    Args:
        rows: the methods; two may have one name.
        key: the column.
    """
    if not any(key in row.measured for row in rows):
        return None
    places = list(range(len(rows)))
    shown = [(i, row.name, row.measured[key]) for i, row in enumerate(rows) if key in row.measured]
    theirs = [(i, row.name, row.published[key]) for i, row in enumerate(rows) if key in row.published]
    traces: list[object] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [i for i, *_ in shown],
            "x": [bar.share for *_, bar in shown],
            "name": "Ours",
            "marker": {"color": "var(--clean)"},
            "customdata": [[template_label(name), bar.words] for _, name, bar in shown],
            "error_x": _errors([bar for *_, bar in shown]),
            "hovertemplate": "%{customdata[0]}: %{customdata[1]}<extra></extra>",
        }
    ]
    if theirs:
        traces.append(
            {
                **_hollow(),
                "y": [i for i, *_ in theirs],
                "x": [share for *_, share in theirs],
                "customdata": [template_label(name) for _, name, _ in theirs],
                "hovertemplate": "%{customdata}: published %{x:.1%}<extra></extra>",
            }
        )
    highest = max(shown, key=lambda entry: entry[2].share)
    return figure(
        Words(
            "clean-accuracy",
            "Figure 4: clean accuracy of all methods",
            f"Whiskers are 95 % intervals, of several seeds one standard deviation. {_markers(theirs)}".strip(),
            f"Bar chart of clean accuracy for {len(shown)} methods. Highest: {highest[1]}, {highest[2].words}.",
        ),
        traces,
        Table(
            ("Method", "Clean, ours", "Clean, published"),
            tuple(
                (
                    row.name,
                    row.measured[key].words if key in row.measured else NO_VALUE,
                    percent(row.published.get(key)),
                )
                for row in rows
            ),
        ),
        x={**PERCENT_AXIS, "range": [0, 1.02], "title": axis_title("Clean accuracy")},
        y={
            "autorange": "reversed",
            "tickvals": places,
            "ticktext": [label(shortened(row.name, 30)) for row in rows],
            "ticksuffix": "  ",
            "showgrid": False,
            "zeroline": False,
        },
        layout={"bargap": 0.35, "showlegend": True},
        height=110 + 28 * len(rows),
        wide=True,
    )


def attack_bars(rows: Sequence[Bars], titles: Mapping[str, str]) -> Figure | None:
    """All columns of a few methods as grouped bars; None without any number of ours.

    Args:
        rows: the methods, one bar in each group.
        titles: titles of the columns by key, in order.
    """
    keys = [key for key in titles if any(key in row.measured or key in row.published for row in rows)]
    if not any(row.measured.keys() & set(keys) for row in rows):
        return None
    width = 0.8 / len(rows)
    traces: list[object] = []
    hollow: list[tuple[float, float, str]] = []
    for i, row in enumerate(rows):
        places = {key: place + (i - (len(rows) - 1) / 2) * width for place, key in enumerate(keys)}
        ours = [(places[key], titles[key], row.measured[key]) for key in keys if key in row.measured]
        hollow += [
            (places[key], row.published[key], f"{row.name}, {titles[key]}") for key in keys if key in row.published
        ]
        traces.append(
            {
                "type": "bar",
                "x": [place for place, *_ in ours],
                "y": [bar.share for *_, bar in ours],
                "width": 0.92 * width,
                "name": label(shortened(row.name, 36)),
                "marker": {"color": RUN_COLOURS[i % 8]},
                "customdata": [[template_label(title), bar.words] for _, title, bar in ours],
                "error_y": _errors([bar for *_, bar in ours]),
                "hovertemplate": "%{customdata[0]}: %{customdata[1]}<extra>"
                + template_label(row.name)
                + "</extra>",
            }
        )
    if hollow:
        traces.append(
            {
                **_hollow(),
                "x": [place for place, *_ in hollow],
                "y": [share for _, share, _ in hollow],
                "customdata": [template_label(words) for *_, words in hollow],
                "hovertemplate": "%{customdata}: published %{y:.1%}<extra></extra>",
            }
        )
    return figure(
        Words(
            "hybrid",
            "Figure 5: GAIRAT alone and with DYNAT",
            f"Whiskers are 95 % intervals, of several seeds one standard deviation. {_markers(hollow)}".strip(),
            "Bar chart of the accuracies under each attack: "
            + "; ".join(f"{row.name}: {_listed(row, keys, titles)}" for row in rows),
        ),
        traces,
        Table(
            ("Method", "Column", "Ours", "Published"),
            tuple(
                (
                    row.name,
                    titles[key],
                    row.measured[key].words if key in row.measured else NO_VALUE,
                    percent(row.published.get(key)),
                )
                for row in rows
                for key in keys
            ),
        ),
        x={
            "tickvals": list(range(len(keys))),
            "ticktext": [label(titles[key]) for key in keys],
            "showgrid": False,
            "zeroline": False,
        },
        y={**PERCENT_AXIS, "range": [0, 1.02], "title": axis_title("Accuracy")},
        layout={"barmode": "overlay", "showlegend": True},
        height=400,
        wide=True,
    )


def _listed(row: Bars, keys: Sequence[str], titles: Mapping[str, str]) -> str:
    return ", ".join(f"{titles[key]} {percent(row.measured[key].share)}" for key in keys if key in row.measured)


def _markers(theirs: Sequence[object]) -> str:
    return "Hollow diamonds: published numbers, on another scale." if theirs else ""


def _errors(bars: Sequence[Whiskers]) -> dict[str, object]:
    return {
        "array": [bar.high - bar.share for bar in bars],
        "arrayminus": [bar.share - bar.low for bar in bars],
        "color": INK,
        "thickness": 1,
        "width": 3,
    }


def _hollow() -> dict[str, object]:
    marker = {"size": 10, "symbol": "diamond-open", "color": INK, "line": {"width": 2, "color": INK}}
    return {"type": "scatter", "mode": "markers", "name": PUBLISHED, "marker": marker}
