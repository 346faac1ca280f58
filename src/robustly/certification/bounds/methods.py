"""Margins of a specification by the methods without search."""

from typing import Literal

import torch
from torch import Tensor

from robustly.certification.bounds.backward import lower
from robustly.certification.bounds.propagation import Bounds, intermediate
from robustly.certification.network import Graph
from robustly.certification.operations import Rows
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification

BoundMethod = Literal["ibp", "crown_ibp", "crown", "forward"]
METHODS: tuple[BoundMethod, ...] = ("ibp", "crown_ibp", "crown", "forward")


def margins(graph: Graph, inputs: InputSet, spec: Specification, method: BoundMethod) -> Tensor:
    """Lower bounds of all rows of a specification over the input sets, `(B, R)`.

    Args:
        graph: the network.
        inputs: the input sets of B examples.
        spec: the specification of each example.
        method: "ibp" (intervals; rows folded into the last linear operations), "crown_ibp" (backward bounds over
            intervals), "crown" (backward bounds everywhere), "forward" (backward bounds over forward bounds).
    """
    steps = {"ibp": "ibp", "crown_ibp": "ibp", "crown": "crown", "forward": "forward"}
    bounds = intermediate(graph, inputs, method=steps[method])  # type: ignore[arg-type]
    found = row_bounds(graph, inputs, spec, bounds, local=True)
    return found if method == "ibp" else torch.maximum(found, row_bounds(graph, inputs, spec, bounds))


def row_bounds(
    graph: Graph,
    inputs: InputSet,
    spec: Specification,
    bounds: Bounds,
    *,
    local: bool = False,
    rounding: bool = False,
) -> Tensor:
    """Lower bounds of all rows of a specification from bounds of the nodes, `(B, R)`; arguments as for `lower`."""
    rows = Rows(spec.rows.reshape(*spec.rows.shape[:2], *graph.nodes[graph.output].shape))
    exact = inputs.ball is not None and not local
    return lower(
        graph, graph.output, rows, inputs, bounds, offset=spec.offset, exact=exact, rounding=rounding, local=local
    ).value
