"""One ONNX node while it is read, and the nodes that it adds to a graph.

A computed tensor has its ONNX shape with a batch of 1. Its node has the same values in the same order, and the same
shape without the first axis where that axis has length 1. An operator that works on the first axis gets the whole
shape, between two reshapes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustly.certification.network import UnsupportedOperationError
from robustly.certification.readers.building import Builder, Ref, Shape

Array = NDArray[Any]


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
        op: its operator.
        opset: version of the operator set.
        attributes: its attributes.
        inputs: computed tensors, constants, or None where an optional input is missing.
        results: number of its outputs.
        builder: the graph so far, to which its own nodes are added.
    """

    op: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Computed | Array | None, ...]
    results: int
    builder: Builder

    def refuse(self, reason: str) -> UnsupportedOperationError:
        """Error that names the operator, the node and the file."""
        return UnsupportedOperationError(f"{self.builder.place} {reason}")

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

    def ref(self, x: Computed, whole: bool = False) -> Ref:
        """The node of a tensor; with the whole ONNX shape on demand."""
        found = Ref(x.index, self.builder.nodes[x.index].shape)
        return self.builder.reshape(found, x.shape) if whole else found

    def computed(self, ref: Ref, shape: Shape) -> Computed:
        """The tensor of an ONNX shape with the values of a node."""
        return Computed(self.builder.reshape(ref, home(shape)).index, shape)

    def add(
        self,
        op: str,
        sources: Sequence[Computed],
        shape: Shape,
        settings: Mapping[str, Any] | None = None,
        constants: Mapping[str, Array] | None = None,
    ) -> Computed:
        """Add a node for an output of an ONNX shape."""
        whole = not drops(sources[0].shape)
        refs = [self.ref(one, whole) for one in sources]
        tensors = {name: _tensor(value) for name, value in (constants or {}).items()}
        return self.computed(self.builder.add(op, refs, shape if whole else shape[1:], settings, **tensors), shape)

    def same(self, op: str, x: Computed, **settings: Any) -> Computed:
        """Add an operation on each value."""
        return self.add(op, [x], x.shape, settings)

    def along(self, axis: int, change: Callable[..., Ref], *parts: Computed) -> Computed:
        """The result of `change(nodes, axis)`, which works on one axis of tensors."""
        first = int(drops(parts[0].shape) and axis > 0)
        made = change(*(self.ref(one, not first) for one in parts), axis - first)
        return self.computed(made, (1,) * first + made.shape)

    def as_computed(self, value: Computed | Array) -> Computed:
        """A node for a constant."""
        if isinstance(value, Computed):
            return value
        shape = home(value.shape)
        node = self.builder.add("constant", (), shape, value=_tensor(value).reshape(shape))
        return Computed(node.index, value.shape)

    def reshape(self, x: Computed, shape: Shape) -> Computed:
        """The same values in another shape."""
        return self.computed(self.ref(x), shape)

    def expand(self, x: Computed, shape: Shape) -> Computed:
        """Values repeated along axes of length 1."""
        x = self.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape)
        whole = not drops(x.shape) or x.shape[0] != shape[0]
        return self.computed(self.builder.expand(self.ref(x, whole), shape if whole else shape[1:]), shape)

    def transpose(self, x: Computed, order: Sequence[int]) -> Computed:
        """Axes in another order."""
        shape = tuple(x.shape[axis] for axis in order)
        long = [axis for axis in order if x.shape[axis] > 1]
        if long == sorted(long):
            return self.reshape(x, shape)
        first = int(drops(x.shape) and order[0] == 0)
        ref = self.ref(x, not first)
        return self.computed(self.builder.transpose(ref, [axis - first for axis in order[first:]]), shape)

    def slice(self, x: Computed, axis: int, part: slice) -> Computed:
        """Part of one axis."""
        places = part.indices(x.shape[axis])
        if places[2] < 0:
            return self.take(x, axis, np.arange(*places))
        return self.along(axis, lambda ref, place: self.builder.slice(ref, place, *places), x)

    def take(self, x: Computed, axis: int, index: Array) -> Computed:
        """Entries of one axis."""
        return self.along(axis, lambda ref, place: self.builder.gather(ref, place, _tensor(index)), x)

    def pad(self, x: Computed, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Computed:
        """Constant values before and after the last `len(pads)` axes."""
        full = [(0, 0)] * (len(x.shape) - len(pads)) + list(pads)
        shape = tuple(n + low + high for n, (low, high) in zip(x.shape, full, strict=True))
        first = int(drops(x.shape) and full[0] == (0, 0))
        order = [one for pair in reversed(full[first:]) for one in pair]
        return self.computed(self.builder.pad(self.ref(x, not first), order, value), shape)

    def scale(self, x: Computed, factor: Any = None, shift: Any = None) -> Computed:
        """`factor x + shift`, with broadcasting on either side."""
        given = [None if value is None else np.asarray(value, np.float64) for value in (factor, shift)]
        shape = np.broadcast_shapes(x.shape, *(value.shape for value in given if value is not None))
        first, second = (None if value is None else _tensor(_example(value, shape)) for value in given)
        return self.computed(self.builder.scale(self.ref(self.expand(x, shape)), first, second), shape)

    def linear(self, x: Computed, weight: Array) -> Computed:
        """Product of the last axis with a matrix `(m, n)`."""
        if x.shape[-1:] != weight.shape[1:]:
            raise self.refuse(f"multiplies shapes that do not fit: {list(x.shape)}, {list(weight.T.shape)}")
        return self.add("linear", [x], (*x.shape[:-1], len(weight)), {}, {"weight": weight})


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.array(value, order="C"))


def _example(value: Array, shape: Shape) -> Array:
    """A constant that broadcasts to the node of a tensor of this ONNX shape."""
    return value[0] if drops(shape) and value.ndim == len(shape) else value
