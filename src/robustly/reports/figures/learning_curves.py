"""Accuracy by epoch of several methods, each over its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def curve_of(trainings: Sequence[Training], columns: Sequence[str], name: str, colour: int) -> Curve | None:
    """The first of several columns that a run has, over its seeds; None if no run has one of them.

    Runs of different length are cut to the shortest.
    """
    for column in columns:
        found = [values for one in trainings if (values := one.column(column)) is not None]
        if found:
            length = min(map(len, found))
            shares = np.stack([values[:length] for values in found])
            epochs = next(one.columns["epoch"][:length] for one in trainings if one.column(column) is not None)
            deviation = shares.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(length)
            known = np.isfinite(shares).all(axis=0)
            if not known.any():
                return None
            mean = shares.mean(axis=0)[known]
            return Curve(name, epochs[known], mean, deviation[known], len(found), colour)
    return None


def convergence_figures(curves: Mapping[str, Sequence[Training]]) -> tuple[Figure, ...]:
    """Clean accuracy by epoch on the training and on the held-out images; figures without a line are left out.

    Args:
        curves: metrics of the runs of each method, by its name.
    """
    several = any(len(own) > 1 for own in curves.values())
    bands = " Bands: one standard deviation over seeds." if several else ""
    training, held_out = [], []
    for i, (name, own) in enumerate(curves.items()):
        training.append(curve_of(own, ("train_subset_clean_accuracy", "train_clean_accuracy"), name, i))
        guide = curve_of(own, ("guide_accuracy",), f"{name}: its guide", i)
        training.append(None if guide is None else _thin(guide))
        held_out.append(curve_of(own, ("validation_clean_accuracy",), name, i))
    found = [
        _figure(
            Words(
                "convergence-training",
                "Figure 3, training images",
                f"Clean accuracy by epoch. Thin dotted lines: accuracy of the guide on these images.{bands}",
            ),
            training,
        ),
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


def _thin(curve: Curve) -> Curve:
    return Curve(curve.name, curve.epochs, curve.mean, curve.deviation, curve.seeds, curve.colour, thin=True)


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
