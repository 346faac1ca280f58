"""Evaluation of a graph on a batch of inputs."""

from typing import Literal, overload

from torch import Tensor

from robustly.certification.network.graph import INPUT, Graph
from robustly.certification.operations import RULES


@overload
def evaluate(graph: Graph, x: Tensor, keep: Literal[False] = False) -> Tensor: ...


@overload
def evaluate(graph: Graph, x: Tensor, keep: Literal[True]) -> dict[int, Tensor]: ...


def evaluate(graph: Graph, x: Tensor, keep: bool = False) -> Tensor | dict[int, Tensor]:
    """Outputs of a network.

    Args:
        graph: the network.
        x: inputs, `(B, *graph.input_shape)`.
        keep: return the output of every node.

    Returns:
        Outputs `(B, graph.outputs)`; with `keep` the output `(B, *node.shape)` of each node, by its index, and
        `(1, *node.shape)` of a constant.

    Raises:
        ValueError: inputs of another shape.
    """
    if tuple(x.shape[1:]) != graph.input_shape:
        raise ValueError(
            f"{graph.source}: inputs of shape {tuple(x.shape[1:])} do not fit the network's input "
            f"{graph.input_shape}; the first axis of a batch counts its examples"
        )
    last = {one: index for index, node in enumerate(graph.nodes) for one in node.inputs}
    values: dict[int, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        inputs = [values[one] for one in node.inputs]
        if node.op == INPUT:
            values[index] = x
        else:
            values[index] = RULES[node.op].evaluate(node, inputs)
        if not keep:
            for one in set(node.inputs):
                if last[one] == index:
                    del values[one]
    if keep:
        return values
    return values[graph.output].expand(len(x), *graph.nodes[-1].shape).flatten(1)
