"""Rules of elementwise activations: two lines for each value."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustly.certification.network import Node
from robustly.certification.operations import relaxations
from robustly.certification.operations.rows import Rows
from robustly.certification.operations.rule import Interval, Pushed, Relaxation, Rule


def push_lines(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    """Rows through an elementwise operation: lower line where a coefficient is positive, else the upper line."""
    assert extra is not None

    def at(values: Tensor) -> Tensor:
        return values if extra.per_row else rows.gather(values)

    coefficients = rows.coefficients
    slope = torch.where(coefficients > 0, at(extra.lower_slope), at(extra.upper_slope))
    bias = None
    if extra.upper_offset is not None:
        bias = rows.total(coefficients.clamp_max(0) * at(extra.upper_offset))
    if extra.lower_offset is not None:
        below = rows.total(coefficients.clamp_min(0) * at(extra.lower_offset))
        bias = below if bias is None else bias + below
    return Pushed((rows.with_coefficients(coefficients * slope),), bias)


def _one(node: Node) -> int:
    return 1


def _relu(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].relu()


def _relu_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    lower, upper = inputs[0]
    return Interval(lower.relu(), upper.relu())


def _relu_relax(node: Node, inputs: Sequence[Interval], free: Tensor | None) -> Relaxation:
    return relaxations.relu(inputs[0], free)


RULES = {
    "relu": Rule(_relu, _relu_interval, push_lines, _relu_relax, has_free=True, windows=True, terms=_one),
}
