"""Elementwise ONNX operators and matrix products in the vocabulary of the verifier."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robustly.certification.readers.onnx_call import Call, Computed


def _plain(op: str, **defaults: Any) -> Callable[[Call], Computed]:
    """An operation with the attributes of its ONNX operator."""

    def convert(call: Call) -> Computed:
        found = {name: call.attributes.get(name, value) for name, value in defaults.items()}
        return call.same(op, call.x(), **{k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()})

    return convert


def _clipped(call: Call, x: Computed, low: float, high: float) -> Computed:
    if not low <= high:
        raise call.refuse(f"has bounds {low} and {high}; the first must not be larger")
    return call.same("clip", x, low=low, high=high)


def _clip(call: Call) -> Computed:
    bounds = []
    for position, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), 1):
        value = call.attributes.get(name)
        value = call.constant(position, name) if value is None else value
        bounds.append(default if value is None else float(np.asarray(value).item()))
    return _clipped(call, call.x(), *bounds)


def _extreme(call: Call) -> Computed:
    """Max or Min of a computed tensor and one number."""
    numbers = [float(one.item()) for one in call.inputs if isinstance(one, np.ndarray) and one.size == 1]
    computed = [one for one in call.inputs if isinstance(one, Computed)]
    if len(computed) != 1 or len(numbers) != len(call.inputs) - 1:
        raise call.refuse("is supported for one computed input and single numbers")
    if call.op == "Max":
        return _clipped(call, computed[0], max([*numbers, -math.inf]), math.inf)
    return _clipped(call, computed[0], -math.inf, min([*numbers, math.inf]))


def _hard_sigmoid(call: Call) -> Computed:
    gate = call.scale(call.x(), call.attributes.get("alpha", 0.2), call.attributes.get("beta", 0.5))
    return _clipped(call, gate, 0.0, 1.0)


def _hard_swish(call: Call) -> Computed:
    gate = _clipped(call, call.scale(call.x(), 1 / 6, 0.5), 0.0, 1.0)
    return call.add("mul", [call.x(), gate], gate.shape)


def _selu(call: Call) -> Computed:
    alpha = call.attributes.get("alpha", 1.67326319217681884765625)
    gamma = call.attributes.get("gamma", 1.05070102214813232421875)
    return call.scale(call.same("elu", call.x(), alpha=alpha), gamma)


def _leaky(call: Call) -> Computed:
    """A leaky ReLU where the slope is one number in [0, 1]; else `slope x + (1 - slope) relu(x)`."""
    x = call.x()
    given = call.constant(1, "slope") if call.op == "PRelu" else call.attributes.get("alpha", 0.01)
    slope = np.asarray(given, np.float64)
    if slope.min() == slope.max() and 0 <= slope.min() <= 1:
        return call.same("leaky_relu", x, slope=float(slope.min()))
    parts = [call.scale(x, slope), call.scale(call.same("relu", x), 1 - slope)]
    return call.add("add", parts, parts[0].shape)


def _binary(call: Call) -> Computed:
    """Sum, difference, product or quotient of two tensors, one of which may be constant."""
    return _combined(call, call.op.lower(), *call.inputs)


def _combined(call: Call, op: str, first: Any, second: Any) -> Computed:
    if isinstance(second, Computed) and op == "div":
        raise call.refuse("divides by a computed tensor; only a constant divisor is supported")
    if isinstance(first, Computed) and isinstance(second, Computed):
        if op == "mul" and first == second:
            return call.same("square", first)
        pattern = (_gated(call, first, second) or _gated(call, second, first)) if op == "mul" else None
        shape = np.broadcast_shapes(first.shape, second.shape)
        return pattern or call.add(op, [call.expand(first, shape), call.expand(second, shape)], shape)
    x, constant = (first, second) if isinstance(first, Computed) else (second, first)
    if op == "div":
        if not np.all(constant):
            raise call.refuse("divides by a constant that is 0")
        return call.scale(x, 1.0 / constant)
    if op == "sub":
        return call.scale(x, None, -constant) if x is first else call.scale(x, -1.0, constant)
    return call.scale(x, constant) if op == "mul" else call.scale(x, None, constant)


def _gated(call: Call, x: Computed, gate: Computed) -> Computed | None:
    """SiLU or GELU from `x sigmoid(x)` or `x (1 + erf(x / sqrt(2)))`, as exporters write them in parts."""
    start, slope, shift = _line(call, gate.index)
    inner = call.builder.nodes[start]
    if x.shape != gate.shape or inner.op not in ("sigmoid", "erf"):
        return None
    origin, outer, added = _line(call, x.index)
    below, factor, offset = _line(call, inner.inputs[0])
    if below != origin or added or offset:
        return None
    if inner.op == "sigmoid" and (slope, shift, factor, outer) == (1, 0, 1, 1):
        return call.same("silu", x)
    if (
        inner.op == "erf"
        and math.isclose(slope, shift, rel_tol=1e-6)
        and math.isclose(factor, 0.5**0.5, rel_tol=1e-6)
    ):
        total = 2 * slope * outer
        gelu = call.same("gelu", Computed(origin, x.shape), approximate="none")
        return gelu if math.isclose(total, 1, rel_tol=1e-6) else call.scale(gelu, total)
    return None


def _line(call: Call, index: int) -> tuple[int, float, float]:
    """The node from which a chain of scalar scales starts, with its factor and shift."""
    factor, shift = 1.0, 0.0
    while (node := call.builder.nodes[index]).op == "scale" and all(
        c.numel() == 1 for c in node.constants.values()
    ):
        own = {name: float(value) for name, value in node.constants.items()}
        shift += factor * own.get("shift", 0.0)
        factor *= own.get("factor", 1.0)
        index = node.inputs[0]
    return index, factor, shift


def _sum(call: Call) -> Computed:
    """Sum of any number of tensors, the computed ones first."""
    parts = sorted((one for one in call.inputs if one is not None), key=lambda one: isinstance(one, np.ndarray))
    total: Any = parts[0]
    for one in parts[1:]:
        total = _combined(call, "add", total, one)
    return call.as_computed(total)


def _power(call: Call) -> Computed:
    exponent = call.constant(1, "exponent")
    if exponent is None or exponent.size != 1 or exponent.item() not in (1, 2):
        raise call.refuse("is supported for the exponents 1 and 2")
    return call.x() if exponent.item() == 1 else call.same("square", call.x())


def _matmul(call: Call) -> Computed:
    return _product(call, *call.inputs)


def _product(call: Call, first: Any, second: Any) -> Computed:
    """Matrix product of a computed tensor and a constant matrix, which may have further axes of length 1."""
    if isinstance(first, Computed) and isinstance(second, Computed):
        raise call.refuse("multiplies two computed tensors; one must be constant")
    left = isinstance(second, Computed)
    x, matrix = (second, first) if left else (first, second)
    rank, matrix_rank = len(x.shape), matrix.ndim
    if math.prod(matrix.shape[:-2]) != 1 or not rank or not matrix_rank:
        raise call.refuse(f"has a constant of shape {list(matrix.shape)}; only one matrix is supported")
    matrix = matrix.reshape(matrix.shape[-2:] if matrix_rank > 1 else (1, -1) if left else (-1, 1))
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    if left and rank > 1:
        result = call.transpose(call.linear(call.transpose(x, swapped), matrix), swapped)
    else:
        result = call.linear(x, matrix if left else matrix.T)
    shape = list(result.shape)
    if matrix_rank == 1:
        del shape[-2 if left and rank > 1 else -1]
    return call.reshape(result, (1,) * (matrix_rank - max(rank, 2)) + tuple(shape))


def _gemm(call: Call) -> Computed:
    """`alpha A B + beta C`; alpha goes into the constant matrix, which is exact for float32 numbers in float64."""
    factors: list[Any] = []
    for value, flag in zip(call.inputs[:2], ("transA", "transB"), strict=True):
        turned = bool(call.attributes.get(flag, 0))
        if isinstance(value, Computed):
            factors.append(call.transpose(value, (1, 0)) if turned else value)
        elif value is not None:
            alpha = call.attributes.get("alpha", 1.0)
            matrix = value if alpha == 1 else alpha * value
            factors.append(matrix.T if turned else matrix)
    result, beta = _product(call, *factors), call.attributes.get("beta", 1.0)
    third = call.inputs[2] if len(call.inputs) > 2 else None
    if third is None:
        return result
    return _combined(call, "add", result, call.scale(third, beta) if isinstance(third, Computed) else beta * third)


def _batch_norm(call: Call) -> Computed:
    x, names = call.x(), ("scale", "shift", "mean", "variance")
    training = call.attributes.get("training_mode", 0) or (call.opset >= 14 and call.results > 1)
    if training or not call.attributes.get("spatial", 1):
        raise call.refuse("is in training mode or not spatial; only evaluation mode by channel is supported")
    weight, shift, mean, variance = (np.asarray(call.constant(at, name)) for at, name in enumerate(names, 1))
    factor = weight / np.sqrt(variance + call.attributes.get("epsilon", 1e-5))
    shape = (-1,) + (1,) * (len(x.shape) - 2)
    return call.scale(x, factor.reshape(shape), (shift - mean * factor).reshape(shape))


def _cast(call: Call) -> Computed:
    if call.attributes["to"] not in (1, 11):
        raise call.refuse("casts a computed tensor to another type than float32 or float64")
    return call.x()


def _dropout(call: Call) -> Computed:
    training = call.constant(2, "training mode")
    if training is not None and training.any():
        raise call.refuse("is in training mode; only evaluation mode is supported")
    return call.x()


ELEMENTWISE: Mapping[str, Callable[[Call], Computed]] = {
    "Abs": _plain("abs"), "Add": _binary, "BatchNormalization": _batch_norm, "Cast": _cast, "Clip": _clip,
    "Div": _binary, "Dropout": _dropout, "Elu": _plain("elu", alpha=1.0), "Erf": _plain("erf"),
    "Gelu": _plain("gelu", approximate="none"), "Gemm": _gemm, "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish, "Identity": Call.x, "LeakyRelu": _leaky, "MatMul": _matmul, "Max": _extreme,
    "Min": _extreme, "Mul": _binary, "Neg": lambda call: call.scale(call.x(), -1.0), "PRelu": _leaky,
    "Pow": _power, "Relu": _plain("relu"), "Selu": _selu, "Sigmoid": _plain("sigmoid"),
    "Softplus": _plain("softplus"), "Sub": _binary, "Sum": _sum, "Tanh": _plain("tanh"),
}  # fmt: skip
"""Elementwise operators and matrix products."""
