"""Backward bounds of fully connected ReLU networks over many boxes, in float64 with outward rounding.

A network of affine operations in a row with ReLU between them is folded into matrices once. Over small boxes most
neurons are stable, so only the unstable ones are bounded by rows, of all boxes in one matrix. Same relaxation as
`lower` with adaptive slopes; about ten times as fast for networks of a few hundred neurons.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from robustly.certification.bounds.boxes import BoxBounds
from robustly.certification.network import Graph, Node
from robustly.certification.operations import RULES
from robustly.certification.specification import Specification

_AFFINE = ("linear", "conv", "scale", "reshape", "transpose", "slice", "gather", "pad", "expand", "sum", "avg_pool")
_MOST_VALUES = 1 << 22  # entries of a folded matrix
_UNIT = 2.0**-53


class Layer(NamedTuple):
    """One affine map `z = weight @ h + bias`, with the sizes of the products that were summed to fold it.

    Rounding errors of z are at most `Dense.error * (size @ |h| + shift)`.
    """

    weight: Tensor
    bias: Tensor
    size: Tensor
    shift: Tensor


class Lines(NamedTuple):
    """Lines around the ReLUs of one layer: `low z <= relu(z) <= (low + step) z + offset`.

    Args:
        low: slope of the line below, `(B, n)`.
        step: difference of the slopes.
        offset: offset of the line above, which is its largest distance from the ReLU.
        gap: largest distance of the line below.
    """

    low: Tensor
    step: Tensor
    offset: Tensor
    gap: Tensor


@dataclass(frozen=True)
class Dense:
    """A network as affine maps with a ReLU after each but the last.

    Args:
        layers: the maps, in float64.
        error: bound of the relative rounding error of one bound, see `Layer`.
    """

    layers: tuple[Layer, ...]
    error: float

    @classmethod
    def of(cls, graph: Graph) -> "Dense | None":
        """The network of a graph; None if it is not a chain of affine operations and ReLUs, or too large."""
        layers: list[Layer] = []
        count = graph.nodes[0].size
        current = _identity(graph.nodes[0].shape)
        terms = 0
        for index, node in enumerate(graph.to(torch.float64).nodes[1:], 1):
            if node.inputs != (index - 1,) or count * node.size > _MOST_VALUES:
                return None
            if node.op == "relu":
                layers.append(_flat(current))
                current, count = _identity(node.shape), node.size
            elif node.op in _AFFINE and not node.settings.get("value"):
                current = _after(node, current)
                terms += RULES[node.op].terms(node) + 2
            else:
                return None
            if count * node.size > _MOST_VALUES:
                return None
        layers.append(_flat(current))
        terms += 2 * sum(layer.weight.shape[1] for layer in layers) + 16 * len(layers)
        return cls(tuple(layers), 2 * terms * _UNIT)

    @property
    def hidden(self) -> int:
        """Number of hidden neurons."""
        return sum(len(layer.bias) for layer in self.layers[:-1])

    def evaluate(self, points: Tensor) -> Tensor:
        """Outputs `(P, outputs)` at points `(P, d)`."""
        for index, layer in enumerate(self.layers):
            points = torch.addmm(layer.bias, points.clamp_min(0) if index else points, layer.weight.T)
        return points

    def with_property(self, spec: Specification) -> "Dense":
        """The same network with the rows of one property as its outputs."""
        last, spec = self.layers[-1], spec.to(torch.float64)
        rows, offset = spec.rows[0], spec.offset[0]
        folded = Layer(
            rows @ last.weight,
            rows @ last.bias + offset,
            rows.abs() @ last.size,
            rows.abs() @ last.shift + offset.abs(),
        )
        return replace(self, layers=(*self.layers[:-1], folded), error=self.error + 4 * rows.shape[1] * _UNIT)

    def bounds(self, lower: Tensor, upper: Tensor, stable: Tensor) -> BoxBounds:
        """Bounds of all outputs over boxes `(B, d)`, as `Boxed`."""
        lines: list[Lines] = []
        signs: list[Tensor] = []
        known = torch.split(stable, [len(layer.bias) for layer in self.layers[:-1]], 1)
        low, high = lower, upper
        reach = _largest(lower, upper)
        finite = torch.ones(len(lower), dtype=torch.bool, device=lower.device)
        slacks = []
        for index, layer in enumerate(self.layers):
            slack = self.error * (layer.size @ reach + layer.shift)
            slacks.append(slack)
            center, radius = (low + high) / 2, (high - low) / 2
            center = torch.addmm(layer.bias, center, layer.weight.T)
            radius = torch.addmm(slack, radius, layer.weight.abs().T)
            below, above = center - radius, center + radius
            finite = finite & below.isfinite().all(1) & above.isfinite().all(1)
            if index == len(self.layers) - 1:
                break
            below = torch.where(known[index] > 0, below.clamp_min(0), below)
            above = torch.where(known[index] < 0, above.clamp_max(0), above)
            if index:
                box, neuron = ((below < 0) & (above > 0)).nonzero(as_tuple=True)
                if len(box):
                    weight, bias = layer.weight[neuron], layer.bias[neuron]
                    value = self._pushed(
                        torch.cat([weight, -weight]),
                        torch.cat([bias, -bias]) - slack[neuron].repeat(2),
                        torch.cat([box, box]),
                        lines,
                        slacks,
                        (lower, upper),
                    )[0]
                    half = len(box)
                    below[box, neuron] = torch.maximum(below[box, neuron], value[:half])
                    above[box, neuron] = torch.minimum(above[box, neuron], -value[half:])
            lines.append(_lines(below, above))
            signs.append((below >= 0).to(torch.int8) - (above <= 0).to(torch.int8))
            low, high = below.clamp_min(0), above.clamp_min(0)
            reach = high.amax(0)
        last, (count, inputs) = self.layers[-1], lower.shape
        shape = (count, len(last.bias))
        every = torch.arange(count, device=lower.device).repeat_interleave(len(last.bias))
        losses: list[Tensor] = []
        value, rows, bias = self._pushed(
            last.weight.repeat(count, 1),
            (last.bias - slacks[-1]).repeat(count),
            every,
            lines,
            slacks,
            (lower, upper),
            losses,
        )
        hidden = torch.cat(signs, 1) if signs else stable
        influence = self._shared(losses, lines, upper - lower, shape)
        best = torch.where(finite.unsqueeze(1), torch.maximum(value.view(shape), below), -torch.inf)
        return BoxBounds(best, rows.view(*shape, inputs), bias.view(shape), hidden, influence)

    def _shared(self, losses: list[Tensor], lines: list[Lines], width: Tensor, shape: tuple[int, int]) -> Tensor:
        """Losses of the neurons of each layer, the last first, shared out to the inputs, `(B, R, d)`.

        An input's share is the size of its term in the neuron's approximation by the slopes of the lines above.
        """
        total = width.new_zeros(*shape, width.shape[1])
        moved = self.layers[0].weight.unsqueeze(0)
        for index, (loss, line) in enumerate(zip(reversed(losses), lines, strict=True)):
            if index:
                moved = self.layers[index].weight @ moved
            share = moved.abs() * width.unsqueeze(1)
            share = share / share.sum(2, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
            total = total + torch.bmm(loss.view(*shape, -1), share)
            moved = moved * (line.low + line.step).unsqueeze(2)
        return total

    def _pushed(
        self,
        rows: Tensor,
        bias: Tensor,
        box: Tensor,
        lines: Sequence[Lines],
        slacks: Sequence[Tensor],
        limits: tuple[Tensor, Tensor],
        losses: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Least values of rows `(Q, n)` over the output of the last layer with lines, of boxes `box` `(Q,)`.

        What each neuron's lines take from a row is added to `losses`. Rounding errors cost no pass: `|a| slack` is
        `a slack - 2 min(a, 0) slack`, and both are summed anyway.
        """
        for layer, line, slack in zip(
            reversed(self.layers[: len(lines)]), reversed(lines), reversed(slacks[: len(lines)]), strict=True
        ):
            negative = rows.clamp_max(0)
            offset = line.offset * (1 + self.error) + 2 * (line.low + line.step) * slack
            lost = negative * offset[box]
            bias = bias + lost.sum(1)
            if losses is not None:
                losses.append(rows.clamp_min(0) * line.gap[box] - lost)
            rows = rows * line.low[box] + negative.mul_(line.step[box])
            bias = torch.addmv(bias, rows, layer.bias - slack)
            rows = rows @ layer.weight
        lower, upper = limits
        low, high = lower[box], upper[box]
        size = torch.maximum(low.abs(), high.abs())
        bias = bias - self.error * (rows.abs() * size).sum(1)
        return (rows.clamp_min(0) * low + rows.clamp_max(0) * high).sum(1) + bias, rows, bias


