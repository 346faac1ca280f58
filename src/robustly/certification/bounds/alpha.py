"""Lower bounds with optimised slopes (alpha-CROWN): of the specification's rows, and of the neurons before them.

Xu et al., "Fast and complete: enabling complete neural network verification with rapid and massively parallel
incomplete verifiers" (ICLR 2021).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustly.certification.bounds.ascent import SLOPE, WEIGHT, Parameters, Raised, Task, ascend, lines_of
from robustly.certification.bounds.backward import Free, lower
from robustly.certification.bounds.neurons import (
    Wanted,
    choose,
    chunks,
    has_kinks,
    is_refined,
    neuron_rows,
    targets_of,
)
from robustly.certification.bounds.propagation import Bounds, intermediate, intersection
from robustly.certification.deadline import NEVER, Deadline
from robustly.certification.network import Graph
from robustly.certification.operations import RULES, Interval, Rows
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification

MOST_VALUES = 2**23
"""Default for the size of a node's rows that are optimised: a few seconds of work."""


@dataclass(frozen=True)
class Slopes:
    """Everything that is needed to compute optimised bounds again, bottom-up.

    Args:
        wanted: neurons with optimised bounds, by node; None if the nodes have their standard bounds.
        free: parameters of the relaxations for the rows of `wanted`, by bounded node and relaxed node.
        last: parameters for the rows of the specification, `(B, D, *shape)` for each disjunct, by relaxed node.
        weights: weights of the rows of each disjunct, `(B, D, K)`, in the order of `rows_of_disjuncts`.
    """

    wanted: Mapping[int, Wanted] | None = None
    free: Mapping[int, Mapping[int, Free]] = field(default_factory=dict)
    last: Mapping[int, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None


@dataclass(frozen=True)
class AlphaResult:
    """Bounds with optimised slopes.

    Args:
        margins: lower bound of the largest row, or of a convex combination of the rows, of each disjunct, `(B, D)`.
            A disjunct is refuted where it is positive; all must be for a proof.
        slopes: parameters with which the bounds were reached.
        bounds: bounds of every node.
    """

    margins: Tensor
    slopes: Slopes
    bounds: Bounds


def rows_of_disjuncts(spec: Specification) -> Tensor:
    """Indices of the rows of each disjunct, `(D, K)`; a disjunct with fewer than K rows repeats its first row."""
    if not spec.disjuncts:
        return torch.zeros(0, 1, dtype=torch.int64, device=spec.rows.device)
    members = [(spec.disjunct == one).nonzero().squeeze(1) for one in range(spec.disjuncts)]
    most = max(len(one) for one in members)
    return torch.stack([torch.cat([one, one[:1].expand(most - len(one))]) for one in members])


def optimise(
    graph: Graph,
    inputs: InputSet,
    spec: Specification,
    bounds: Bounds,
    *,
    iterations: int = 20,
    slopes: Slopes | None = None,
    goal: float | None = 0.0,
) -> AlphaResult:
    """Optimise the slopes for the rows of a specification, with fixed bounds of the nodes.

    Every disjunct has slopes of its own; one with several rows has weights that combine them. Disjuncts whose bound
    exceeds `goal` are left alone.

    Args:
        graph: the network.
        inputs: the input sets of B examples.
        spec: the specification of each example.
        bounds: bounds of every node.
        iterations: gradient steps.
        slopes: slopes with which `bounds` were computed, from `tighten`; None for the standard ones.
        goal: bound above which a disjunct counts as refuted; None to optimise all.
    """
    index = rows_of_disjuncts(spec)
    batch, (disjuncts, most) = len(spec.rows), index.shape
    shape = graph.nodes[graph.output].shape
    rows = Rows(spec.rows[:, index].reshape(batch * disjuncts, most, *shape))
    offset = spec.offset[:, index].reshape(batch * disjuncts, most)
    example = torch.arange(batch, device=index.device).repeat_interleave(disjuncts)
    inputs = inputs.select(example)
    seen = {key: Interval(one.lower[example], one.upper[example]) for key, one in bounds.items()}
    weights = torch.ones_like(offset)
    if most > 1:  # start from the row with the largest bound
        single = lower(graph, graph.output, rows, inputs, seen, offset=offset).value.argmax(1, keepdim=True)
        weights = torch.full_like(offset, 0.1 / most).scatter(1, single, 1.0)
    raised = raise_rows(graph, rows, offset, inputs, seen, weights, iterations=iterations, goal=goal)
    found = {key: value.view(batch, disjuncts, *value.shape[1:]) for key, value in raised.parameters.items()}
    last = {node: value.squeeze(2) for (kind, node), value in found.items() if kind == SLOPE}
    weights = found.get((WEIGHT, graph.output), weights.view(batch, disjuncts, most))
    result = replace(slopes or Slopes(), last=last, weights=weights)
    return AlphaResult(raised.value.view(batch, disjuncts), result, bounds)


def raise_rows(
    graph: Graph,
    rows: Rows,
    offset: Tensor,
    inputs: InputSet,
    bounds: Bounds,
    weights: Tensor,
    *,
    iterations: int,
    goal: float | None,
) -> Raised:
    """Optimise slopes and weights for combined rows `(P, K, *shape)` of P examples."""
    task = Task(graph, graph.output, rows, offset, inputs, bounds, {})
    parameters: Parameters = {(WEIGHT, graph.output): weights}
    with torch.no_grad():
        first = task.bounded(parameters, keep=True)
    lines, start = lines_of(graph, first.at, bounds)
    task = replace(task, lines=lines)
    if rows.coefficients.shape[1] > 1:
        start = {**start, **parameters}
    else:
        task = replace(task, rows=rows, offset=offset)
    rates, decay = schedule(iterations)
    if not start:
        return Raised(first.value.flatten(), {})
    return ascend(task, start, iterations=iterations, rates=rates, decay=decay, goal=goal)


def schedule(iterations: int) -> tuple[Mapping[str, float], float]:
    """Learning rates by kind of parameter, and their decay."""
    rate, decay = (0.25, 0.9) if iterations <= 50 else (0.1, 0.98)
    return {SLOPE: rate, WEIGHT: rate / 2}, decay


def tighten(
    graph: Graph,
    inputs: InputSet,
    *,
    known: Bounds | None = None,
    iterations: int = 20,
    most: int = MOST_VALUES,
    deadline: Deadline = NEVER,
) -> tuple[Bounds, Slopes]:
    """Bounds of every node, layer after layer, each row of an open neuron with slopes of its own.

    For fully connected networks this is the strongest start of a branch and bound. Its cost grows with the square
    of the number of neurons.

    Args:
        graph: the network.
        inputs: the input sets of B examples.
        known: bounds that hold already.
        iterations: gradient steps of each layer.
        most: number of coefficients of the rows of a node, summed over the nodes before it, above which its rows
            have standard slopes.
        deadline: moment after which the remaining nodes have standard slopes.
    """
    known = dict(known or {})
    wanted: dict[int, Wanted] = {}
    free: dict[int, dict[int, Free]] = {}
    for index in sorted(targets_of(graph)):
        bounds = intermediate(graph, inputs, known=known, wanted={})
        chosen = choose(graph, index, bounds[index]) if is_refined(graph, index, inputs) else None
        if chosen is None:
            continue
        wanted[index] = chosen
        if deadline.passed or _cost(graph, index, chosen) > most:
            known[index] = intermediate(graph, inputs, known=known, wanted={index: chosen})[index]
            continue
        parts = [
            _raised(graph, index, one, inputs, bounds, iterations) for one, _ in chunks(graph, index, chosen, None)
        ]
        axis = 0 if chosen.example is not None else 1
        values = [torch.cat([one[0][half] for one in parts], axis) for half in (0, 1)]
        free[index] = {
            key: Free(torch.cat([one[1][key][half] for half in (0, 1) for one in parts], axis), True)
            for key in parts[0][1]
        }
        known[index] = intersection(bounds[index], _scattered(bounds[index], chosen, values[0], -values[1]))
    return intermediate(graph, inputs, known=known, wanted={}), Slopes(wanted, free)


def _cost(graph: Graph, index: int, wanted: Wanted) -> int:
    """Number of coefficients of the rows of some neurons in all nodes before; a window counts as 1/4 of a plane."""
    sizes = sum(
        graph.nodes[one].size for one in graph.needed_for([index]) if one and RULES[graph.nodes[one].op].relax
    )
    return 2 * wanted.index.numel() * sizes // (4 if wanted.example is not None else 1)


def _raised(
    graph: Graph, index: int, wanted: Wanted, inputs: InputSet, bounds: Bounds, iterations: int
) -> tuple[tuple[Tensor, Tensor], dict[int, tuple[Tensor, Tensor]]]:
    """Optimised lower bounds of some neurons and of their negatives, and the slopes by relaxed node."""
    at, rows, offset = neuron_rows(graph, index, wanted, inputs.lower.dtype)
    leading = rows.leading
    if rows.example is None:
        example = torch.arange(leading[0], device=rows.coefficients.device).repeat_interleave(leading[1])
        rows = Rows(rows.coefficients.flatten(0, 1), example)
        offset = None if offset is None else offset.flatten()
    with torch.no_grad():
        first = lower(graph, at, rows, inputs, bounds, offset=offset, keep=True)
        lines, start = lines_of(graph, first.at, bounds)
        task = Task(graph, at, rows, offset, inputs, bounds, lines)
        value = task.bounded(start).value.clone()
        axis = len(leading) - 1
        low, high = value.view(leading).chunk(2, axis)
        kinked = has_kinks(graph, index)
        open_ = (low < 0) & (high < 0) if kinked else torch.ones_like(low, dtype=torch.bool)
        open_ = torch.cat([open_] * 2, axis).flatten().nonzero().squeeze(1)
    if len(open_) and start:
        rates, decay = schedule(iterations)
        chosen = {key: one[open_] for key, one in start.items()}
        goal = 0.0 if kinked else None
        raised = ascend(task.select(open_), chosen, iterations=iterations, rates=rates, decay=decay, goal=goal)
        value[open_] = raised.value
        for key, one in raised.parameters.items():
            start[key][open_] = one
    halves = value.view(leading).chunk(2, axis)
    slopes = {key: one.view(*leading, *one.shape[1:]).chunk(2, axis) for (_, key), one in start.items()}
    return (halves[0], halves[1]), {key: (one[0], one[1]) for key, one in slopes.items()}


def _scattered(old: Interval, wanted: Wanted, low: Tensor, high: Tensor) -> Interval:
    """Bounds of a node in which some neurons have new ones."""
    shape, flat = old.lower.shape, 0 if wanted.example is not None else 1
    place = wanted.index
    if wanted.example is not None:
        place = wanted.example * old.lower[0].numel() + place
    return Interval(
        old.lower.flatten(flat).scatter(flat, place, low).view(shape),
        old.upper.flatten(flat).scatter(flat, place, high).view(shape),
    )
