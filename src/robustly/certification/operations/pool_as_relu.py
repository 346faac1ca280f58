"""Max pools as differences and ReLUs, `max(a, b) = b + relu(a - b)`, which branch and bound can split."""

from dataclasses import replace

import torch

from robustly.certification.network import Graph, Node
from robustly.certification.operations.pooling import taps


def max_pool_as_relu(graph: Graph) -> Graph:
    """The same network without max pools: the maximum along one axis after the other, each a chain of ReLUs."""
    made: list[Node] = []
    place: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        moved = replace(node, inputs=tuple(place[one] for one in node.inputs))
        if node.op == "max_pool":
            for axis in range(len(node.shape) - 1):
                source = moved.inputs[0] if axis == 0 else len(made) - 1
                made.extend(_along(moved, axis, source, len(made)))
        else:
            made.append(moved)
        place[index] = len(made) - 1
    return replace(graph, nodes=tuple(made))


def _along(node: Node, axis: int, source: int, start: int) -> list[Node]:
    """Nodes of the maximum along one axis, the last of them the result; `start` is the index of the first."""
    shape = (*node.shape[: 2 + axis], *node.input_shapes[0][2 + axis :])
    nodes: list[Node] = []
    largest = -1
    for count, places in enumerate(_read(taps(node, axis))):
        name = f"{node.name}/axis{axis}/{count}"
        nodes.append(_selection(name, axis + 1, places, source, shape))
        taken = start + len(nodes) - 1
        if count == 0:
            largest = taken
            continue
        for op, inputs in (("sub", (largest, taken)), ("relu", (taken + 1,)), ("add", (taken, taken + 2))):
            nodes.append(Node(f"{name}/{op}", op, inputs, shape))
        largest = start + len(nodes) - 1
    return nodes


def _read(table: list[list[int]]) -> list[list[int]]:
    """The table of taps with a place of the same window instead of padding, without equal taps."""
    real = [[place for place in window if place >= 0] for window in zip(*table, strict=True)]
    filled = [[place if place >= 0 else real[at][0] for at, place in enumerate(row)] for row in table]
    return [row for count, row in enumerate(filled) if row not in filled[:count]]


def _selection(name: str, axis: int, places: list[int], source: int, shape: tuple[int, ...]) -> Node:
    """A slice if the places are evenly spaced, else a gather."""
    step = places[1] - places[0] if len(places) > 1 else 1
    if step > 0 and places == list(range(places[0], places[-1] + 1, step)):
        settings = {"axis": axis, "start": places[0], "stop": places[-1] + 1, "step": step}
        return Node(name, "slice", (source,), shape, settings)
    return Node(name, "gather", (source,), shape, {"axis": axis}, {"index": torch.tensor(places)})
