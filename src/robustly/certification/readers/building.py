"""Assembly of a graph node by node, with broadcasting, slices and constants in the vocabulary of the verifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor

from robustly.certification.network import Graph, Node, UnsupportedOperationError
from robustly.certification.network.graph import INPUT

Shape = tuple[int, ...]
LARGEST = 2**27
"""Largest number of values of one tensor: 1 GiB in float64."""


@dataclass(frozen=True)
class Ref:
    """A value that depends on the input: a node of the graph under construction.

    Args:
        index: place of the node.
        shape: shape for one example.
    """

    index: int
    shape: Shape


@dataclass
class Builder:
    """Nodes of a graph under construction.

    Args:
        source: what is read, for messages.
        batch: number of examples in constants that have a batch axis.
        nodes: nodes so far.
        name: name of the operation that is translated now.
        place: the begin of messages on it: operator, module or node, and file.
    """

    source: str
    batch: int
    nodes: list[Node] = field(default_factory=list)
    name: str = INPUT
    place: str = ""

    def refuse(self, reason: str) -> NoReturn:
        """Raise `UnsupportedOperationError` for the present operation; the reason continues the sentence."""
        raise UnsupportedOperationError(f"{self.place} {reason}")

    def input(self, shape: Shape) -> Ref:
        """Add the input."""
        self.nodes.append(Node(self.name, INPUT, (), shape))
        return Ref(0, shape)

    def add(
        self,
        op: str,
        inputs: Sequence[Ref],
        shape: Shape,
        settings: Mapping[str, Any] | None = None,
        **constants: Tensor | None,
    ) -> Ref:
        """Add a node; floating constants become float64, constants that are None are left out.

        Raises:
            UnsupportedOperationError: a constant has NaN or infinite values, or the output is empty or too large.
        """
        if any(length < 1 for length in shape) or prod(shape) > LARGEST:
            self.refuse(f"has an output of shape {list(shape)}; allowed are 1 to {LARGEST} values")
        kept = {}
        for name, value in constants.items():
            if value is None:
                continue
            wide = value.double() if value.is_floating_point() else value
            if not bool(wide.isfinite().all()):
                self.refuse(f"has NaN or infinite numbers in its {name}: a network with these has no bounds")
            kept[name] = wide.detach().cpu().contiguous()
        places = tuple(ref.index for ref in inputs)
        self.nodes.append(Node(self.name, op, places, tuple(shape), settings or {}, kept))
        return Ref(len(self.nodes) - 1, tuple(shape))

    def example(self, value: Any, axes: int) -> Tensor:
        """The constant for one example, for a value with that many axes, batch included."""
        tensor = torch.as_tensor(value)
        tensor = tensor if tensor.dtype == torch.float64 else tensor.double()
        if tensor.ndim < axes:
            return tensor
        if tensor.ndim > axes or len(tensor) not in (1, self.batch):
            self.refuse("has a constant along the batch axis")
        if len(tensor) > 1 and not torch.equal(tensor, tensor[:1].expand_as(tensor)):
            self.refuse("has a constant that differs between the examples of a batch")
        return tensor[0]

    def as_ref(self, value: Ref | Tensor, axes: int) -> Ref:
        """The value itself, or a node for a constant whose first of `axes` axes is the batch."""
        if isinstance(value, Ref):
            return value
        constant = self.example(value, axes)
        return self.add("constant", (), tuple(constant.shape), value=constant)

    def scale(
        self, x: Ref, factor: Tensor | float | None = None, shift: Tensor | float | None = None, shape: Shape = ()
    ) -> Ref:
        """`factor * x + shift`, broadcast to a shape (default: the input's own); a bias after a linear layer."""
        x = self.expand(x, shape or x.shape)
        needed: dict[str, Tensor] = {}
        for name, value, nothing in (("factor", factor, 1), ("shift", shift, 0)):
            tensor = torch.as_tensor(nothing if value is None else value, dtype=torch.float64)
            if bool((tensor != nothing).any()):
                needed[name] = tensor.reshape((1,) * (len(x.shape) - tensor.ndim) + tuple(tensor.shape))
        node = self.nodes[x.index]
        if [*needed] == ["shift"] and node.op == "linear" and "bias" not in node.constants:
            bias = needed["shift"]
            if bias.numel() == bias.shape[-1]:
                before = [Ref(one, self.nodes[one].shape) for one in node.inputs]
                bias = bias.reshape(-1).expand(x.shape[-1])
                return self.add("linear", before, x.shape, weight=node.constants["weight"], bias=bias)
        return self.add("scale", (x,), x.shape, {}, **needed) if needed else x

    def expand(self, x: Ref, shape: Shape) -> Ref:
        """Broadcast to a shape of the same rank."""
        if x.shape == tuple(shape):
            return x
        if len(x.shape) != len(shape):
            self.refuse("broadcasts along the batch axis")
        return self.add("expand", (x,), shape)

    def reshape(self, x: Ref, shape: Shape) -> Ref:
        """Give the values of an example another shape; the node itself where it or its source has that shape."""
        shape = tuple(shape)
        if prod(x.shape) != prod(shape):
            self.refuse(f"gives {prod(x.shape)} values the shape {list(shape)}, or mixes the examples of a batch")
        index = x.index
        while self.nodes[index].shape != shape and self.nodes[index].op == "reshape":
            (index,) = self.nodes[index].inputs
        found = Ref(index, self.nodes[index].shape)
        return found if found.shape == shape else self.add("reshape", (found,), shape)

    def transpose(self, x: Ref, order: Sequence[int]) -> Ref:
        """Permute the axes of an example."""
        if list(order) == list(range(len(x.shape))):
            return x
        return self.add("transpose", (x,), tuple(x.shape[axis] for axis in order), {"permutation": tuple(order)})

    def slice(self, x: Ref, axis: int, start: int, stop: int, step: int = 1) -> Ref:
        """Take `start:stop:step` of an axis; 0 <= start <= stop <= length."""
        length = len(range(start, stop, step))
        if length == 0:
            self.refuse("takes an empty slice")
        if length == x.shape[axis]:
            return x
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        return self.add("slice", (x,), shape, {"axis": axis, "start": start, "stop": stop, "step": step})

    def gather(self, x: Ref, axis: int, index: Tensor) -> Ref:
        """Take entries of an axis, `index` of one axis."""
        index = index.to(torch.int64)
        index = torch.where(index < 0, index + x.shape[axis], index)
        shape = (*x.shape[:axis], len(index), *x.shape[axis + 1 :])
        return self.add("gather", (x,), shape, {"axis": axis}, index=index)

    def concat(self, parts: Sequence[Ref], axis: int) -> Ref:
        """Join along an axis."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0].shape
        length = sum(part.shape[axis] for part in parts)
        return self.add("concat", parts, (*first[:axis], length, *first[axis + 1 :]), {"axis": axis})

    def pad(self, x: Ref, pads: Sequence[int], value: float = 0.0) -> Ref:
        """Add constant values, `pads` from 0 on in the order of `torch.nn.functional.pad`."""
        if not any(pads):
            return x
        shape = list(x.shape)
        for place, length in enumerate(pads):
            shape[-1 - place // 2] += length
        return self.add("pad", (x,), tuple(shape), {"pads": tuple(map(int, pads)), "value": float(value)})

    def sum(self, x: Ref, axes: Sequence[int], keepdim: bool, mean: bool) -> Ref:
        """Sum or mean along axes."""
        kept = [1 if axis in axes else n for axis, n in enumerate(x.shape) if keepdim or axis not in axes]
        total = self.add("sum", (x,), tuple(kept), {"axes": tuple(axes), "keepdim": keepdim}) if axes else x
        return self.scale(total, 1 / prod(x.shape[axis] for axis in axes)) if mean else total

    def pool(
        self,
        op: str,
        x: Ref,
        lengths: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] | None = None,
        ceil: bool = False,
        own: Mapping[str, Any] | None = None,
    ) -> Ref:
        """Pool the axes behind the channels to lengths; `own`: settings that max or average pools alone have."""
        padding = tuple(padding or [0] * len(kernel))
        settings = {"kernel": tuple(kernel), "stride": tuple(stride), "padding": padding, "ceil_mode": ceil}
        plain = {"dilation": (1,) * len(kernel)} if op == "max_pool" else {"count_include_pad": True}
        return self.add(op, (x,), (x.shape[0], *lengths), {**settings, **plain, **(own or {})})

    def graph(self, output: Ref) -> Graph:
        """The finished graph, without nodes on which the output does not depend."""
        whole = Graph(tuple(self.nodes), self.source)
        kept = whole.needed_for([0, output.index])
        place = {old: new for new, old in enumerate(kept)}
        nodes = [replace(whole.nodes[old], inputs=tuple(place[i] for i in whole.nodes[old].inputs)) for old in kept]
        return replace(whole, nodes=tuple(nodes))
