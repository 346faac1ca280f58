"""Rules of two computed inputs of one shape: add, sub, mul."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustly.certification.network import Node
from robustly.certification.operations import relaxations
from robustly.certification.operations.relaxations import slack
from robustly.certification.operations.rows import Rows
from robustly.certification.operations.rule import Interval, Pushed, Relaxation, Rule


def _add(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] + inputs[1]


def _add_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    first, second = inputs
    return Interval(first.lower + second.lower, first.upper + second.upper)


def _add_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    return Pushed((rows, rows))


def _sub(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] - inputs[1]


def _sub_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    first, second = inputs
    return Interval(first.lower - second.upper, first.upper - second.lower)


def _sub_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    return Pushed((rows, rows.with_coefficients(-rows.coefficients)))


def _mul(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] * inputs[1]


def _mul_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    first, second = inputs
    corners = [x * z for x in first for z in second]
    low = torch.minimum(torch.minimum(corners[0], corners[1]), torch.minimum(corners[2], corners[3]))
    high = torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3]))
    return Interval(low - slack(low), high + slack(high))


def _mul_relax(node: Node, inputs: Sequence[Interval], free: Tensor | None) -> Relaxation:
    planes = relaxations.product(inputs[0], inputs[1], free)
    per_row = free is not None and free.dim() > 1 + len(node.shape)
    return replace(planes, per_row=per_row)


def _mul_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    assert extra is not None

    def at(values: Tensor | None) -> Tensor:
        assert values is not None
        return values if extra.per_row else rows.gather(values)

    coefficients = rows.coefficients
    positive = coefficients > 0
    slopes = torch.where(positive.unsqueeze(-1), at(extra.lower_slope), at(extra.upper_slope))
    offset = torch.where(positive, at(extra.lower_offset), at(extra.upper_offset))
    moved = tuple(rows.with_coefficients(coefficients * slope) for slope in slopes.unbind(-1))
    return Pushed(moved, rows.total(coefficients * offset))


def _two(node: Node) -> int:
    return 2


RULES = {
    "add": Rule(_add, _add_interval, _add_backward, windows=True, terms=_two),
    "sub": Rule(_sub, _sub_interval, _sub_backward, windows=True, terms=_two),
    "mul": Rule(_mul, _mul_interval, _mul_backward, _mul_relax, has_free=True, terms=_two),
}