def _lines(below: Tensor, above: Tensor) -> Lines:
    """Lines around ReLUs with rounded-up chords; adaptive slopes below."""
    unstable = (below < 0) & (above > 0)
    slope = above / (above - below) * (1 + 4 * _UNIT)
    low = torch.where(unstable, above > -below, below >= 0).to(below.dtype)
    step = torch.where(unstable, slope - low, 0.0)
    offset = torch.where(unstable, -below * slope * (1 + 4 * _UNIT), 0.0)
    return Lines(low, step, offset, torch.where(unstable, torch.minimum(above, -below), 0.0))


def _largest(lower: Tensor, upper: Tensor) -> Tensor:
    return torch.maximum(lower.abs(), upper.abs()).amax(0)


class _Folded(NamedTuple):
    """An affine map in the making: columns `(d, *shape)` and bias `(1, *shape)`, and their sizes."""

    columns: Tensor
    bias: Tensor
    size: Tensor
    shift: Tensor


def _identity(shape: tuple[int, ...]) -> _Folded:
    count = torch.Size(shape).numel()
    eye = torch.eye(count, dtype=torch.float64).view(count, *shape)
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    return _Folded(eye, zero, eye, zero)


def _after(node: Node, folded: _Folded) -> _Folded:
    """The map followed by an affine operation."""
    evaluate = RULES[node.op].evaluate
    added = ("bias", "shift")
    absolute = {name: value.abs() if value.is_floating_point() else value for name, value in node.constants.items()}
    without = {name: torch.zeros_like(value) if name in added else value for name, value in node.constants.items()}
    sizes = {name: torch.zeros_like(value) if name in added else value for name, value in absolute.items()}
    return _Folded(
        evaluate(replace(node, constants=without), [folded.columns]),
        evaluate(node, [folded.bias]),
        evaluate(replace(node, constants=sizes), [folded.size]),
        evaluate(replace(node, constants=absolute), [folded.shift]),
    )


def _flat(folded: _Folded) -> Layer:
    columns, bias, size, shift = (part.flatten(1) for part in folded)
    return Layer(columns.T.contiguous(), bias[0], size.T.contiguous(), shift[0])
