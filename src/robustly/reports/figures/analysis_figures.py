"""Figures and texts of an analysis: gradients, first-order radii, loss surfaces."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from robustly.evidence.provenance import ThreatRecord
from robustly.reports.analysis import Analysis, Gradients, Histogram, InputSurface, Surface, WeightSurface
from robustly.reports.figures.charts import (
    INK,
    MUTED,
    ROBUST,
    Figure,
    Table,
    Words,
    axis_title,
    count_axis,
    figure,
)
from robustly.reports.figures.evaluation_figures import NORM_WORDS
from robustly.reports.formats import count, percent, short

SURFACE_SCALE = [[0, "var(--surface-low)"], [0.5, "var(--surface-middle)"], [1, "var(--surface-high)"]]
_WORDS = {
    "l1": (
        "Size of the gradient (L1)",
        "Rise of the loss when every value changes a little at once. It is several times smaller in robust "
        "networks than in standard ones.",
    ),
    "l2": ("Size of the gradient (L2)", "The same for a change of a given Euclidean length."),
    "edges": (
        "Agreement with edges",
        "From 0 to 1: share of the sensitivity that lies on edges of the picture. Higher in robust networks.",
    ),
    "variation": (
        "Unrest",
        "Difference of the gradient from pixel to pixel: 0 is constant, 4 a checkerboard. Lower in robust "
        "networks.",
    ),
    "high_frequency": (
        "Share of fine detail",
        "From 0 to 100 %: share of the gradient that is fine texture, hardly visible. Lower in robust networks.",
    ),
    "concentration": (
        "Concentration",
        "From 0 to 1: 0 if all pixels have equal weight, near 1 if a few dominate (Gini coefficient).",
    ),
}


@dataclass(frozen=True)
class MeasureRow:
    """A row of the table of gradient measures."""

    title: str
    median: str
    spread: str
    words: str


def measure_rows(gradients: Gradients) -> tuple[MeasureRow, ...]:
    """Rows of the gradient measures in the analysis."""
    return tuple(
        MeasureRow(title, _cell(name, one.median), f"{_cell(name, one.low)} to {_cell(name, one.high)}", words)
        for name, (title, words) in _WORDS.items()
        if (one := gradients.measures.get(name)) is not None and one.count > 0
    )


def _cell(name: str, value: float | None) -> str:
    return percent(value) if name == "high_frequency" else short(value)


def analysis_figures(analysis: Analysis, threat: ThreatRecord | None) -> tuple[Figure, ...]:
    """All figures for which the analysis has numbers."""
    found: list[Figure] = []
    gradients, landscapes = analysis.gradients, analysis.landscapes
    if gradients is not None and gradients.radius.spread.histogram is not None:
        norm, _, size = analysis.threat.text.partition(":")
        epsilon = size if threat is None else threat.limit_text
        found.append(first_order_radii(gradients, gradients.radius.spread.histogram, norm, epsilon))
    if landscapes is not None:
        found += [] if landscapes.weights is None else [weight_surface(landscapes.weights)]
        highest = max((float(np.nanmax(one.surface.loss)) for one in landscapes.inputs), default=1.0)
        found += [input_surface(one, i + 1, highest) for i, one in enumerate(landscapes.inputs)]
    return tuple(found)


def first_order_radii(gradients: Gradients, histogram: Histogram, norm: str, epsilon: str) -> Figure:
    """A histogram of first-order distances to the boundary."""
    edges, norm, radius = histogram.edges, NORM_WORDS.get(norm, norm), gradients.radius
    number, median = radius.spread.count, short(radius.spread.median)
    ranges = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    ranges[-1] = f"{edges[-2]:.3g} and more"
    share = radius.beyond_epsilon / gradients.count
    caption = (
        f"Distance to the decision boundary of each of {count(number)} correctly classified pictures if the "
        f"network were linear: less than {median} for half of them. For {percent(share)} of all "
        f"{count(gradients.count)} pictures it is larger than epsilon ({epsilon}). This is an estimate, as real "
        "boundaries are curved."
    )
    if radius.unreachable:
        caption += f" {count(radius.unreachable)} more pictures have no gradient at all, a warning sign."
    line = {"type": "line", "x0": radius.epsilon, "x1": radius.epsilon, "yref": "paper", "y0": 0, "y1": 1}
    shown = radius.epsilon <= edges[-1]
    note = {
        "x": radius.epsilon,
        "y": 1,
        "yref": "paper",
        "yanchor": "top",
        "xanchor": "left",
        "text": " epsilon",
        "showarrow": False,
        "font": {"size": 12, "color": MUTED},
    }
    marks = {"shapes": [{**line, "line": {"color": INK, "width": 1.5, "dash": "dot"}}], "annotations": [note]}
    return figure(
        Words(
            "first-order-radii",
            "Estimated distance to the boundary",
            caption,
            f"Histogram of {number} first-order radii, median {median}.",
        ),
        [
            {
                "type": "bar",
                "x": [(low + high) / 2 for low, high in pairwise(edges)],
                "y": list(histogram.counts),
                "width": 0.92 * (edges[1] - edges[0]),
                "marker": {"color": ROBUST},
                "customdata": ranges,
                "hovertemplate": "radius %{customdata}: %{y} pictures<extra></extra>",
                "showlegend": False,
            }
        ],
        Table(("First-order radius", "Pictures"), tuple(zip(ranges, map(str, histogram.counts), strict=True))),
        x={"title": axis_title(f"first-order radius ({norm})"), "range": [0, edges[-1]]},
        y=count_axis("Pictures", max(histogram.counts)),
        layout=marks if shown else {},
    )


def input_surface(shown: InputSurface, number: int, highest: float) -> Figure:
    """The loss around a picture: its gradient is the x axis, a random direction the y axis."""
    surface = shown.surface
    wrong = percent(surface.misclassified_share)
    if _crossed(surface):
        border = f"Beyond the line, the picture is misclassified ({wrong} of the area)."
    elif surface.misclassified_share < 0.5:
        border = "The picture is classified correctly in the whole area."
    else:
        border = "The picture is misclassified in the whole area."
    reading = (
        "The dot is the picture. The x axis is the direction of the gradient, the y axis a random direction, both "
        "in units of epsilon. "
    )
    return figure(
        Words(
            f"input-surface-{'abcdefgh'[(number - 1) % 8]}",
            f"The loss around {shown.title}",
            f"{reading if number == 1 else ''}{border} Roughness {short(surface.roughness)} (0: a plane).",
            f"Heat map of the loss, from {short(float(np.nanmin(surface.loss)))} to "
            f"{short(float(np.nanmax(surface.loss)))}; {wrong} of the area misclassified.",
        ),
        _heat(surface, highest),
        _lines_table(surface, ("Step (epsilons)", "Loss along the gradient", "Loss in a random direction")),
        x={"title": axis_title("along the gradient (epsilons)"), "showgrid": False, "zeroline": False},
        y={"title": axis_title("random (epsilons)"), "showgrid": False, "zeroline": False},
        layout={"showlegend": False},
        height=360,
    )


def weight_surface(shown: WeightSurface) -> Figure:
    """The loss around the weights, over two filter-normalised random directions."""
    surface = shown.surface
    centre = len(surface.axis) // 2
    return figure(
        Words(
            "weight-surface",
            "The loss around the weights",
            f"Mean loss of {shown.title} when the weights change in two random directions; 1 is the length of "
            "the weights. A wide, even bowl often goes with equal accuracy on new pictures. "
            f"Roughness {short(surface.roughness)} "
            f"(0: a plane), at most {short(surface.largest_roughness)}.",
            f"Heat map of the mean loss: {short(float(surface.loss[centre, centre]))} in the middle, at most "
            f"{short(float(np.nanmax(surface.loss)))}.",
        ),
        _heat(surface, float(np.nanmax(surface.loss))),
        _lines_table(surface, ("Step", "Loss along the first direction", "Loss along the second")),
        x={"title": axis_title("first direction"), "showgrid": False, "zeroline": False},
        y={"title": axis_title("second direction"), "showgrid": False, "zeroline": False},
        layout={"showlegend": False},
    )


def _crossed(surface: Surface) -> bool:
    margin = surface.margin
    return margin is not None and bool(np.nanmin(margin) < 0 < np.nanmax(margin))


def _heat(surface: Surface, highest: float) -> list[object]:
    axis = list(surface.axis)
    traces: list[object] = [
        {
            "type": "heatmap",
            "x": axis,
            "y": axis,
            "z": surface.loss.tolist(),
            "zmin": 0,
            "zmax": highest if highest > 0 else 1,
            "colorscale": SURFACE_SCALE,
            "zsmooth": "best",
            "colorbar": {
                "title": {"text": "loss", "font": {"size": 12}},
                "thickness": 10,
                "outlinewidth": 0,
                "nticks": 5,
                "tickfont": {"size": 11.5},
            },
            "hovertemplate": "%{x:.2~f} across, %{y:.2~f} up: loss %{z:.3g}<extra></extra>",
        }
    ]
    if _crossed(surface) and surface.margin is not None:
        traces.append(
            {
                "type": "contour",
                "x": axis,
                "y": axis,
                "z": surface.margin.tolist(),
                "contours": {"start": 0, "end": 0, "size": 1, "coloring": "none"},
                "line": {"color": INK, "width": 2},
                "showscale": False,
                "hoverinfo": "skip",
            }
        )
    if surface.margin is not None:
        dot = {"size": 8, "color": INK, "symbol": "circle"}
        traces.append(
            {
                "type": "scatter",
                "x": [0],
                "y": [0],
                "mode": "markers",
                "marker": dot,
                "hoverinfo": "skip",
            }
        )
    return traces


def _lines_table(surface: Surface, header: tuple[str, str, str]) -> Table:
    middle = len(surface.axis) // 2
    rows = zip(surface.axis, surface.loss[middle], surface.loss[:, middle], strict=True)
    return Table(header, tuple((f"{step:.2g}", short(float(a)), short(float(b))) for step, a, b in rows))
