"""One ONNX node while it is read, and the nodes that it adds to a graph.

A computed tensor has its ONNX shape with a batch of 1. Its node has the same values in the same order, and the same
shape without the first axis where that axis has length 1. An operator that works on the first axis gets the whole
shape, between two reshapes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustly.certification.network import Node, UnsupportedOperationError

LARGEST = 2**27
"""Largest number of values of one tensor: 1 GiB in float64."""
Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Computed:
    """A tensor that depends on the input: index of its node, and its ONNX shape."""

    index: int
    shape: Shape


def drops(shape: Shape) -> bool:
    """Return True if the first axis is left out in the node's shape."""
    return len(shape) > 1 and shape[0] == 1


def home(shape: Shape) -> Shape:
    """Shape of the node of a tensor with an ONNX shape."""
    return shape[1:] if drops(shape) else shape or (1,)


@dataclass(frozen=True)
class Call:
    """One ONNX node while it is read.

    Args:
        name: its name, or that of its first output.
        op: its operator.
        source: the file.
        opset: version of the operator set.
        attributes: its attributes.
        inputs: computed tensors, constants, or None where an optional input is missing.
        results: number of its outputs.
        nodes: the nodes of the graph so far, to which its own are added.
    """

    name: str
    op: str
    source: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Computed | Array | None, ...]
    results: int
    nodes: list[Node]

    def refuse(self, reason: str) -> UnsupportedOperationError:
        """Error that names the operator, the node and the file."""
        return UnsupportedOperationError(f"{self.source}: operator {self.op!r} of node {self.name!r} {reason}")

    def x(self) -> Computed:
        """The first input, which is computed."""
        if not self.inputs or not isinstance(self.inputs[0], Computed):
            raise self.refuse("has a constant first input; only a computed one is supported")
        return self.inputs[0]

    def constant(self, position: int, what: str) -> Array | None:
        """One constant input; None if it is missing."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(value, Computed):
            raise self.refuse(f"has a computed {what}; only a constant one is supported")
        return value

    def integers(self, attribute: str, position: int = 1) -> list[int] | None:
        """Whole numbers of an attribute, or of an input in later operator sets; None if there are none."""
        found = self.attributes.get(attribute)
        found = self.constant(position, attribute) if found is None else found
        return None if found is None else [int(one) for one in np.ravel(found)]

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front."""
        if not -rank <= axis < rank:
            raise self.refuse(f"has axis {axis}, but its input has {rank} axes")
        return axis % rank

    def node(
        self,
        op: str,
        sources: Sequence[int],
        shape: Shape,
        settings: Mapping[str, Any] | None = None,
        constants: Mapping[str, Array] | None = None,
    ) -> int:
        """Index of a new node."""
        if any(length < 1 for length in shape) or math.prod(shape) > LARGEST:
            raise self.refuse(f"has an output of shape {list(shape)}; allowed are 1 to {LARGEST} values")
        if not all(np.isfinite(value).all() for value in (constants or {}).values()):
            raise self.refuse("has a weight that is NaN or infinite")
        tensors = {name: torch.from_numpy(np.array(value, order="C")) for name, value in (constants or {}).items()}
        self.nodes.append(Node(self.name, op, tuple(sources), shape, settings or {}, tensors))
        return len(self.nodes) - 1

    def view(self, index: int, shape: Shape) -> int:
        """Index of a node with the values of another one in another shape."""
        while self.nodes[index].shape != shape and self.nodes[index].op == "reshape":
            index = self.nodes[index].inputs[0]
        if self.nodes[index].shape == shape:
            return index
        if math.prod(shape) != self.nodes[index].size:
            raise self.refuse(f"gives {self.nodes[index].size} values the shape {list(shape)}")
        return self.node("reshape", [index], shape)

    def add(
        self,
        op: str,
        sources: Sequence[Computed],
        shape: Shape,
        settings: Mapping[str, Any] | None = None,
        constants: Mapping[str, Array] | None = None,
        whole: bool = False,
    ) -> Computed:
        """Add a node for an output of an ONNX shape; `whole` if it works on the first axis too."""
        whole = whole or not drops(sources[0].shape)
        indices = [self.view(one.index, one.shape) if whole else one.index for one in sources]
        index = self.node(op, indices, shape if whole else shape[1:], settings, constants)
        return Computed(self.view(index, home(shape)), shape)

    def same(self, op: str, x: Computed, **settings: Any) -> Computed:
        """Add an operation on each value."""
        return self.add(op, [x], x.shape, settings)

    def as_computed(self, value: Computed | Array) -> Computed:
        """A node for a constant."""
        if isinstance(value, Computed):
            return value
        shape = home(value.shape)
        return Computed(self.node("constant", [], shape, {}, {"value": value.reshape(shape)}), value.shape)

    def reshape(self, x: Computed, shape: Shape) -> Computed:
        """The same values in another shape."""
        return Computed(self.view(x.index, home(shape)), shape)

    def expand(self, x: Computed, shape: Shape) -> Computed:
        """Values repeated along axes of length 1."""
        x = self.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape)
        return x if x.shape == shape else self.add("expand", [x], shape, whole=x.shape[0] != shape[0])

    def transpose(self, x: Computed, order: Sequence[int]) -> Computed:
        """Axes in another order."""
        shape = tuple(x.shape[axis] for axis in order)
        long = [axis for axis in order if x.shape[axis] > 1]
        if long == sorted(long):
            return self.reshape(x, shape)
        first = int(drops(x.shape) and order[0] == 0)
        settings = {"permutation": tuple(axis - first for axis in order[first:])}
        return self.add("transpose", [x], shape, settings, whole=not first)

    def slice(self, x: Computed, axis: int, part: slice) -> Computed:
        """Part of one axis."""
        start, stop, step = part.indices(x.shape[axis])
        length = len(range(start, stop, step))
        settings = {"start": start, "stop": stop, "step": step}
        return x if length == x.shape[axis] and step == 1 else self._along("slice", x, axis, length, settings)

    def take(self, x: Computed, axis: int, index: Array) -> Computed:
        """Entries of one axis."""
        return self._along("gather", x, axis, len(index), {}, {"index": index.astype(np.int64)})

    def pad(self, x: Computed, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Computed:
        """Constant values before and after the last `len(pads)` axes."""
        if not any(map(any, pads)):
            return x
        full = [(0, 0)] * (len(x.shape) - len(pads)) + list(pads)
        shape = tuple(n + low + high for n, (low, high) in zip(x.shape, full, strict=True))
        first = int(drops(x.shape) and full[0] == (0, 0))
        order = tuple(one for pair in reversed(full[first:]) for one in pair)
        return self.add("pad", [x], shape, {"pads": order, "value": value}, whole=not first)

    def scale(self, x: Computed, factor: Any = None, shift: Any = None) -> Computed:
        """`factor x + shift`, with broadcasting on either side."""
        given = {"factor": np.asarray(1.0 if factor is None else factor, np.float64)}
        given["shift"] = np.asarray(0.0 if shift is None else shift, np.float64)
        shape = np.broadcast_shapes(x.shape, *(value.shape for value in given.values()))
        needed = {name: value for name, value in given.items() if (value != (name == "factor")).any()}
        node = self.nodes[x.index]
        plain = node.op == "linear" and "bias" not in node.constants and x.shape == shape
        if plain and list(needed) == ["shift"] and given["shift"].size == (given["shift"].shape or (1,))[-1]:
            bias = np.broadcast_to(given["shift"].ravel(), node.shape[-1:])
            constants = {"weight": node.constants["weight"].numpy(), "bias": bias}
            return Computed(self.node("linear", node.inputs, node.shape, {}, constants), shape)
        x = self.expand(x, shape)
        for name, value in needed.items():
            ranked = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
            needed[name] = ranked[0] if drops(shape) else ranked
        return self.add("scale", [x], shape, {}, needed) if needed else x

    def linear(self, x: Computed, weight: Array) -> Computed:
        """Product of the last axis with a matrix `(m, n)`."""
        if x.shape[-1:] != weight.shape[1:]:
            raise self.refuse(f"multiplies shapes that do not fit: {list(x.shape)}, {list(weight.T.shape)}")
        return self.add("linear", [x], (*x.shape[:-1], len(weight)), {}, {"weight": weight})

    def _along(
        self, op: str, x: Computed, axis: int, length: int, settings: dict[str, Any], constants: Any = None
    ) -> Computed:
        """Add a node that changes the length of one axis."""
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        settings["axis"] = axis - int(drops(x.shape) and axis > 0)
        return self.add(op, [x], shape, settings, constants, whole=axis == 0)
