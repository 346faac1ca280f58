"""Proofs: optimised bounds computed again bottom-up in float64, with a bound of all rounding errors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from robustly.certification.bounds.alpha import Slopes, rows_of_disjuncts
from robustly.certification.bounds.ascent import combined
from robustly.certification.bounds.backward import Free, lower
from robustly.certification.bounds.propagation import Bounds, intermediate
from robustly.certification.bounds.rounding import relative_error, row_magnitude
from robustly.certification.network import Graph
from robustly.certification.operations import Interval, Rows
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification


def proved(graph: Graph, inputs: InputSet, spec: Specification, slopes: Slopes) -> Tensor:
    """Lower bounds of each disjunct that hold in real arithmetic, `(B, D)`; a property with positive ones holds.

    No float32 number enters but the slopes, and every slope gives a bound that holds.

    Args:
        graph: the network in float64.
        inputs: the input sets in float64.
        spec: the specification in float64.
        slopes: what `optimise` or `tighten` returned; `Slopes()` for the standard relaxations.
    """
    bounds = proved_bounds(graph, inputs, slopes)
    index = rows_of_disjuncts(spec)
    batch, (disjuncts, most) = len(spec.rows), index.shape
    weights = slopes.weights
    if weights is None and most > 1:  # without weights each row stands for itself
        free = {key: one.repeat_interleave(most, 1) for key, one in slopes.last.items()}
        every = _values(
            graph, spec.rows[:, index].flatten(1, 2), spec.offset[:, index].flatten(1), inputs, bounds, free
        )
        return every.view(batch, disjuncts, most).amax(2)
    rows = Rows(spec.rows[:, index].flatten(0, 1))
    offset = spec.offset[:, index].flatten(0, 1)
    rows, offset = proof_rows(
        rows, offset, None if weights is None else weights.flatten(0, 1), repeated(bounds[graph.output], disjuncts)
    )
    return _values(
        graph,
        rows.coefficients.view(batch, disjuncts, spec.rows.shape[2]),
        offset.view(batch, disjuncts),
        inputs,
        bounds,
        slopes.last,
    )


def proved_bounds(graph: Graph, inputs: InputSet, slopes: Slopes) -> Bounds:
    """Bounds of every node that hold in real arithmetic."""
    free = {
        index: {key: Free(one.values.to(torch.float64), one.per_row) for key, one in parts.items()}
        for index, parts in slopes.free.items()
    }
    with torch.no_grad():
        return intermediate(graph, inputs, wanted=slopes.wanted, free=free, rounding=True)


def proof_rows(rows: Rows, offset: Tensor, weight: Tensor | None, output: Interval) -> tuple[Rows, Tensor]:
    """Combined rows `(P, 1, *shape)` and their offset, less the rounding errors of the combination.

    Args:
        rows: rows `(P, K, *shape)` of P examples.
        offset: constant parts, `(P, K)`.
        weight: weights, `(P, K)`; ignored if K is 1.
        output: bounds of the output of each example.
    """
    count = rows.coefficients.shape[1]
    if count == 1 or weight is None:
        return rows, offset
    weight = weight.to(torch.float64)
    found, constant = combined(rows, offset, weight)
    sizes, constants = combined(rows.with_coefficients(rows.coefficients.abs()), offset.abs(), weight)
    assert constant is not None
    assert constants is not None
    return found, constant - relative_error(count + 4) * (row_magnitude(sizes, output) + constants)


def repeated(interval: Interval, times: int) -> Interval:
    """Bounds of each example, that many times."""
    return Interval(interval.lower.repeat_interleave(times, 0), interval.upper.repeat_interleave(times, 0))


def _values(
    graph: Graph, rows: Tensor, offset: Tensor, inputs: InputSet, bounds: Bounds, last: Mapping[int, Tensor]
) -> Tensor:
    shape = graph.nodes[graph.output].shape
    free = {key: Free(one.to(torch.float64), True) for key, one in last.items()}
    with torch.no_grad():
        found = lower(
            graph,
            graph.output,
            Rows(rows.view(*rows.shape[:2], *shape)),
            inputs,
            bounds,
            offset=offset,
            free=free,
            exact=inputs.ball is not None,
            rounding=True,
        ).value
    return torch.where(found.isnan(), -torch.inf, found)
