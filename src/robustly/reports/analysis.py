"""`analysis.json` (schema 1) -> `Analysis`."""

import numpy as np
from numpy.typing import NDArray

from robustly.reports.evidence import (
    Analysis,
    Gradients,
    Proportion,
    ReportError,
    Spread,
    Surface,
    ThreatUnion,
)
from robustly.reports.fields import Fields

SCHEMA = 1
"""The version of `analysis.json` that this package reads."""


def parse_analysis(found: Fields) -> Analysis:
    """The analysis that a file tells of.

    Raises:
        ReportError: if the schema is another one, or a field is missing or of the wrong kind.
    """
    schema = found.values.get("schema")
    if schema != SCHEMA:
        raise ReportError(
            f"{found.where} is written in schema {str(schema)[:20]}, but this robustly reads schema {SCHEMA}: "
            "run robustly analyse again."
        )
    model, gradients = found.maybe_inside("model"), found.maybe_inside("gradients")
    surfaces, union = found.maybe_inside("landscapes"), found.maybe_inside("union")
    weights = None if surfaces is None else surfaces.maybe_inside("weights")
    return Analysis(
        weights_sha256=None if model is None else model.maybe_text("weights_sha256"),
        threat=found.inside("threat").text("text"),
        gradients=None if gradients is None else _gradients(gradients),
        inputs=() if surfaces is None else tuple(_of_picture(entry) for entry in surfaces.objects("inputs")),
        weights=None
        if weights is None
        else _surface(weights, f"{weights.maybe_whole('images') or 'some'} examples"),
        union=None if union is None else _union(union),
    )


def _gradients(found: Fields) -> Gradients:
    measures, radius = found.inside("measures"), found.inside("radius")
    spreads = {name: _spread(measures.inside(name)) for name in measures.values}
    return Gradients(
        count=found.whole("count"),
        correct=found.whole("right"),
        measures={name: spread for name, spread in spreads.items() if spread is not None},
        radius=_spread(radius),
        beyond=radius.whole("beyond"),
        unreachable=radius.whole("unreachable"),
        epsilon=radius.number("epsilon"),
    )


def _spread(found: Fields) -> Spread | None:
    if not found.maybe_whole("count"):
        return None
    histogram = found.inside("histogram")
    edges, counts = histogram.numbers("edges"), histogram.numbers("counts")
    if len(edges) != len(counts) + 1 or None in edges or None in counts:
        raise ReportError(f"{histogram.where}: edges should be numbers, one more than counts.")
    return Spread(
        count=found.whole("count"),
        median=found.number("median"),
        low=found.number("low"),
        high=found.number("high"),
        edges=tuple(value for value in edges if value is not None),
        counts=tuple(int(value) for value in counts if value is not None),
    )


def _of_picture(entry: Fields) -> Surface:
    return _surface(entry, f"example {entry.text('id')} ({entry.text('label')})")


def _surface(found: Fields, title: str) -> Surface:
    axis = found.numbers("axis")
    if len(axis) < 3 or None in axis:
        raise ReportError(f"{found.where}: axis should be at least three numbers.")
    return Surface(
        title=title,
        axis=tuple(value for value in axis if value is not None),
        loss=_grid(found, "loss", len(axis)),
        margin=None if found.values.get("margin") is None else _grid(found, "margin", len(axis)),
        roughness=found.number("roughness"),
        roughest=found.number("roughest"),
        misclassified=found.number("misclassified"),
    )


def _grid(found: Fields, key: str, size: int) -> NDArray[np.float64]:
    """Rows of numbers; null becomes NaN."""
    rows = found.listed(key)
    if len(rows) != size or any(not isinstance(row, list) or len(row) != size for row in rows):
        raise ReportError(f"{found.where}: {key} should be {size} rows of {size} numbers.")
    try:
        grid: NDArray[np.float64] = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ReportError(f"{found.where}: {key} should hold numbers only.") from error
    return grid


def _union(found: Fields) -> ThreatUnion:
    average = found.inside("average")
    ends = average.numbers("interval")
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        raise ReportError(f"{average.where}: interval should be two numbers.")
    return ThreatUnion(
        clean=_share(found.inside("clean")),
        threats=tuple((entry.text("text"), _share(entry)) for entry in found.objects("threats")),
        union=_share(found.inside("union")),
        average=average.number("accuracy"),
        average_ends=(ends[0], ends[1]),
    )


def _share(entry: Fields) -> Proportion:
    return entry.proportion("robust", "interval")
