"""Figures and words of an analysis: gradients, first-order radii, loss surfaces, the union over threats."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from robustly.evidence.provenance import ThreatRecord
from robustly.evidence.unions import ThreatUnion
from robustly.reports.analysis import Analysis, Gradients, Histogram, InputSurface, Surface, WeightSurface
from robustly.reports.figures.charts import (
    INK,
    MUTED,
    ROBUST,
    Figure,
    Table,
    Words,
    axis_title,
    figure,
)
from robustly.reports.figures.evaluation_figures import NORM_WORDS
from robustly.reports.formats import count, interval, percent, short
from robustly.statistics import Proportion

SURFACE_SCALE = [[0, "var(--surface-low)"], [0.5, "var(--surface-middle)"], [1, "var(--surface-high)"]]
_WORDS = {
    "l1": (
        "Size of the gradient (L1)",
        "How fast the loss can rise when every value changes a little at once. Robust networks have values "
        "several times smaller than standard ones.",
    ),
    "l2": ("Size of the gradient (L2)", "The same for a change of a given Euclidean length."),
    "edges": (
        "Agreement with edges",
        "From 0 to 1: whether the network is sensitive where the picture has edges. Higher in robust networks.",
    ),
    "variation": (
        "Unrest",
        "How much the gradient differs from pixel to pixel: 0 is constant, 4 a checkerboard. Lower in robust "
        "networks.",
    ),
    "high_frequency": (
        "Share of fine detail",
        "From 0 to 100 %: how much of the gradient is fine-grained texture that people hardly see. Lower in robust "
        "networks.",
    ),
    "concentration": (
        "Concentration",
        "From 0 to 1: 0 if all pixels matter alike, near 1 if a few decide (Gini coefficient).",
    ),
}


@dataclass(frozen=True)
class MeasureRow:
    """A measure of the gradients as the table shows it."""

    title: str
    median: str
    spread: str
    words: str


def measure_rows(gradients: Gradients) -> tuple[MeasureRow, ...]:
    """The gradient statistics that the analysis has, in words."""
    return tuple(
        MeasureRow(title, _cell(name, one.median), f"{_cell(name, one.low)} to {_cell(name, one.high)}", words)
        for name, (title, words) in _WORDS.items()
        if (one := gradients.measures.get(name)) is not None and one.count > 0
    )


def _cell(name: str, value: float | None) -> str:
    return percent(value) if name == "high_frequency" else short(value)


@dataclass(frozen=True)
class UnionCell:
    """A column of the table of threats."""

    title: str
    share: str
    ends: str


def union_cells(union: ThreatUnion) -> tuple[UnionCell, ...]:
    """Clean, each threat, all of them at once, and the average."""

    def cell(title: str, part: Proportion) -> UnionCell:
        return UnionCell(title, percent(part.share), interval(part))

    low, high = union.average.interval
    return (
        cell("Clean", union.clean),
        *(cell(_named(one.text), one.robust) for one in union.threats),
        cell("All at once", union.union),
        UnionCell("Average", percent(union.average.accuracy), f"[{100 * low:.1f}, {100 * high:.1f}]"),
    )


def _named(threat: str) -> str:
    """`linf:8/255` as a heading: `L∞ 8/255`."""
    norm, _, epsilon = threat.partition(":")
    return f"{NORM_WORDS.get(norm, norm)} {epsilon}".strip()


def analysis_figures(analysis: Analysis, threat: ThreatRecord | None) -> tuple[Figure, ...]:
    """The figures that this analysis has the numbers for."""
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
    """A histogram of the distances at which the boundary would lie if the network were linear."""
    edges, norm, radius = histogram.edges, NORM_WORDS.get(norm, norm), gradients.radius
    number, median = radius.spread.count, short(radius.spread.median)
    ranges = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    ranges[-1] = f"{edges[-2]:.3g} and more"
    share = radius.beyond_epsilon / gradients.count
    caption = (
        f"How far the boundary would be from each of {count(number)} rightly classified pictures if the "
        f"network were a straight slope: half of them have less than {median}. At "
        f"{percent(share)} of all {count(gradients.count)} pictures it lies beyond epsilon ({epsilon}). An "
        "estimate: real boundaries bend."
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
            "How far the boundary seems",
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
        y={"title": axis_title("Pictures")},
        layout=marks if shown else {},
    )


def input_surface(shown: InputSurface, number: int, highest: float) -> Figure:
    """The loss around a picture: across along its gradient, up in a random direction."""
    surface = shown.surface
    wrong = percent(surface.misclassified_share)
    if _crossed(surface):
        border = f"Behind the line, the picture is misclassified ({wrong} of the area)."
    elif surface.misclassified_share < 0.5:
        border = "The picture is classified rightly all over this area."
    else:
        border = "The picture is misclassified all over this area."
    reading = (
        "The picture is the dot; to the right is where the gradient points, up and down a random direction, "
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
            f"How the mean loss of {shown.title} grows when the network itself is changed in two random "
            "directions, 1 being as long as the weights are. A wide, even bowl is often "
            f"found where a network does as well on new pictures. Roughness {short(surface.roughness)} "
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
