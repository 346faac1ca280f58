"""Passes of one network that several processes take together: the work of each, and the rows that they exchange.

Process 0 orders a pass. Every process computes as many rows of the batch, the last one again where the batch does
not divide evenly, so that all of them collect the weights of the same blocks in the same order. Process 0 gets all
rows.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.models.divided import DividedModel, Graph
from robustly.models.outputs import logits_in
from robustly.models.weight_directions import filter_normalised
from robustly.sharding import local, output_of_shards, shard

_DTYPES = {str(one): one for one in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
FULL, HALF = 0, 1
"""Numbers of the network and of its copy in bfloat16."""


@dataclass(frozen=True)
class Order:
    """A step that all processes take together.

    Args:
        kind: "forward" and "backward" passes; "half" makes the copy in bfloat16; "move" moves the weights.
        network: `FULL` or `HALF`.
        call: number of the forward pass whose graph is meant.
        shape: shape of the rows of one process.
        dtype: their dtype.
        channels_last: whether they have this layout.
        graph: whether the graph is kept for (further) backward passes.
        released: numbers of graphs that are not used any more.
        seeds: of the directions in which the weights are moved; None moves them back.
        along: their coefficients.
    """

    kind: Literal["forward", "backward", "half", "move"]
    network: int = FULL
    call: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    channels_last: bool = False
    graph: bool = False
    released: tuple[int, ...] = ()
    seeds: tuple[int, int] | None = None
    along: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Order":
        """The order with these fields, whose lists become tuples."""
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in plain.items()}
        return cls(**fields)


class Worker:
    """The part of one process in the passes of a network.

    Args:
        network: a network on the CPU or on the device, which is divided in place; it stays in evaluation mode, and
            no gradient is computed for its weights.
        rank: number of this process in the group of `torch.distributed`.
        size: number of processes.
        device: device of the passes.
    """

    def __init__(self, network: nn.Module, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        network.eval().requires_grad_(False)
        self._layout = _layout_of(network)
        self._empty = _without_values(network)
        self.networks = [self._divided(network)]
        self._graphs: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: dict[str, Tensor] = {}
        self._directions: dict[tuple[int, str], Tensor] = {}

    @property
    def can_be_copied(self) -> bool:
        """True if the network can be made again in bfloat16."""
        return self._empty is not None

    def carry_out(self, order: Order, rows: Tensor | None = None) -> Tensor | None:
        """Take one step; all processes take the same one.

        Args:
            order: the step.
            rows: all rows, in process 0: the batch, or the gradient with respect to its output.

        Returns:
            All rows of the result in process 0, those of padding included; else None.
        """
        for call in order.released:
            self._graphs.pop(call, None)
        if order.kind == "half":
            self._make_half()
        elif order.kind == "move":
            self._move(order.seeds, order.along)
        elif order.kind == "forward":
            return self._forward(order, rows)
        else:
            return self._backward(order, rows)
        return None

    def has_graph(self, call: int) -> bool:
        """True if gradients may be computed for a forward pass."""
        return call in self._graphs

    def _divided(self, network: nn.Module) -> nn.Module:
        """The network with its weights in shards, and convolutions that compute in its layout."""
        shard(network, self.size, self.device, follows=False, root_stays=False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and self._layout is not None:
                object.__setattr__(module, "_conv_forward", partial(_convolved, module, self._layout))
        return network

    def _forward(self, order: Order, rows: Tensor | None) -> Tensor | None:
        network, x = self.networks[order.network], self._received(order, rows)
        if order.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with frozen(network), torch.set_grad_enabled(order.graph):
            output = logits_in(output_of_shards(network, x.requires_grad_(order.graph)))
        if output.requires_grad:
            self._graphs[order.call] = x, output
        return self._collected(output.detach())

    def _backward(self, order: Order, rows: Tensor | None) -> Tensor | None:
        gradient, (x, output) = self._received(order, rows), self._graphs[order.call]
        with frozen(self.networks[order.network]):
            (found,) = torch.autograd.grad(output, x, gradient, retain_graph=order.graph, allow_unused=True)
        if not order.graph:
            del self._graphs[order.call]
        return self._collected(torch.zeros_like(x) if found is None else found)

    def _received(self, order: Order, rows: Tensor | None) -> Tensor:
        """This process's rows."""
        found = torch.empty(order.shape, dtype=_DTYPES[order.dtype], device=self.device)
        parts = None if rows is None else [_bytes(part) for part in torch.split(rows, order.shape[0])]
        into = _bytes(found)
        dist.scatter(into, parts, src=0)
        return found

    def _collected(self, own: Tensor) -> Tensor | None:
        """The rows of all processes, in process 0."""
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(_bytes(own), None if parts is None else [_bytes(part) for part in parts], dst=0)
        return None if parts is None else torch.cat(parts)

    def _make_half(self) -> None:
        assert self._empty is not None
        whole, half = self.networks[FULL], self._empty.to(torch.bfloat16)
        self._divided(half).to_empty(device=self.device)
        with torch.no_grad():
            for given, weight in zip(whole.parameters(), half.parameters(), strict=True):
                local(weight).copy_(local(given))
            for buffer, made in zip(whole.buffers(), half.buffers(), strict=True):
                made.copy_(buffer)
        self.networks.append(half)
        dist.barrier()

    @torch.no_grad()
    def _move(self, seeds: tuple[int, int] | None, along: tuple[float, float]) -> None:
        for name, parameter in self.networks[FULL].named_parameters():
            value = local(parameter)
            if seeds is None:
                if name in self._own:
                    value.copy_(self._own[name])
                continue
            first, second = (self._direction(name, parameter, seed) for seed in seeds)
            if first is not None and second is not None:
                own = self._own.setdefault(name, value.clone())
                value.copy_(own + along[0] * first + along[1] * second)
        dist.barrier()

    def _direction(self, name: str, parameter: Tensor, seed: int) -> Tensor | None:
        key = seed, name
        if key not in self._directions:
            first = self.rank * -(-len(parameter) // self.size) if parameter.ndim else 0
            found = filter_normalised(name, self._own.get(name, local(parameter)), seed, first)
            if found is None:
                return None
            self._directions[key] = found
        return self._directions[key]


class SharedPasses:
    """The passes of process 0; see `robustly.models.divided.Passes`.

    Args:
        worker: the part of process 0.
        order: takes a step in all processes; returns the rows in process 0.
        weights_sha256: hash of the whole weights.
        network: `FULL` or `HALF`.
    """

    def __init__(
        self,
        worker: Worker,
        order: Callable[[Order, Tensor | None], Tensor | None],
        weights_sha256: str,
        network: int = FULL,
    ) -> None:
        self._worker, self._order, self._sha256, self._network = worker, order, weights_sha256, network
        self._calls = 0
        self._released: list[int] = []
        self._half: DividedModel | None = None
        self._modes = _modes(worker.networks[network])

    def forward(self, x: Tensor, with_graph: bool) -> tuple[Tensor, "PassGraph | None"]:
        """Output of a batch, and its graph.

        Raises:
            ValueError: the network is not in evaluation mode.
            ProcessError: another process has stopped, or a pass failed.
        """
        if _modes(self._worker.networks[self._network]) != self._modes:
            raise ValueError("runtime.strategy fsdp evaluates a network in evaluation mode only")
        self._calls += 1
        call = 2 * self._calls + self._network  # one number for each pass of both networks
        output = self._taken("forward", x, call, with_graph)[: len(x)]
        return output, PassGraph(call, len(x), self._released) if self._worker.has_graph(call) else None

    def backward(self, graph: Graph, gradient: Tensor, keep: bool) -> Tensor:
        """Gradient with respect to the inputs of a pass.

        Raises:
            RuntimeError: its graph is released.
            ProcessError: another process has stopped, or a pass failed.
        """
        if not self._worker.has_graph(graph.call):
            raise RuntimeError("Trying to backward through the graph a second time: it is released already")
        return self._taken("backward", gradient, graph.call, keep)[: graph.rows]

    def move(self, seeds: tuple[int, int] | None, along: tuple[float, float]) -> None:
        """Move the weights along two directions, or back."""
        self._order(Order("move", seeds=seeds, along=along), None)

    def half(self) -> DividedModel | None:
        """The network in bfloat16; None if it cannot be copied."""
        if self._half is None and self._worker.can_be_copied:
            self._order(Order("half"), None)
            passes = SharedPasses(self._worker, self._order, self._sha256, HALF)
            self._half = _HalfPrecision(self._worker.networks[HALF], passes, self._sha256)
        return self._half

    def _taken(self, kind: Literal["forward", "backward"], rows: Tensor, call: int, graph: bool) -> Tensor:
        each = max(1, -(-len(rows) // self._worker.size))
        missing = each * self._worker.size - len(rows)
        if kind == "backward" or not len(rows):
            more = rows.new_zeros((missing, *rows.shape[1:]))
        else:
            more = rows[-1:].expand(missing, *rows.shape[1:])  # an image, as the network may refuse others
        given = torch.cat([rows.detach(), more]) if missing else rows.detach()
        released, self._released[:] = tuple(self._released), []
        shape, last = (each, *rows.shape[1:]), not rows.is_contiguous() and _is_last(rows)
        order = Order(kind, self._network, call, shape, str(rows.dtype), last, graph, released)
        found = self._order(order, given)
        assert found is not None
        return found


class PassGraph:
    """The graph of one pass; it is released in all processes with this object.

    Args:
        call: number of the pass.
        rows: number of its rows.
        released: receives the number at the end.
    """

    def __init__(self, call: int, rows: int, released: list[int]) -> None:
        self.call, self.rows, self._released = call, rows, released

    def __del__(self) -> None:
        self._released.append(self.call)


class _HalfPrecision(DividedModel):
    """The copy in bfloat16, for inputs of any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Output of the network."""
        return super().forward(x.to(torch.bfloat16))


def _convolved(
    layer: nn.Conv2d, layout: torch.memory_format, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Output of a convolution, whose last bits depend on the layout of its weights; shards do not keep it."""
    found: Tensor = nn.Conv2d._conv_forward(layer, x, weight.clone(memory_format=layout), bias)
    return found


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, `(B,)`; a view if it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _modes(network: nn.Module) -> list[bool]:
    return [bool(getattr(module, "training", False)) for module in network.modules()]


def _layout_of(network: nn.Module) -> torch.memory_format | None:
    """Channels last if the weights are in this layout, which they lose as shards; else None."""
    weights = [value for value in network.parameters() if not value.is_contiguous()]
    return torch.channels_last if any(map(_is_last, weights)) else None


def _is_last(value: Tensor) -> bool:
    return value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)


def _without_values(network: nn.Module) -> nn.Module | None:
    """A copy of a network on the meta device; None if it cannot be copied."""
    tensors: dict[int, Any] = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
        for value in network.parameters()
    }
    tensors |= {id(value): torch.empty_like(value, device="meta") for value in network.buffers()}
    try:
        return copy.deepcopy(network, tensors)
    except Exception:  # of the user's code
        return None
