"""Rules of linear layers: linear, conv, conv_transpose, scale.

The adjoint of a convolution is a transposed convolution. Rows of one neuron are windows: a window `(C, h, w)` of
the output becomes a window of height `(h - 1) * stride + dilation * (kernel - 1) + 1` of the input, at `offset *
stride - padding`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from robustly.certification.network import Node
from robustly.certification.operations.adjoints import adjoint, is_narrow
from robustly.certification.operations.rows import Rows
from robustly.certification.operations.rule import Interval, Pushed, Relaxation, Rule

_Apply = Callable[[Node, Tensor, Tensor, Tensor | None], Tensor]


def _ball(node: Node, inputs: Sequence[Interval], apply: _Apply) -> Interval:
    """Interval through `apply(node, x, weight, bias)`: the radius goes through the absolute weight."""
    lower, upper = inputs[0]
    weight = node.constants["weight"]
    center = apply(node, (lower + upper).mul_(0.5), weight, node.constants.get("bias"))
    radius = apply(node, (upper - lower).mul_(0.5), weight.abs(), None)
    return Interval(center - radius, center + radius)


def _linear_of(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight, bias)


def _linear(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return _linear_of(node, inputs[0], node.constants["weight"], node.constants.get("bias"))


def _linear_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    return _ball(node, inputs, _linear_of)


def _linear_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    coefficients, bias = rows.coefficients, node.constants.get("bias")
    moved = rows.with_coefficients(coefficients @ node.constants["weight"])
    return Pushed((moved,), None if bias is None else _summed(coefficients @ bias, rows.lead))


def _linear_terms(node: Node) -> int:
    return node.constants["weight"].shape[1] + 1


def _summed(values: Tensor, lead: int) -> Tensor:
    return values.flatten(lead).sum(lead) if values.dim() > lead else values


def _convolved(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    convolve = functional.conv1d if weight.dim() == 3 else functional.conv2d
    setting = node.settings
    return convolve(x, weight, bias, setting["stride"], setting["padding"], setting["dilation"], setting["groups"])


def _transposed(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    convolve = functional.conv_transpose1d if weight.dim() == 3 else functional.conv_transpose2d
    setting = node.settings
    return convolve(
        x,
        weight,
        bias,
        setting["stride"],
        setting["padding"],
        setting["output_padding"],
        setting["groups"],
        setting["dilation"],
    )


def _conv(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return _convolved(node, inputs[0], node.constants["weight"], node.constants.get("bias"))


def _conv_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    return _ball(node, inputs, _convolved)


def _conv_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    bias = _channel_bias(node, rows)
    if rows.offset is not None:
        return Pushed((_conv_windows(node, rows),), bias)
    weight, setting = node.constants["weight"], node.settings
    flat, leading = rows.flat()
    lost = tuple(
        have - ((made - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
        for have, made, stride, padding, dilation, kernel in zip(
            node.input_shapes[0][1:],
            node.shape[1:],
            setting["stride"],
            setting["padding"],
            setting["dilation"],
            weight.shape[2:],
            strict=True,
        )
    )
    moved = adjoint(flat, weight, setting, padding=setting["padding"], lost=lost)
    return Pushed((rows.with_coefficients(moved.reshape(*leading, *moved.shape[1:])),), bias)


def _channel_bias(node: Node, rows: Rows) -> Tensor | None:
    bias = node.constants.get("bias")
    if bias is None:
        return None
    axes = tuple(range(rows.lead + 1, rows.coefficients.dim()))
    return rows.coefficients.sum(axes) @ bias


def _conv_windows(node: Node, rows: Rows) -> Rows:
    """Windows of the output moved to windows of the input, dense if they would be larger than the input."""
    weight, setting, coefficients = node.constants["weight"], node.settings, rows.coefficients
    assert rows.offset is not None
    plane = (node.input_shapes[0][1], node.input_shapes[0][2])
    count, channels, h, w = coefficients.shape
    if not is_narrow(weight, setting) and count > channels * h * w and _one_product_pays(node, h, w):
        identity = torch.eye(channels * h * w, dtype=weight.dtype, device=weight.device)
        cells = identity.view(-1, h, w, channels).permute(0, 3, 1, 2)
        matrix = adjoint(cells, weight, setting).permute(0, 2, 3, 1)
        product = coefficients.permute(0, 2, 3, 1).reshape(count, -1) @ matrix.flatten(1)
        moved = product.view(-1, *matrix.shape[1:]).permute(0, 3, 1, 2)
    else:
        moved = adjoint(coefficients, weight, setting)
    steps = torch.tensor([setting["stride"], setting["padding"]], device=rows.offset.device)
    result = replace(rows, coefficients=moved, offset=rows.offset * steps[0] - steps[1], plane=plane)
    if moved.shape[2] * moved.shape[3] >= math.prod(plane):
        return result.dense()
    return inside_plane(result)


def _one_product_pays(node: Node, h: int, w: int) -> bool:
    """True if one product with the matrix of the adjoint costs little more arithmetic than the convolution."""
    setting, kernel = node.settings, node.constants["weight"].shape[2:]
    spread: list[int] = [
        (size - 1) * stride + dilation * (taps - 1) + 1
        for size, stride, dilation, taps in zip((h, w), setting["stride"], setting["dilation"], kernel, strict=True)
    ]
    cost: int = math.prod(spread) * setting["groups"]
    return cost <= 8 * kernel.numel()


def inside_plane(rows: Rows) -> Rows:
    """The same windows with zeros outside the plane."""
    if rows.offset is None or rows.plane is None:
        return rows
    masks = []
    for axis in (0, 1):
        place = rows.offset[:, axis : axis + 1] + torch.arange(rows.coefficients.shape[2 + axis]).to(rows.offset)
        masks.append((place >= 0) & (place < rows.plane[axis]))
    inside = masks[0].unsqueeze(2) & masks[1].unsqueeze(1)
    if bool(inside.all()):
        return rows
    return rows.with_coefficients(rows.coefficients * inside.unsqueeze(1))


def _conv_terms(node: Node) -> int:
    return math.prod(node.constants["weight"].shape[1:]) + 1


def _conv_transpose(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return _transposed(node, inputs[0], node.constants["weight"], node.constants.get("bias"))


def _conv_transpose_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    return _ball(node, inputs, _transposed)


def _conv_transpose_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    flat, leading = rows.flat()
    moved = _convolved(node, flat, node.constants["weight"], None)
    for axis, length in enumerate(node.input_shapes[0][1:]):
        moved = moved.narrow(2 + axis, 0, length)
    return Pushed((rows.with_coefficients(moved.reshape(*leading, *moved.shape[1:])),), _channel_bias(node, rows))


def _conv_transpose_terms(node: Node) -> int:
    weight = node.constants["weight"]
    return weight.shape[0] // int(node.settings["groups"]) * math.prod(weight.shape[2:]) + 1


def _scale(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    factor, shift = node.constants.get("factor"), node.constants.get("shift")
    scaled = inputs[0] if factor is None else inputs[0] * factor
    return scaled if shift is None else scaled + shift


def _scale_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    (lower, upper), factor, shift = inputs[0], node.constants.get("factor"), node.constants.get("shift")
    if factor is not None:
        keeps = factor >= 0
        lower, upper = torch.where(keeps, lower, upper) * factor, torch.where(keeps, upper, lower) * factor
    return Interval(lower, upper) if shift is None else Interval(lower + shift, upper + shift)


def _scale_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    factor, shift = node.constants.get("factor"), node.constants.get("shift")
    moved = rows if factor is None else rows.with_coefficients(rows.coefficients * _at(rows, node, factor))
    bias = None if shift is None else rows.total(rows.coefficients * _at(rows, node, shift))
    return Pushed((moved,), bias)


def _at(rows: Rows, node: Node, values: Tensor) -> Tensor:
    """Constants that broadcast to the node's shape, where the coefficients are."""
    if rows.offset is None or all(length == 1 for length in values.shape[-2:]):
        return values
    same = replace(rows, example=torch.zeros_like(rows.offset[:, 0]))
    return same.gather(values.expand(node.shape).unsqueeze(0))


def _scale_terms(node: Node) -> int:
    return 2


RULES = {
    "linear": Rule(_linear, _linear_interval, _linear_backward, terms=_linear_terms),
    "conv": Rule(_conv, _conv_interval, _conv_backward, windows=True, terms=_conv_terms),
    "conv_transpose": Rule(
        _conv_transpose, _conv_transpose_interval, _conv_transpose_backward, terms=_conv_transpose_terms
    ),
    "scale": Rule(_scale, _scale_interval, _scale_backward, windows=True, terms=_scale_terms),
}
