"""Rules of operations that move values: constant, reshape, transpose, slice, gather, concat, pad, expand, sum."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from robustly.certification.network import Node
from robustly.certification.operations.rows import Rows
from robustly.certification.operations.rule import Interval, Pushed, Relaxation, Rule


def _moves(
    evaluate: Callable[[Node, Sequence[Tensor]], Tensor],
    adjoint: Callable[[Node, Tensor, int], tuple[Tensor, ...]],
    terms: Callable[[Node], int] | None = None,
) -> Rule:
    """Rule of an operation with coefficients 0 and 1; `adjoint(node, coefficients, leading axes)`."""

    def interval(node: Node, inputs: Sequence[Interval]) -> Interval:
        lower = evaluate(node, [one.lower for one in inputs])
        return Interval(lower, evaluate(node, [one.upper for one in inputs]))

    def backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
        parts = adjoint(node, rows.coefficients, rows.lead)
        return Pushed(tuple(rows.with_coefficients(part) for part in parts))

    return Rule(evaluate, interval, backward) if terms is None else Rule(evaluate, interval, backward, terms=terms)


def _constant(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return node.constants["value"].unsqueeze(0)


def _constant_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    value = node.constants["value"].unsqueeze(0)
    return Interval(value, value)


def _constant_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    return Pushed((), rows.total(rows.coefficients * node.constants["value"]))


def _reshape(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].reshape(len(inputs[0]), *node.shape)


def _reshape_adjoint(node: Node, coefficients: Tensor, lead: int) -> tuple[Tensor, ...]:
    return (coefficients.reshape(*coefficients.shape[:lead], *node.input_shapes[0]),)


def _transpose(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].permute(0, *(axis + 1 for axis in _permutation(node)))


def _transpose_adjoint(node: Node, coefficients: Tensor, lead: int) -> tuple[Tensor, ...]:
    order = _permutation(node)
    inverse = [lead + order.index(axis) for axis in range(len(order))]
    return (coefficients.permute(*range(lead), *inverse),)


def _permutation(node: Node) -> list[int]:
    return [axis % len(node.shape) for axis in node.settings["permutation"]]


def _axis(node: Node) -> int:
    """The axis of the setting, counted from the first axis of the first input."""
    return int(node.settings["axis"]) % max(1, len(node.input_shapes[0]))


def _places(node: Node) -> slice:
    setting, length = node.settings, node.input_shapes[0][_axis(node)]
    start, stop, step = slice(setting["start"], setting["stop"], setting["step"]).indices(length)
    return slice(start, max(start, stop), step)


def _slice(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0][(slice(None),) * (1 + _axis(node)) + (_places(node),)]


def _slice_adjoint(node: Node, coefficients: Tensor, lead: int) -> tuple[Tensor, ...]:
    full = coefficients.new_zeros(*coefficients.shape[:lead], *node.input_shapes[0])
    full[(slice(None),) * (lead + _axis(node)) + (_places(node),)] = coefficients
    return (full,)


def _index(node: Node) -> Tensor:
    return node.constants["index"] % node.input_shapes[0][_axis(node)]


def _gather(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    picked = inputs[0].index_select(1 + _axis(node), _index(node).flatten())
    return picked.reshape(len(picked), *node.shape)


def _gather_adjoint(node: Node, coefficients: Tensor, lead: int) -> tuple[Tensor, ...]:
    axis, index, leading = _axis(node), _index(node).flatten(), coefficients.shape[:lead]
    shape = node.input_shapes[0]
    picked = coefficients.reshape(*leading, *shape[:axis], len(index), *shape[axis + 1 :])
    return (coefficients.new_zeros(*leading, *shape).index_add(lead + axis, index, picked),)


def _concat(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    count = max(len(one) for one in inputs)  # a constant has a batch of one
    return torch.cat([one.expand(count, *one.shape[1:]) for one in inputs], 1 + _axis(node))


def _concat_adjoint(node: Node, coefficients: Tensor, lead: int) -> tuple[Tensor, ...]:
    axis = _axis(node)
    return torch.split(coefficients, [shape[axis] for shape in node.input_shapes], lead + axis)


def _pad(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return functional.pad(inputs[0], _pads(node), value=_value(node))


def _pad_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    return Interval(_pad(node, [inputs[0].lower]), _pad(node, [inputs[0].upper]))


def _pads(node: Node) -> list[int]:
    return [int(length) for length in node.settings["pads"]]


def _value(node: Node) -> float:
    return float(node.settings.get("value", 0.0))


def _pad_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    pads = _pads(node)
    if rows.offset is not None and not _value(node) and not any(pads[4:]):
        shape = node.input_shapes[0]
        shift = torch.tensor([pads[2] if len(pads) > 2 else 0, pads[0]], device=rows.offset.device)
        return Pushed((_cropped(replace(rows, offset=rows.offset - shift, plane=(shape[-2], shape[-1]))),))
    rows = rows.dense()
    coefficients = rows.coefficients
    moved = rows.with_coefficients(functional.pad(coefficients, [-length for length in pads]))
    if not _value(node):
        return Pushed((moved,))
    edge = functional.pad(coefficients.new_zeros(node.input_shapes[0]), pads, value=_value(node))
    added = torch.where(coefficients == 0, 0.0, coefficients * edge)  # no NaN where infinite padding is not read
    return Pushed((moved,), rows.total(added))


def _cropped(rows: Rows) -> Rows:
    inside = rows.gather(rows.coefficients.new_ones(1, 1, *(rows.plane or ())).expand(_examples(rows), -1, -1, -1))
    return rows.with_coefficients(rows.coefficients * inside)


def _examples(rows: Rows) -> int:
    return 0 if rows.example is None or not len(rows.example) else int(rows.example.max()) + 1


def _expand(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    shape = node.input_shapes[0]
    new = len(node.shape) - len(shape)
    return inputs[0].reshape(len(inputs[0]), *(1,) * new, *shape).expand(-1, *node.shape)


def _expand_adjoint(node: Node, coefficients: Tensor, lead: int) -> tuple[Tensor, ...]:
    shape = node.input_shapes[0]
    aligned = (1,) * (len(node.shape) - len(shape)) + shape
    axes = [lead + axis for axis, length in enumerate(aligned) if length != node.shape[axis]]
    summed = coefficients.sum(axes, keepdim=True) if axes else coefficients
    return (summed.reshape(*coefficients.shape[:lead], *shape),)


def _axes(node: Node) -> list[int]:
    return sorted({axis % len(node.input_shapes[0]) for axis in node.settings["axes"]})


def _sum(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    axes = [1 + axis for axis in _axes(node)]
    return inputs[0].sum(axes, keepdim=bool(node.settings["keepdim"])) if axes else inputs[0]


def _sum_adjoint(node: Node, coefficients: Tensor, lead: int) -> tuple[Tensor, ...]:
    shape, axes = node.input_shapes[0], _axes(node)
    kept = [1 if axis in axes else length for axis, length in enumerate(shape)]
    leading = coefficients.shape[:lead]
    return (coefficients.reshape(*leading, *kept).expand(*leading, *shape),)


def _sum_terms(node: Node) -> int:
    return math.prod(node.input_shapes[0][axis] for axis in _axes(node))


RULES = {
    "constant": Rule(_constant, _constant_interval, _constant_backward),
    "reshape": _moves(_reshape, _reshape_adjoint),
    "transpose": _moves(_transpose, _transpose_adjoint),
    "slice": _moves(_slice, _slice_adjoint),
    "gather": _moves(_gather, _gather_adjoint),
    "concat": _moves(_concat, _concat_adjoint),
    "pad": Rule(_pad, _pad_interval, _pad_backward, windows=True),
    "expand": _moves(_expand, _expand_adjoint),
    "sum": _moves(_sum, _sum_adjoint, _sum_terms),
}
