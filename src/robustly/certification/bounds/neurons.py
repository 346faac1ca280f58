"""Neurons whose bounds a backward pass computes: which matter, their rows, and chunks that fit into the cache."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robustly.certification.bounds.backward import Free
from robustly.certification.network import Graph
from robustly.certification.operations import RULES, Interval, Rows
from robustly.certification.sets import InputSet

Method = Literal["ibp", "crown", "forward"]
BOTH = (1, -1)
"""Sides of neurons: the rows themselves for lower bounds, the negated rows for upper bounds."""
_CHUNK = 2**19
"""Values of a chunk of rows in the widest node: chunks fit into the cache."""
_KINKED = ("relu", "leaky_relu", "abs")
_MIXING = ("linear", "conv", "conv_transpose", "avg_pool", "adaptive_avg_pool", "sum")
_ONE_TO_ONE = ("input", "constant", "scale", "reshape", "transpose", "slice", "gather", "pad", "expand")


@dataclass(frozen=True)
class Wanted:
    """Neurons of one node whose bounds a backward pass computes.

    Args:
        index: positions in the flattened output: `(B, K)`, repeated where an example has fewer than K; or `(R,)`.
        example: example of each position, `(R,)`; None for `(B, K)`.
    """

    index: Tensor
    example: Tensor | None = None


def targets_of(graph: Graph) -> frozenset[int]:
    """Nodes that a nonlinear operation reads, without the input and without other elementwise operations.

    The interval of an activation follows from that of its input, which is bounded already.
    """
    read = {source for node in graph.nodes[1:] if RULES[node.op].relax is not None for source in node.inputs}
    return frozenset(one for one in read - {0} if not _is_elementwise(graph, one))


def _is_elementwise(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    return RULES[node.op].relax is not None and len(node.inputs) == 1 and node.shape == node.input_shapes[0]


def choose(graph: Graph, index: int, interval: Interval) -> Wanted | None:
    """The neurons of a node whose bounds matter, None if there are none.

    Where only operations with a kink at 0 read the node, these are the neurons whose interval contains 0. Where the
    next operation is a max pool or another nonlinear one, they are all that are not 0 behind the kink.
    """
    low, high = interval.lower.detach().flatten(1), interval.upper.detach().flatten(1)
    open_ = low < high
    if has_kinks(graph, index):
        open_ = (high > 0) & ((low < 0) | _range_matters(graph, index)) & open_
    if len(graph.nodes[index].shape) == 3:
        example, place = open_.nonzero(as_tuple=True)
        return Wanted(place, example) if len(place) else None
    count = int(open_.sum(1).max()) if len(open_) else 0
    if not count:
        return None
    order = open_.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return Wanted(order[:, :count])


def has_kinks(graph: Graph, index: int) -> bool:
    """Return True if all nonlinear operations that read a node are linear on either side of 0."""
    return all(
        node.op in _KINKED for node in graph.nodes if index in node.inputs and RULES[node.op].relax is not None
    )


def ends_at_zero(graph: Graph, index: int) -> bool:
    """Return True if only ReLUs read a node, so that a lower bound does not matter where the upper one is 0."""
    return all(node.op == "relu" for node in graph.nodes if index in node.inputs) and index != graph.output


def _range_matters(graph: Graph, index: int) -> bool:
    """Return True if a nonlinear operation reads an activation of a node."""
    activations = {one for one, node in enumerate(graph.nodes) if index in node.inputs}
    return any(
        RULES[node.op].relax is not None and activations & set(node.inputs) and node.op not in _KINKED
        for node in graph.nodes[1:]
    )


def is_refined(graph: Graph, index: int, inputs: InputSet, method: Method = "crown") -> bool:
    """Return True if a backward pass can improve on the intervals of a node."""
    mixing, chain = 0, True
    while index:
        node = graph.nodes[index]
        mixing += node.op in _MIXING
        chain = chain and len(node.inputs) == 1 and node.op in (*_MIXING, *_ONE_TO_ONE)
        if not chain:
            break
        index = node.inputs[0]
    if chain:  # linear in the input: intervals are exact for a box if values are mixed once
        return inputs.ball is not None or mixing > 1
    return method == "crown"


def neuron_rows(
    graph: Graph, index: int, wanted: Wanted, dtype: torch.dtype, sides: Sequence[int] = BOTH
) -> tuple[int, Rows, Tensor | None]:
    """Rows that select neurons, times 1 or -1 for each side: the node over which they stand, rows, their offset."""
    axis = 0 if wanted.example is not None else 1
    at, rows, offset = _start(graph, index, wanted, dtype)
    both = rows.with_coefficients(torch.cat([side * rows.coefficients for side in sides], axis))
    if wanted.example is not None and rows.offset is not None:
        first, last = int(wanted.example[0]), int(wanted.example[-1])
        both = replace(
            both,
            example=wanted.example.repeat(len(sides)),
            offset=rows.offset.repeat(len(sides), 1),
            one=first if first == last else None,
        )
    return at, both, None if offset is None else torch.cat([side * offset for side in sides], axis)


def _start(graph: Graph, index: int, wanted: Wanted, dtype: torch.dtype) -> tuple[int, Rows, Tensor | None]:
    """Rows that select neurons; of a linear node they are its weights, as rows over the node's input."""
    node = graph.nodes[index]
    if wanted.example is None:
        if node.op == "linear" and len(node.shape) == 1:
            bias = node.constants.get("bias")
            rows = Rows(node.constants["weight"][wanted.index])
            return node.inputs[0], rows, None if bias is None else bias[wanted.index]
        ones = torch.zeros(*wanted.index.shape, node.size, dtype=dtype, device=wanted.index.device)
        ones.scatter_(2, wanted.index.unsqueeze(2), 1.0)
        return index, Rows(ones.view(*wanted.index.shape, *node.shape)), None
    channels, height, width = node.shape
    channel, place = wanted.index // (height * width), wanted.index % (height * width)
    ones = torch.nn.functional.one_hot(channel, channels).to(dtype).view(-1, channels, 1, 1)
    corner = torch.stack([place // width, place % width], 1)
    return index, Rows(ones, wanted.example, corner, (height, width)), None


def chunks(
    graph: Graph, index: int, wanted: Wanted, free: Mapping[int, Free] | None, sides: Sequence[int] = BOTH
) -> Iterator[tuple[Wanted, Mapping[int, Free] | None]]:
    """Parts of the chosen neurons, with the free parameters of their rows."""
    axis = 0 if wanted.example is not None else 1
    count = wanted.index.shape[axis]
    if wanted.example is not None:
        spans = _spans(wanted.example, max(16, _CHUNK // (len(sides) * _widest_window(graph, index))))
    else:
        widest = max(graph.nodes[one].size for one in graph.needed_for([index]))
        size = max(1, _CHUNK // (len(sides) * widest * len(wanted.index)))
        size = max(1, -(-count // max(1, -(-count // size))))
        spans = [(start, min(size, count - start)) for start in range(0, count, size)]
    for start, size in spans:
        example = None if wanted.example is None else wanted.example[start : start + size]
        slopes = None
        if free is not None:
            slopes = {one: _of_rows(value, axis, start, size, count) for one, value in free.items()}
        yield Wanted(wanted.index.narrow(axis, start, size), example), slopes


def _spans(example: Tensor, most: int) -> list[tuple[int, int]]:
    """Start and length of chunks of at most that many rows; rows of one example share chunks if they are many."""
    spans: list[tuple[int, int]] = []
    start, shared = 0, False
    _, counts = torch.unique_consecutive(example, return_counts=True)
    for count in counts.tolist():
        if shared and spans[-1][1] + count <= most:
            spans[-1] = (spans[-1][0], spans[-1][1] + count)
        else:
            spans += [(start + first, min(most, count - first)) for first in range(0, count, most)]
        shared = count <= most // 4
        start += count
    return spans


def _widest_window(graph: Graph, index: int) -> int:
    """Number of values of the largest window to which one value of a node grows on its way to the input."""
    windows = {index: (1, 1)}
    widest = 1
    for at in range(index, 0, -1):
        if at not in windows:
            continue
        node, (height, width) = graph.nodes[at], windows[at]
        for source in node.inputs:
            shape = graph.nodes[source].shape
            if len(shape) != 3 or len(node.shape) != 3:
                widest = max(widest, graph.nodes[source].size)
                windows[source] = (10**6, 10**6)
                continue
            kernel = (
                node.constants["weight"].shape[2:] if node.op == "conv" else node.settings.get("kernel", (1, 1))
            )
            stride = node.settings.get("stride", (1, 1))
            old = windows.get(source, (1, 1))
            grown = [
                min(limit, max(before, (size - 1) * step + reach))
                for before, size, step, reach, limit in zip(
                    old, (height, width), stride, kernel, shape[1:], strict=True
                )
            ]
            windows[source] = (int(grown[0]), int(grown[1]))
            widest = max(widest, shape[0] * windows[source][0] * windows[source][1])
    return widest


def _of_rows(free: Free, axis: int, start: int, size: int, count: int) -> Free:
    if not free.per_row or size >= count:
        return free
    parts = [free.values.narrow(axis, first, size) for first in (start, count + start)]
    return Free(torch.cat(parts, axis), True)
