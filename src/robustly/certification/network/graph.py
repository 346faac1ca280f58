"""Intermediate graph of a network: nodes in topological order, each with an operation of the table of rules.

Shapes are those of one example, without the batch axis, and axes count from the first axis after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

INPUT = "input"


class UnsupportedOperationError(ValueError):
    """A network has an operation, a shape or a setting that the verifier cannot bound."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Args:
        name: name in the file or module from which the network was read.
        op: key in the table of rules; "input" for the first node.
        inputs: indices of the nodes that it reads, all smaller than its own.
        shape: shape of its output for one example.
        settings: constants that are not tensors: stride, axis, kernel size.
        constants: weights, by name.
        input_shapes: shapes of the nodes that it reads. A `Graph` fills them in.
    """

    name: str
    op: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    input_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def size(self) -> int:
        """Number of values of its output for one example."""
        size = 1
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True, eq=False)
class Graph:
    """A network with one input and one output.

    Args:
        nodes: the nodes in topological order; the first is the input, the last the output.
        source: what the network was read from, for messages.
    """

    nodes: tuple[Node, ...]
    source: str = "network"

    def __post_init__(self) -> None:
        if not self.nodes or self.nodes[0].op != INPUT:
            raise ValueError(f"{self.source}: the first node of a graph must be its input")
        for index, node in enumerate(self.nodes):
            if any(not 0 <= one < index for one in node.inputs):
                raise ValueError(f"{self.source}: node {node.name!r} reads a node that stands behind it")
        shapes = [node.shape for node in self.nodes]
        filled = [replace(node, input_shapes=tuple(shapes[one] for one in node.inputs)) for node in self.nodes]
        object.__setattr__(self, "nodes", tuple(filled))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.nodes[0].shape

    @property
    def output(self) -> int:
        """Index of the output node."""
        return len(self.nodes) - 1

    @property
    def outputs(self) -> int:
        """Number of output values for one example."""
        return self.nodes[-1].size

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "Graph":
        """The same network with constants of another type or on another device; whole numbers keep their type."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)

        nodes = [
            replace(node, constants={name: moved(value) for name, value in node.constants.items()})
            for node in self.nodes
        ]
        return replace(self, nodes=tuple(nodes))

    def needed_for(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Indices of all nodes on which the given nodes depend, themselves included, in order."""
        needed = set(indices)
        for index in range(len(self.nodes) - 1, -1, -1):
            if index in needed:
                needed.update(self.nodes[index].inputs)
        return tuple(sorted(needed))
