"""ATen operations in the vocabulary of the verifier: arithmetic and activations, and the table of all."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustly.certification.readers.aten_layers import LAYERS, largest, weight_of
from robustly.certification.readers.aten_shapes import SHAPES, Arguments, Translation, axes_of, first, same
from robustly.certification.readers.building import Builder, Ref, Shape


def _arithmetic(op: str) -> Translation:
    """Element by element: add, sub, mul, div, rsub, of two values or of a value and a constant."""

    def translate(b: Builder, a: Arguments, shape: Shape) -> Ref:
        left, right, alpha = a["self"], a["other"], a.get("alpha", 1)
        if op == "rsub":
            left, right = right, left
        kind = "sub" if op == "rsub" else op
        if a.get("rounding_mode") is not None:
            b.refuse("rounds, which is not supported")
        if isinstance(left, Ref) and isinstance(right, Ref):
            if kind == "div":
                b.refuse("divides by a value that depends on the input")
            first, second = b.expand(left, shape), b.expand(right, shape)
            second = second if alpha == 1 else b.scale(second, alpha)
            return b.add(kind, (first, second), shape)
        x = left if isinstance(left, Ref) else right
        if len(x.shape) != len(shape):
            b.refuse("broadcasts along the batch axis")
        constant = b.example(right if isinstance(left, Ref) else left, len(shape) + 1)
        if kind in ("add", "sub"):
            factor = -alpha if kind == "sub" else alpha
            if isinstance(left, Ref):
                return b.scale(x, None, constant * factor, shape)
            return b.scale(x, factor, constant, shape)
        if kind == "div":
            if not isinstance(left, Ref):
                b.refuse("divides by a value that depends on the input")
            constant = 1 / constant
        return b.scale(x, constant, None, shape)

    return translate


def _maximum(sign: float) -> Translation:
    """Larger (1) or smaller (-1) of two values: `left + sign relu(sign (right - left))`."""

    def translate(b: Builder, a: Arguments, shape: Shape) -> Ref:
        left, right = a["self"], a["other"]
        left, right = (left, right) if isinstance(left, Ref) else (right, left)
        ends = {"self": right, "other": left}
        difference = _arithmetic("sub")(b, ends, shape)
        assert isinstance(difference, Ref)
        more = b.add("relu", (difference if sign > 0 else b.scale(difference, -1.0),), shape)
        return b.add("add" if sign > 0 else "sub", (b.expand(left, shape), more), shape)

    return translate


def _largest_of(b: Builder, a: Arguments, shape: Shape) -> Any:
    if "dim" in a:
        return largest(b, a, shape), None
    if "other" in a:
        return _maximum(1)(b, a, shape)
    b.refuse("works along the batch axis, so the outputs of an example depend on other examples")


def _pow(b: Builder, a: Arguments, shape: Shape) -> Ref:
    if not isinstance(a["self"], Ref) or isinstance(a["exponent"], Ref | Tensor) or a["exponent"] not in (1, 2):
        b.refuse("is supported for the exponents 1 and 2 only")
    return a["self"] if a["exponent"] == 1 else b.add("square", (a["self"],), shape)


def _sum(mean: bool) -> Translation:
    def translate(b: Builder, a: Arguments, shape: Shape) -> Ref:
        x = a["self"]
        axes = axes_of(b, a.get("dim"), x.shape)
        return b.sum(x, axes, bool(a.get("keepdim")), mean)

    return translate


def _clip(low: float | None = None, high: float | None = None) -> Translation:
    def translate(b: Builder, a: Arguments, shape: Shape) -> Ref:
        least = a.get("min", a.get("min_val", low))
        most = a.get("max", a.get("max_val", high))
        if not all(isinstance(end, int | float | None) for end in (least, most)):
            b.refuse("is supported with numbers as ends only")
        settings = {
            "low": -math.inf if least is None else float(least),
            "high": math.inf if most is None else float(most),
        }
        return b.add("clip", (first(a),), shape, settings)

    return translate


def _hardsigmoid(b: Builder, a: Arguments, shape: Shape) -> Ref:
    return b.add("clip", (b.scale(first(a), 1 / 6, 0.5),), shape, {"low": 0.0, "high": 1.0})


def _hardswish(b: Builder, a: Arguments, shape: Shape) -> Ref:
    return b.add("mul", (first(a), _hardsigmoid(b, a, shape)), shape)


def _leaky_relu(b: Builder, a: Arguments, shape: Shape) -> Ref:
    """Leaky ReLU with one slope, and PReLU with one for each channel."""
    if "negative_slope" in a:
        return b.add("leaky_relu", (first(a),), shape, {"slope": float(a["negative_slope"])})
    slope = weight_of(b, a["weight"]).reshape(-1, *(1,) * (len(shape) - 1))
    if slope.numel() == 1:
        return b.add("leaky_relu", (first(a),), shape, {"slope": float(slope)})
    return b.add("leaky_relu", (first(a),), shape, slope=slope)


def _elu(b: Builder, a: Arguments, shape: Shape) -> Ref:
    """ELU, and SELU, whose two numbers are fixed."""
    if a.get("input_scale", 1) != 1:
        b.refuse("has an input scale, which is not supported")
    out = b.add("elu", (first(a),), shape, {"alpha": float(a.get("alpha", 1.6732632423543772))})
    scale = float(a.get("scale", 1.0507009873554805))
    return out if scale == 1 else b.scale(out, scale)


def _softplus(b: Builder, a: Arguments, shape: Shape) -> Ref:
    beta, threshold = float(a["beta"]), float(a["threshold"])
    if threshold < 20:
        b.refuse(f"jumps at its threshold {threshold:g}; supported are thresholds from 20 on")
    if beta == 1:
        return b.add("softplus", (a["self"],), shape)
    return b.scale(b.add("softplus", (b.scale(a["self"], beta),), shape), 1 / beta)


def _negative(b: Builder, a: Arguments, shape: Shape) -> Ref:
    return b.scale(first(a), -1.0)


def _plain(op: str, *settings: str) -> Translation:
    """An operation on each value with settings of the same names."""

    def translate(b: Builder, a: Arguments, shape: Shape) -> Ref:
        return b.add(op, (first(a),), shape, {name: a[name] for name in settings})

    return translate


def _dropout(b: Builder, a: Arguments, shape: Shape) -> Ref:
    if a["train"] and a["p"]:
        b.refuse("is active: a certificate needs a deterministic model")
    return same(b, a, shape)


TABLE: Mapping[str, Translation] = {
    **LAYERS, **SHAPES,
    "add": _arithmetic("add"), "sub": _arithmetic("sub"), "rsub": _arithmetic("rsub"), "mul": _arithmetic("mul"),
    "div": _arithmetic("div"), "neg": _negative, "pow": _pow, "square": _plain("square"), "maximum": _maximum(1),
    "minimum": _maximum(-1), "max": _largest_of, "sum": _sum(False), "mean": _sum(True),
    "relu": _plain("relu"), "relu6": _clip(0, 6), "hardtanh": _clip(), "clamp": _clip(), "clamp_min": _clip(),
    "clamp_max": _clip(), "hardsigmoid": _hardsigmoid, "hardswish": _hardswish, "leaky_relu": _leaky_relu,
    "prelu": _leaky_relu, "_prelu_kernel": _leaky_relu, "elu": _elu, "selu": _elu, "softplus": _softplus,
    "sigmoid": _plain("sigmoid"), "tanh": _plain("tanh"), "silu": _plain("silu"), "abs": _plain("abs"),
    "gelu": _plain("gelu", "approximate"), "dropout": _dropout, "feature_dropout": _dropout,
    "alpha_dropout": _dropout, "feature_alpha_dropout": _dropout,
}  # fmt: skip
"""Translations by the name of the ATen operator, without overload."""


def supported() -> str:
    """The names of the supported operators, for messages."""
    return ", ".join(sorted(name for name in TABLE if not name.startswith("_")))
