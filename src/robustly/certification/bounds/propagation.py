"""Bounds of every node of a network: intervals, and backward linear bounds of the neurons for which they matter."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustly.certification.bounds.backward import Free, Relaxations, Sizes, lower
from robustly.certification.bounds.forward import forward
from robustly.certification.bounds.neurons import (
    BOTH,
    Method,
    Wanted,
    choose,
    chunks,
    ends_at_zero,
    is_refined,
    neuron_rows,
    targets_of,
)
from robustly.certification.bounds.rounding import widened
from robustly.certification.network import Graph
from robustly.certification.operations import RULES, Interval
from robustly.certification.sets import InputSet

Bounds = dict[int, Interval]


class UnsoundBoundsError(ArithmeticError):
    """A lower bound exceeds its upper bound by more than rounding explains."""


def ibp(graph: Graph, inputs: InputSet, *, rounding: bool = False) -> Bounds:
    """Intervals of every node (Gowal et al., "On the Effectiveness of Interval Bound Propagation", 2018).

    For a ball, the first operations that read the input get the exact bounds of the ball.
    """
    return intermediate(graph, inputs, method="ibp", rounding=rounding)


def intermediate(
    graph: Graph,
    inputs: InputSet,
    *,
    method: Method = "crown",
    known: Mapping[int, Interval] | None = None,
    free: Mapping[int, Mapping[int, Free]] | None = None,
    wanted: Mapping[int, Wanted] | None = None,
    rounding: bool = False,
) -> Bounds:
    """Bounds of every node over the input sets, each the intersection of all that is known.

    Args:
        graph: the network.
        inputs: the input sets of B examples.
        method: how nodes are bounded that a nonlinear operation reads; others by intervals.
        known: bounds that hold already, by node, such as those of a larger input set.
        free: free parameters of the relaxations, by bounded node and relaxed node. Parameters per row belong to
            the rows of `wanted`: first all lower bounds, then all upper bounds.
        wanted: which neurons a backward pass bounds, by node; else those where the intervals leave a kink open.
        rounding: widen by a bound of all rounding errors.

    Raises:
        UnsoundBoundsError: bounds cross, which no rounding explains.
    """
    targets = targets_of(graph)
    bounds: Bounds = {0: inputs.interval()}
    relaxations: Relaxations = {}
    sizes: Sizes | None = {} if rounding else None
    if method == "forward" and rounding:
        raise ValueError("forward bounds do not bound rounding errors: prove with method='crown'")
    linear = forward(graph, inputs) if method == "forward" else {}
    batch = len(inputs.lower)
    for index, node in enumerate(graph.nodes[1:], start=1):
        sources = [bounds[one] for one in node.inputs]
        alone = interval = RULES[node.op].interval(node, sources)
        if rounding:
            alone = interval = widened(node, interval, sources)
        for other in (known, linear):
            if other is not None and index in other:
                interval = intersection(interval, other[index])
        interval = finite_or_open(interval) if rounding else interval
        if not node.inputs:  # a constant
            interval = Interval(*(side.expand(batch, *node.shape) for side in interval))
        bounds[index] = interval
        if index in targets and is_refined(graph, index, inputs, method):
            chosen = wanted.get(index) if wanted is not None else choose(graph, index, interval)
            if chosen is not None and chosen.index.numel():
                slopes = None if free is None else free.get(index)
                refined = _refined(graph, index, inputs, bounds, chosen, slopes, relaxations, sizes)
                bounds[index] = finite_or_open(refined) if rounding else refined
        if bounds[index] is not alone:
            _check(graph, index, bounds[index])
    return bounds


def _refined(
    graph: Graph,
    index: int,
    inputs: InputSet,
    bounds: Bounds,
    wanted: Wanted,
    free: Mapping[int, Free] | None,
    relaxations: Relaxations,
    sizes: Sizes | None,
) -> Interval:
    """Bounds of a node with a backward pass for the chosen neurons."""

    def least(some: Wanted, sides: Sequence[int]) -> list[Tensor]:
        """Lower bounds of neurons times each side."""
        parts = []
        for part, slopes in chunks(graph, index, some, free, sides):
            at, rows, shift = neuron_rows(graph, index, part, current.lower.dtype, sides)
            found = lower(
                graph,
                at,
                rows,
                inputs,
                bounds,
                offset=shift,
                free=slopes,
                relaxations=relaxations,
                sizes=sizes,
                rounding=sizes is not None,
            )
            parts.append(found.value.chunk(len(sides), axis))
        return [torch.cat(one, axis) for one in zip(*parts, strict=True)]

    current = bounds[index]
    shape = current.lower.shape
    axis = 0 if wanted.example is not None else 1
    place = wanted.index
    if wanted.example is not None:
        place = wanted.example * graph.nodes[index].size + place
    flat = 0 if wanted.example is not None else 1
    low, high = current.lower.flatten(flat), current.upper.flatten(flat)
    if wanted.example is not None and free is None and ends_at_zero(graph, index):
        high = high.scatter(flat, place, torch.minimum(high.gather(flat, place), -least(wanted, (-1,))[0]))
        rest = (high.gather(flat, place) > 0).nonzero().squeeze(1)
        if len(rest):
            found = least(Wanted(wanted.index[rest], wanted.example[rest]), (1,))[0]
            low = low.scatter(flat, place[rest], torch.maximum(low.gather(flat, place[rest]), found))
        return Interval(low.view(shape), high.view(shape))
    found, negated = least(wanted, BOTH)
    low = low.scatter(flat, place, torch.maximum(low.gather(flat, place), found))
    high = high.scatter(flat, place, torch.minimum(high.gather(flat, place), -negated))
    return Interval(low.view(shape), high.view(shape))


def finite_or_open(interval: Interval) -> Interval:
    """An interval without the ends that overflow made NaN or infinite on the wrong side: nothing is known there."""
    lower, upper = interval
    return Interval(
        torch.where(lower < torch.inf, lower, -torch.inf), torch.where(upper > -torch.inf, upper, torch.inf)
    )


def intersection(first: Interval, second: Interval) -> Interval:
    """The values in both of two intervals."""
    return Interval(torch.maximum(first.lower, second.lower), torch.minimum(first.upper, second.upper))


def _check(graph: Graph, index: int, interval: Interval) -> None:
    if not bool((interval.lower > interval.upper).any()):
        return
    crossed = (interval.lower - interval.upper).detach()
    size = 1 + torch.maximum(interval.lower.detach().abs(), interval.upper.detach().abs())
    tolerance = 1e3 * torch.finfo(crossed.dtype).eps
    if bool((crossed > tolerance * len(graph.nodes) * size).any()):
        node = graph.nodes[index]
        raise UnsoundBoundsError(
            f"{graph.source}: the bounds of node {node.name!r} ({node.op}) cross by {float(crossed.max()):g}"
        )
