"""Accuracy by epoch of several methods, each over its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from robustly.reports.figures.charts import (
    Figure,
    Table,
    Words,
    axis_title,
    band,
    figure,
    label,
    shortened,
    template_label,
)
from robustly.reports.figures.training_figures import epoch_axis
from robustly.reports.formats import deviating, percent
from robustly.reports.run import Training

MOST_LINES = 4
"""Number of colours that have a band."""
TRAINING_COLUMNS = {
    "train_subset_clean_accuracy": "Clean accuracy by epoch on a fixed part of the training images.",
    "train_clean_accuracy": "Clean accuracy by epoch on the training batches, while they are learned.",
}
"""Columns of clean accuracy on training images; the first that a run has is drawn for all methods."""


@dataclass(frozen=True)
class Curve:
    """One line.

    Args:
        name: name in the legend.
        epochs: epochs `(E,)`, from 1.
        mean: mean over the seeds `(E,)`, in [0, 1].
        deviation: standard deviation over the seeds `(E,)`; zero for one seed.
        seeds: number of seeds.
        colour: number of its colour.
        thin: whether it belongs to a guide.
    """

    name: str
    epochs: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    seeds: int
    colour: int
    thin: bool = False


def curve_of(trainings: Sequence[Training], column: str, name: str, colour: int) -> Curve | None:
    """A column over the seeds; None if no run has it. Runs of different length are cut to the shortest.

    Args:
        trainings: metrics of the runs.
        column: name of the column.
        name: name in the legend.
        colour: number of its colour.
    """
    found = [(one.columns["epoch"], values) for one in trainings if (values := one.column(column)) is not None]
    if not found:
        return None
    length = min(len(values) for _, values in found)
    shares = np.stack([values[:length] for _, values in found])
    known = np.isfinite(shares).all(axis=0)
    if not known.any():
        return None
    deviation = shares.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(length)
    return Curve(
        name, found[0][0][:length][known], shares.mean(axis=0)[known], deviation[known], len(found), colour
    )


def convergence_figures(curves: Mapping[str, Sequence[Training]]) -> tuple[Figure, ...]:
    """Clean accuracy by epoch on the training and on the held-out images; figures without a line are left out.

    Args:
        curves: metrics of the runs of each method, by its name.
    """
    several = any(len(own) > 1 for own in curves.values())
    bands = " Bands: one standard deviation over seeds." if several else ""
    named = [(i, name, own) for i, (name, own) in enumerate(curves.items())]
    column, words = _training_column([one for *_, own in named for one in own])
    training = [None if column is None else curve_of(own, column, name, i) for i, name, own in named]
    guides = [curve_of(own, "guide_accuracy", f"{name}: its guide", i) for i, name, own in named]
    held_out = [curve_of(own, "validation_clean_accuracy", name, i) for i, name, own in named]
    drawn = [curve for pair in zip(training, map(_thin, guides), strict=True) for curve in pair]
    dotted = " Thin dotted lines: accuracy of the guide on the training labels." if any(guides) else ""
    found = [
        _figure(Words("convergence-training", "Figure 3, training images", f"{words}{dotted}{bands}"), drawn),
        _figure(
            Words(
                "convergence-held-out",
                "Figure 3, held-out images",
                "Clean accuracy by epoch on held-out training images, by which the epoch is selected; the paper "
                f"draws its test images.{bands}",
            ),
            held_out,
        ),
    ]
    return tuple(one for one in found if one is not None)


def _training_column(trainings: Sequence[Training]) -> tuple[str | None, str]:
    """One column of clean accuracy on training images for all methods, and its words; None if no run has one."""
    for column, words in TRAINING_COLUMNS.items():
        if any(one.column(column) is not None for one in trainings):
            return column, words
    return None, "These runs do not record the clean accuracy on training images."


def _thin(curve: Curve | None) -> Curve | None:
    return None if curve is None else replace(curve, thin=True)


def _figure(words: Words, curves: Sequence[Curve | None]) -> Figure | None:
    drawn = [curve for curve in curves if curve is not None]
    if not drawn:
        return None
    traces: list[object] = []
    for curve in drawn:
        colour = f"var(--run-{curve.colour % MOST_LINES + 1})"
        if curve.seeds > 1 and not curve.thin:
            ends = curve.mean - curve.deviation, curve.mean + curve.deviation
            low, high = (np.clip(end, 0, 1).tolist() for end in ends)
            traces.append(band(curve.epochs.tolist(), low, high, colour, curve.name))
        traces.append(
            {
                "type": "scatter",
                "x": curve.epochs.tolist(),
                "y": curve.mean.tolist(),
                "name": label(shortened(curve.name, 30)),
                "mode": "lines+markers" if len(curve.epochs) < 15 and not curve.thin else "lines",
                "line": {
                    "color": colour,
                    "width": 1.25 if curve.thin else 2.5,
                    "dash": "dot" if curve.thin else "solid",
                },
                "marker": {"size": 6},
                "hovertemplate": f"%{{y:.1%}}<extra>{template_label(curve.name)}</extra>",
            }
        )
    ends_text = "; ".join(f"{curve.name}: {percent(float(curve.mean[-1]))}" for curve in drawn)
    rows = tuple(
        (
            curve.name,
            f"{epoch:g}",
            percent(mean) if curve.seeds < 2 else deviating(mean, deviation),
            str(curve.seeds),
        )
        for curve in drawn
        for epoch, mean, deviation in zip(
            curve.epochs.tolist(), curve.mean.tolist(), curve.deviation.tolist(), strict=True
        )
    )
    described = Words(words.key, words.title, words.caption, f"Line chart by epoch. At the end: {ends_text}.")
    return figure(
        described,
        traces,
        Table(("Method", "Epoch", "Accuracy", "Seeds"), rows),
        x=epoch_axis([epoch for curve in drawn for epoch in curve.epochs.tolist()]),
        y={"tickformat": ".0%", "title": axis_title("Clean accuracy")},
        layout={"hovermode": "x unified", "showlegend": True},
    )
