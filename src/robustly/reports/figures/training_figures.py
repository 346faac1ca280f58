"""Figures of one training run: accuracies, losses and learning rate, epoch by epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from robustly.reports.figures.charts import (
    CLEAN,
    INK,
    MUTED,
    PERCENT_AXIS,
    ROBUST,
    RUN_COLOURS,
    Figure,
    Table,
    Words,
    axis_title,
    figure,
    label,
    template_label,
)
from robustly.reports.formats import NO_VALUE, decimal, percent
from robustly.reports.run import Training

ACCURACIES = {
    "validation_clean_accuracy": ("Clean, validation", CLEAN, "solid"),
    "validation_robust_accuracy": ("Robust, validation", ROBUST, "solid"),
    "train_clean_accuracy": ("Clean, training", CLEAN, "dot"),
    "train_robust_accuracy": ("Robust, training", ROBUST, "dot"),
    "train_subset_clean_accuracy": ("Clean, first training images, evaluation mode", CLEAN, "dash"),
}


@dataclass(frozen=True)
class Line:
    """One column of the metrics as a line of a chart."""

    column: str
    name: str
    colour: str
    dash: str = "solid"


def training_figures(training: Training) -> tuple[Figure, ...]:
    """All figures for which the metrics have columns."""
    found = [accuracies(training), losses(training), learning_rate(training), other_shares(training)]
    found += [before_the_run(name, training, place) for place, name in enumerate(training.alone)]
    return tuple(each for each in found if each is not None)


def accuracies(training: Training) -> Figure | None:
    """Clean and robust accuracy of the training and the validation examples."""
    lines = [Line(key, *style) for key, style in ACCURACIES.items()]
    text = "Solid lines: validation examples, by which the best epoch is selected. Dotted lines: training examples."
    gap = _overfitting(training)
    return _chart(
        training,
        Words("accuracies", "Accuracy during training", f"{text} {gap}".strip()),
        lines,
        {**PERCENT_AXIS, "title": axis_title("Accuracy")},
        shares=True,
    )


def losses(training: Training) -> Figure | None:
    """The training loss and its terms in the metrics."""
    names = [name for name in training.columns if name.startswith("loss_")]
    lines = [Line("train_loss", "Training loss", INK)]
    lines += [
        Line(name, name.removeprefix("loss_").replace("_", " ").capitalize(), RUN_COLOURS[i % 8], "dash")
        for i, name in enumerate(names)
    ]
    text = "Mean over each epoch." if not names else "Mean over each epoch; dashed lines are terms of the loss."
    return _chart(
        training, Words("losses", "Loss", text), lines, {"title": axis_title("Loss"), "rangemode": "tozero"}
    )


def learning_rate(training: Training) -> Figure | None:
    """The learning rate of each epoch."""
    lines = [Line("learning_rate", "Learning rate", RUN_COLOURS[3])]
    text = "The step size of the optimiser in each epoch."
    axis = {"title": axis_title("Learning rate"), "rangemode": "tozero", "tickformat": "~g"}
    return _chart(training, Words("learning-rate", "Learning rate", text), lines, axis)


def other_shares(training: Training) -> Figure | None:
    """Further accuracies and agreements, such as those of a guide model."""
    names = [
        name
        for name in training.columns
        if name.endswith(("_accuracy", "_agreement"))
        and name not in ACCURACIES
        and training.column(name) is not None
    ]
    lines = [Line(name, name.replace("_", " ").capitalize(), RUN_COLOURS[i % 8]) for i, name in enumerate(names)]
    text = "Other shares that the method records."
    if "guide_accuracy" in names:
        text = (
            "Guide accuracy: share of the training images that the guide classifies correctly, in training mode, "
            "while it learns. The model learns from its answers."
        )
    axis = {**PERCENT_AXIS, "title": axis_title("Share")}
    title = "The guide" if names == ["guide_accuracy"] else "Guide and labels"
    return _chart(training, Words("other-shares", title, text), lines, axis, shares=True)


def before_the_run(name: str, training: Training, place: int = 0) -> Figure | None:
    """Accuracies of a network in the epochs in which it was trained alone, before the run.

    Args:
        name: name of the network.
        training: metrics of the run.
        place: number of the figure among those of other networks, from 0.
    """
    lines = [
        Line("validation_clean_accuracy", "Validation", CLEAN),
        Line("train_clean_accuracy", "Training", CLEAN, "dot"),
    ]
    text = (
        f"Clean accuracy of the {name}, which was trained alone, on clean images, in these epochs. The run started "
        "after them."
    )
    axis = {**PERCENT_AXIS, "title": axis_title("Accuracy")}
    words = Words(f"alone-{chr(ord('a') + place % 26)}", f"The {name} before the run", text)
    return _chart(Training(training.alone[name]), words, lines, axis, shares=True)


def metrics_table(training: Training) -> Table:
    """All of `metrics.csv`, rounded."""
    shares = {name for name in training.columns if name.endswith(("_accuracy", "_agreement"))}
    columns = [
        [_cell(float(value), name in shares) for value in values] for name, values in training.columns.items()
    ]
    names = tuple(name.replace("_", " ") for name in training.columns)
    return Table(names, tuple(zip(*columns, strict=True)))


def epoch_axis(epochs: Sequence[float]) -> dict[str, object]:
    """An axis of epochs, labelled at whole numbers."""
    axis: dict[str, object] = {
        "title": axis_title("Epoch"),
        "tickformat": "d",
        "unifiedhovertitle": {"text": "Epoch %{x}"},
    }
    return {**axis, "dtick": 1} if max(epochs) - min(epochs) < 8 else axis


def _chart(
    training: Training,
    words: Words,
    lines: Sequence[Line],
    axis: Mapping[str, object],
    *,
    shares: bool = False,
) -> Figure | None:
    drawn = [(line, values) for line in lines if (values := training.column(line.column)) is not None]
    if not drawn:
        return None
    epochs = training.columns["epoch"].tolist()
    number = "%{y:.1%}" if shares else "%{y:.4g}"
    traces = [
        {
            "type": "scatter",
            "x": epochs,
            "y": values.tolist(),
            "name": label(line.name),
            "mode": "lines" if len(epochs) > 1 else "markers",
            "line": {"color": line.colour, "width": 2.5 if line.dash == "solid" else 1.75, "dash": line.dash},
            "hovertemplate": f"{number}<extra>{template_label(line.name)}</extra>",
        }
        for line, values in drawn
    ]
    rows = zip(*[[_cell(float(value), shares) for value in values] for _, values in drawn], strict=True)
    ends = "; ".join(f"{line.name}: {_cell(float(values[-1]), shares)}" for line, values in drawn)
    return figure(
        replace(words, description=f"Line chart over {len(epochs)} epochs. At the end: {ends}."),
        traces,
        Table(
            ("Epoch", *(line.name for line, _ in drawn)),
            tuple((f"{epoch:g}", *row) for epoch, row in zip(epochs, rows, strict=True)),
        ),
        x=epoch_axis(epochs),
        y=axis,
        layout={
            "hovermode": "x unified",
            "showlegend": len(drawn) > 1,
            **_best_epoch(training),
        },
        height=320,
    )


def _best_epoch(training: Training) -> dict[str, object]:
    best = training.status.best_epoch
    if best is None:
        return {}
    line = {"type": "line", "x0": best, "x1": best, "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    late = best > float(training.columns["epoch"].mean())
    note = {
        "x": best,
        "y": 0,
        "yref": "paper",
        "yanchor": "bottom",
        "xanchor": "right" if late else "left",
        "text": f"best epoch {best}",
        "showarrow": False,
        "font": {"size": 11.5, "color": MUTED},
    }
    return {"shapes": [{**line, "line": {"color": MUTED, "width": 1, "dash": "dot"}}], "annotations": [note]}


def _overfitting(training: Training) -> str:
    """A sentence on robust overfitting if the end is two points or more below the best; else empty."""
    robust = training.column("validation_robust_accuracy")
    if robust is None:
        return ""
    known = robust[np.isfinite(robust)]
    fall = float(known.max() - known[-1])
    if fall < 0.02:
        return ""
    best = percent(float(known.max()))
    return (
        f"Robust validation accuracy ended {100 * fall:.1f} points below its best ({best}): "
        "a sign of robust overfitting."
    )


def _cell(value: float, share: bool) -> str:
    if not np.isfinite(value):
        return NO_VALUE
    return percent(value) if share else decimal(value)
