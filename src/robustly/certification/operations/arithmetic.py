"""Rules of two computed inputs of one shape: add, sub, mul."""

from collections.abc import Sequence

from torch import Tensor

from robustly.certification.network import Node
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


def _two(node: Node) -> int:
    return 2


RULES = {
    "add": Rule(_add, _add_interval, _add_backward, windows=True, terms=_two),
    "sub": Rule(_sub, _sub_interval, _sub_backward, windows=True, terms=_two),
}
