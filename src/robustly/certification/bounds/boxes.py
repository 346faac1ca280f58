"""Bounds of the rows of one property over many boxes, for input splitting: any network, in proof mode."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustly.certification.bounds.backward import lower as lower_bounds
from robustly.certification.bounds.propagation import intermediate
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph
from robustly.certification.operations import RULES, Interval, Rows
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification


class BoxBounds(NamedTuple):
    """Bounds of the rows of a property over B boxes.

    Args:
        value: lower bounds in real arithmetic, `(B, R)`.
        rows: coefficients over the input, `(B, R, d)`: `rows @ x + bias` is at most the row's value at every x of
            the box, in real arithmetic.
        bias: `(B, R)`.
        stable: sign of every hidden neuron, `(B, n)` int8: 1 and -1 where it is proved, 0 for others.
        influence: sum of what the lines around nonlinear operations take from the bounds, shared out to the inputs
            that move these operations, `(B, R, d)`.
    """

    value: Tensor
    rows: Tensor
    bias: Tensor
    stable: Tensor
    influence: Tensor

    def select(self, index: Tensor) -> "BoxBounds":
        """The bounds over some of the boxes."""
        return BoxBounds(*(part[index] for part in self))


@runtime_checkable
class Boxed(Protocol):
    """A network with the rows of one property as its outputs."""

    @property
    def hidden(self) -> int:
        """Number n of hidden neurons whose signs are handed from a box to its parts."""
        ...

    def evaluate(self, points: Tensor) -> Tensor:
        """Values of the rows, `(P, R)`, at points `(P, d)` in float64."""
        ...

    def bounds(self, lower: Tensor, upper: Tensor, stable: Tensor) -> BoxBounds:
        """Bounds over boxes `(B, d)`; `stable` holds signs that are known, `(B, n)` int8, 0 for others."""
        ...


class AnyNetwork:
    """The table of operations as a `Boxed`: backward bounds, with those of all neurons computed for every box."""

    hidden = 0

    def __init__(self, graph: Graph, spec: Specification) -> None:
        self.graph, self.spec = graph.to(torch.float64), spec.to(torch.float64)

    def evaluate(self, points: Tensor) -> Tensor:
        """As `Boxed`."""
        outputs = evaluate(self.graph, points.view(-1, *self.graph.input_shape))
        return outputs @ self.spec.rows[0].T + self.spec.offset[0]

    def bounds(self, lower: Tensor, upper: Tensor, stable: Tensor) -> BoxBounds:
        """As `Boxed`."""
        graph, count, shape = self.graph, len(lower), self.graph.input_shape
        inputs = InputSet(lower.view(count, *shape), upper.view(count, *shape))
        bounds = intermediate(graph, inputs, method="crown", rounding=True)
        rows = Rows(self.spec.rows.expand(count, -1, -1).reshape(count, -1, *graph.nodes[-1].shape))
        offset = self.spec.offset.expand(count, -1)
        found = lower_bounds(graph, graph.output, rows, inputs, bounds, offset=offset, keep=True, rounding=True)
        local = lower_bounds(graph, graph.output, rows, inputs, bounds, offset=offset, local=True, rounding=True)
        size = (count, rows.coefficients.shape[1], lower.shape[1])
        slopes = lower.new_zeros(size) if found.rows is None else found.rows.dense().coefficients.reshape(size)
        value = torch.maximum(found.value, local.value)
        influence = self._influence(lower, upper, bounds, found.at, size)
        return BoxBounds(value, slopes, found.bias.expand(size[:2]), stable, influence)

    def _influence(
        self,
        lower: Tensor,
        upper: Tensor,
        bounds: Mapping[int, Interval],
        at: Mapping[int, Rows],
        size: tuple[int, int, int],
    ) -> Tensor:
        """Distances of the lines at the middle of each operation, by input; see `BoxBounds`.

        An input moves an operation by the difference of its output at two opposite sides of the box.
        """
        middle, width = (lower + upper) / 2, upper - lower
        sides = torch.diag_embed(width / 2)
        points = torch.cat([middle.unsqueeze(1) + sides, middle.unsqueeze(1) - sides], 1)
        values = evaluate(self.graph, points.view(-1, *self.graph.input_shape), keep=True)
        total = lower.new_zeros(size)
        for index, reached in at.items():
            slopes = reached.dense().coefficients
            node = self.graph.nodes[index]
            relax = RULES[node.op].relax
            if relax is None or len(node.inputs) != 1:
                continue
            interval = bounds[node.inputs[0]]
            lines = relax(node, [interval], None)
            if lines.per_row or lines.lower_slope.shape != interval.lower.shape:
                continue
            center = (interval.lower + interval.upper) / 2
            gap = (lines.upper_slope - lines.lower_slope) * center
            gap = gap + (0 if lines.upper_offset is None else lines.upper_offset)
            gap = gap - (0 if lines.lower_offset is None else lines.lower_offset)
            first, second = values[node.inputs[0]].reshape(len(lower), 2, size[2], -1).unbind(1)
            share = (first - second).abs().transpose(1, 2)
            share = share / share.sum(2, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
            total = total + (slopes.flatten(2).abs() * gap.flatten(1).unsqueeze(1)) @ share
        return total
