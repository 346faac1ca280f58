"""The backward pass: lower bounds of rows over a node's output, from linear bounds of all operations before it.

Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions" (NeurIPS 2018).
Upper bounds do not occur: the upper bound of a row is minus the lower bound of the negated row.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustly.certification.bounds.rounding import relative_error, row_magnitude
from robustly.certification.network import Graph, Node
from robustly.certification.operations import RULES, Interval, Relaxation, Rows, Rule, add_rows
from robustly.certification.sets import InputSet

Relaxations = MutableMapping[int, Relaxation]
Sizes = MutableMapping[int, Tensor]


@dataclass(frozen=True)
class Free:
    """Free parameters in [0, 1] of one operation's relaxation.

    Args:
        values: `(B, *shape)`, shared by all rows; or, if `per_row`, with the leading axes of the rows.
        per_row: whether every row has its own.
    """

    values: Tensor
    per_row: bool


@dataclass(frozen=True)
class Bounded:
    """Lower bounds of rows.

    Args:
        value: lower bound of each row over the input set, with the leading axes of the rows.
        rows: rows over the input; None if the rows do not depend on it. `rows @ x + bias` is at most the value of
            the function at every x of the set.
        bias: with the leading axes of the rows.
        at: the rows over the output of each relaxed operation, by node, if they were kept.
    """

    value: Tensor
    rows: Rows | None
    bias: Tensor
    at: Mapping[int, Rows]


def lower(
    graph: Graph,
    at: int,
    rows: Rows,
    inputs: InputSet,
    bounds: Mapping[int, Interval],
    *,
    offset: Tensor | None = None,
    free: Mapping[int, Free] | None = None,
    added: Mapping[int, Tensor] | None = None,
    relaxations: Relaxations | None = None,
    sizes: Sizes | None = None,
    keep: bool = False,
    exact: bool = False,
    rounding: bool = False,
    local: bool = False,
) -> Bounded:
    """Lower bounds of rows over the output of a node.

    Args:
        graph: the network.
        at: the node over whose output the rows stand.
        rows: the rows.
        inputs: the input sets.
        bounds: bounds of every node before `at`.
        offset: constant part of each row, with its leading axes.
        free: free parameters of relaxations, by node; others are the standard ones.
        added: numbers that are added to the coefficients at a node, by node: multipliers of split constraints.
        relaxations: relaxations that are shared between calls with equal bounds; filled by the call.
        sizes: largest sizes of the values of nodes, for `rounding`, shared like the relaxations.
        keep: keep the rows over the output of each relaxed operation.
        exact: find the exact least value over a ball inside a box.
        rounding: subtract a bound of all rounding errors, so that the value holds in real arithmetic.
        local: stop at the first operations that are not linear and use their bounds: interval arithmetic with the
            rows folded into the last linear operations.
    """
    bias = torch.zeros(rows.leading, dtype=rows.coefficients.dtype, device=rows.coefficients.device)
    bias = bias if offset is None else bias + offset
    relaxations = {} if relaxations is None else relaxations
    sizes = {} if sizes is None else sizes
    pending: dict[int, Rows] = {at: rows}
    kept: dict[int, Rows] = {}
    lost = torch.zeros_like(bias)
    for index in range(at, 0, -1):
        current = pending.pop(index, None)
        if current is None:
            continue
        node = graph.nodes[index]
        rule = RULES[node.op]
        if added is not None and index in added:
            current = current.with_coefficients(current.coefficients + added[index])
        if not rule.windows:
            current = current.dense()
        if local and rule.relax is not None:
            bias = bias + InputSet(*bounds[index]).least(current)
            lost = lost + relative_error(node.size) * row_magnitude(current, bounds[index]) if rounding else lost
            continue
        relaxation = _relaxation(node, index, rule, current, bounds, free, relaxations)
        if keep and rule.relax is not None:
            kept[index] = current
        if rounding:
            lost = lost + _lost(graph, index, rule, current, bounds, sizes)
        pushed = rule.backward(node, current, relaxation)
        if pushed.bias is not None:
            bias = bias + pushed.bias
        for source, part in zip(node.inputs, pushed.inputs, strict=True):
            if part is not None:
                pending[source] = add_rows(pending.get(source), part)
    return _at_inputs(graph, inputs, pending.get(0), bias, lost, kept, added, exact=exact, rounding=rounding)


def _at_inputs(
    graph: Graph,
    inputs: InputSet,
    rows: Rows | None,
    bias: Tensor,
    lost: Tensor,
    kept: Mapping[int, Rows],
    added: Mapping[int, Tensor] | None,
    *,
    exact: bool,
    rounding: bool,
) -> Bounded:
    """Least values over the input sets of rows that have arrived there."""
    if rows is None:
        return Bounded(_finite(bias - lost) if rounding else bias - lost, None, bias - lost, kept)
    if added is not None and 0 in added:
        rows = rows.with_coefficients(rows.coefficients + added[0])
    if rounding:
        terms = graph.nodes[0].size + len(graph.nodes)
        lost = lost + relative_error(terms) * row_magnitude(rows, inputs.interval())
    value = inputs.least(rows, exact=exact) + (bias - lost)
    return Bounded(_finite(value) if rounding else value, rows, bias - lost, kept)


def _finite(value: Tensor) -> Tensor:
    """Bounds without numbers that overflow made, which prove nothing."""
    return torch.where(value.isfinite(), value, -torch.inf)


def _relaxation(
    node: Node,
    index: int,
    rule: Rule,
    rows: Rows,
    bounds: Mapping[int, Interval],
    free: Mapping[int, Free] | None,
    relaxations: Relaxations,
) -> Relaxation | None:
    if rule.relax is None:
        return None
    intervals = [bounds[source] for source in node.inputs]
    chosen = None if free is None else free.get(index)
    if chosen is not None and chosen.per_row:
        gathered = [Interval(rows.gather(one.lower), rows.gather(one.upper)) for one in intervals]
        return replace(rule.relax(node, gathered, chosen.values), per_row=True)
    if chosen is not None:
        return rule.relax(node, intervals, chosen.values)
    if index not in relaxations:
        relaxations[index] = rule.relax(node, intervals, None)
    return relaxations[index]


def _lost(graph: Graph, index: int, rule: Rule, rows: Rows, bounds: Mapping[int, Interval], sizes: Sizes) -> Tensor:
    """Bound of the rounding errors of moving rows through a node, with the leading axes of the rows."""
    node = graph.nodes[index]
    terms = rule.terms(node) + (4 if rule.relax is not None else 0)
    if not terms:
        return torch.zeros((), dtype=rows.coefficients.dtype)
    if index not in sizes:
        sizes[index] = _largest(node, rule, [bounds[one] for one in node.inputs])
    size = sizes[index]
    return relative_error(terms + node.size + len(graph.nodes)) * row_magnitude(rows, Interval(-size, size))


def _largest(node: Node, rule: Rule, inputs: list[Interval]) -> Tensor:
    """Largest sizes of intermediate results in the values of a node, `(B, *shape)`."""
    sources = [torch.maximum(one.lower.abs(), one.upper.abs()) for one in inputs]
    reached = rule.interval(node, [Interval(-size, size) for size in sources])
    size = torch.maximum(reached.lower.abs(), reached.upper.abs())
    if rule.relax is not None:  # lines may leave the range of the function: their slopes are at most about 1
        size = 3 * (size + sum(one for one in sources if one.shape == size.shape))
    return size
