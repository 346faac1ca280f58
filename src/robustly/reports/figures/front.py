"""Clean against robust accuracy: one point per row of a comparison, and the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustly.reports.figures.charts import (
    MUTED,
    RUN_COLOURS,
    Figure,
    Table,
    Words,
    axis_title,
    figure,
    label,
    run_symbol,
    shortened,
)
from robustly.reports.formats import percent, proportion
from robustly.statistics import Proportion


@dataclass(frozen=True)
class Whiskers:
    """A share in [0, 1] with the ends of its error bar, and the same as text."""

    share: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Point:
    """One point of the chart.

    Args:
        index: number of its colour and symbol.
        name: name in the legend.
        clean: clean accuracy.
        robust: robust accuracy.
        ranked: whether it may be on the front; False if masking is suspected or the tests differ.
    """

    index: int
    name: str
    clean: Whiskers
    robust: Whiskers
    ranked: bool = True

    @classmethod
    def of_shares(cls, index: int, name: str, clean: Proportion, robust: Proportion, ranked: bool) -> "Point":
        """A point with 95 % intervals."""
        one, other = (Whiskers(part.share, part.low, part.high, proportion(part)) for part in (clean, robust))
        return cls(index, name, one, other, ranked)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The ranked points that no other ranked point dominates.

    A point dominates another if it is at least as high in both accuracies and higher in one.

    Returns:
        The points by ascending clean accuracy.
    """
    ranked = [(point.clean.share, point.robust.share, point) for point in points if point.ranked]
    front = [
        (clean, robust, point)
        for clean, robust, point in ranked
        if not any(
            other_clean >= clean and other_robust >= robust and (other_clean, other_robust) != (clean, robust)
            for other_clean, other_robust, _ in ranked
        )
    ]
    return [point for *_, point in sorted(front, key=lambda entry: (entry[0], -entry[1]))]


def clean_against_robust(
    points: Sequence[Point], measure: str = "worst case", bars: str = "Whiskers are 95 % intervals"
) -> Figure | None:
    """A chart of points: clean accuracy on the x axis, robust accuracy on the y axis, with the Pareto front.

    Args:
        points: the points.
        measure: name of the robust accuracy: "worst case", or the title of a column.
        bars: meaning of the error bars, as the beginning of a sentence.
    """
    if not points:
        return None
    front = pareto_front(points)
    drawn = len(front) > 1
    over_all = "the worst case over all attacks" if measure == "worst case" else f"that under {measure}"
    return figure(
        Words(
            "clean-against-robust",
            "Clean against robust accuracy",
            f"Up and to the right is better. {bars}; robust accuracy is {over_all}, an upper bound."
            + (" The dotted line is the Pareto front: no other point is better in both." if drawn else ""),
            "Scatter chart. "
            + "; ".join(
                f"{point.name}: clean {percent(point.clean.share)}, robust {percent(point.robust.share)}"
                for point in points
            )
            + (f". On the front: {', '.join(point.name for point in front)}" if drawn else ""),
        ),
        [*([_front_line(front)] if drawn else []), *map(_marker, points)],
        Table(
            ("Run", "Clean", f"Robust ({measure})", "On the front"),
            tuple(
                (point.name, point.clean.words, point.robust.words, "yes" if point in front else "no")
                for point in points
            ),
        ),
        x={"tickformat": "~%", "title": axis_title("Clean accuracy")},
        y={"tickformat": "~%", "title": axis_title("Robust accuracy (at most)")},
    )


def _marker(point: Point) -> object:
    return {
        "type": "scatter",
        "x": [point.clean.share],
        "y": [point.robust.share],
        "error_x": _error(point.clean, point.index),
        "error_y": _error(point.robust, point.index),
        "name": label(shortened(point.name, 30)),
        "mode": "markers",
        "marker": {"size": 13, "color": RUN_COLOURS[point.index % 8], "symbol": run_symbol(point.index)},
        "customdata": [[point.clean.words, point.robust.words]],
        "hovertemplate": "clean %{customdata[0]}<br>robust, at most %{customdata[1]}<extra></extra>",
    }


def _front_line(front: Sequence[Point]) -> object:
    """The front as a staircase, which promises only the lower of both accuracies between two neighbours."""
    return {
        "type": "scatter",
        "x": [point.clean.share for point in front],
        "y": [point.robust.share for point in front],
        "mode": "lines",
        "line": {"color": MUTED, "width": 1.5, "dash": "dot", "shape": "vh"},
        "name": "Pareto front",
        "hoverinfo": "skip",
    }


def _error(bar: Whiskers, index: int) -> dict[str, object]:
    return {
        "array": [bar.high - bar.share],
        "arrayminus": [bar.share - bar.low],
        "color": RUN_COLOURS[index % 8],
        "thickness": 1.5,
        "width": 3,
    }
