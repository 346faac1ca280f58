"""ATen operations with weights or windows: linear, convolutions, batch norm, padding, pooling."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustly.certification.readers.aten_shapes import Arguments, Translation, axes_of
from robustly.certification.readers.building import Builder, Ref, Shape


def weight_of(b: Builder, value: Any) -> Tensor:
    """A weight, which must not depend on the input."""
    if isinstance(value, Ref):
        b.refuse("multiplies two values that depend on the input, which is supported element by element only")
    return value.double()  # type: ignore[no-any-return]


def _numbers(value: Any, count: int) -> tuple[int, ...]:
    numbers = [value] if isinstance(value, int) else list(value)
    return tuple(int(n) for n in (numbers * count if len(numbers) == 1 else numbers))


def _linear(b: Builder, a: Arguments, shape: Shape) -> Ref:
    return _product(b, a["input"], weight_of(b, a["weight"]), a["bias"], shape)


def _product(b: Builder, x: Any, weight: Tensor, bias: Any, shape: Shape) -> Ref:
    if not isinstance(x, Ref):
        b.refuse("has weights that depend on the input")
    vector = weight.ndim == 1
    weight = weight.unsqueeze(0) if vector else weight
    if not x.shape:
        b.refuse("multiplies along the batch axis")
    if isinstance(bias, Ref):
        b.refuse("has a bias that depends on the input")
    bias = None if bias is None else bias.double().expand(len(weight))
    out = b.add("linear", (x,), (*x.shape[:-1], len(weight)), weight=weight, bias=bias)
    return b.reshape(out, shape) if vector else out


def _matmul(b: Builder, a: Arguments, shape: Shape) -> Ref:
    left, right = a.values()
    if isinstance(left, Ref):
        weight = weight_of(b, right)
        if weight.ndim > 2:
            b.refuse("multiplies by a batch of matrices")
        return _product(b, left, weight.T if weight.ndim == 2 else weight, None, shape)
    weight = left.double()
    if weight.ndim != 2 or len(right.shape) != 2:
        b.refuse("multiplies along the batch axis, or by a batch of matrices")
    turned = _product(b, b.transpose(right, (1, 0)), weight, None, (right.shape[1], len(weight)))
    return b.transpose(turned, (1, 0))


def _addmm(b: Builder, a: Arguments, shape: Shape) -> Ref:
    if isinstance(a["self"], Ref):
        b.refuse("has a bias that depends on the input")
    weight = weight_of(b, a["mat2"]).T * a["alpha"]
    return _product(b, a["mat1"], weight, b.example(a["self"], len(shape) + 1) * a["beta"], shape)


def _conv(b: Builder, a: Arguments, shape: Shape) -> Ref:
    x, weight = a["input"], weight_of(b, a["weight"])
    axes = weight.ndim - 2
    if not isinstance(x, Ref):
        b.refuse("has weights that depend on the input")
    _check_planes(b, x, shape, axes)
    settings: dict[str, Any] = {
        "stride": _numbers(a["stride"], axes),
        "dilation": _numbers(a["dilation"], axes),
        "groups": int(a["groups"]),
    }
    bias = None if a["bias"] is None else weight_of(b, a["bias"])
    if a.get("transposed", "output_padding" in a):
        settings |= {key: _numbers(a[key], axes) for key in ("padding", "output_padding")}
        return b.add("conv_transpose", (x,), shape, settings, weight=weight, bias=bias)
    padding = a["padding"]
    if isinstance(padding, str):
        both = [
            d * (k - 1) * (padding == "same") for d, k in zip(settings["dilation"], weight.shape[2:], strict=True)
        ]
        padding = [0] * axes
        if any(total % 2 for total in both):
            x = b.pad(x, [side for total in reversed(both) for side in (total // 2, total - total // 2)])
        else:
            padding = [total // 2 for total in both]
    settings["padding"] = _numbers(padding, axes)
    return b.add("conv", (x,), shape, settings, weight=weight, bias=bias)


def _check_planes(b: Builder, x: Ref, shape: Shape, axes: int) -> None:
    if axes not in (1, 2) or len(shape) != axes + 1 or len(x.shape) != len(shape):
        b.refuse("is supported for batches `(N, C, L)` or `(N, C, H, W)` only")


def _pad(b: Builder, a: Arguments, shape: Shape) -> Ref:
    if a.get("mode", "constant") != "constant":
        b.refuse(f"has the mode {a['mode']!r}; only 'constant' is supported")
    if len(a["pad"]) // 2 > len(a["self"].shape) or min(a["pad"], default=0) < 0:
        b.refuse("pads the batch axis, or crops: use a slice to crop")
    return b.pad(a["self"], a["pad"], a["value"] or 0.0)


def _batch_norm(b: Builder, a: Arguments, shape: Shape) -> Ref:
    if a.get("training") or a["running_mean"] is None:
        b.refuse("has no running statistics, so the outputs of an example depend on other examples")
    mean, var = a["running_mean"].double(), a["running_var"].double()
    factor = (var + a["eps"]).rsqrt() * (1.0 if a["weight"] is None else a["weight"].double())
    shift = (0.0 if a["bias"] is None else a["bias"].double()) - mean * factor
    ranked = (-1, *(1,) * (len(shape) - 1))
    return b.scale(a["input"], factor.reshape(ranked), shift.reshape(ranked))


def _pool(op: str, axes: int) -> Translation:
    def translate(b: Builder, a: Arguments, shape: Shape) -> Ref:
        x = a["self"]
        _check_planes(b, x, shape, axes)
        if a.get("divisor_override") is not None:
            b.refuse("has a divisor of its own, which is not supported")
        kernel, padding = (_numbers(a[name], axes) for name in ("kernel_size", "padding"))
        stride = _numbers(a["stride"], axes) if a["stride"] else kernel
        own: dict[str, Any] = {"count_include_pad": bool(a.get("count_include_pad"))}
        if op == "max_pool":
            own = {"dilation": _numbers(a["dilation"], axes)}
        return b.pool(op, x, shape[1:], kernel, stride, padding, bool(a["ceil_mode"]), own)

    return translate


def _adaptive(op: str, axes: int) -> Translation:
    def translate(b: Builder, a: Arguments, shape: Shape) -> Ref:
        x, out = a["self"], shape[1:]
        _check_planes(b, x, shape, axes)
        if all(n % m == 0 for n, m in zip(x.shape[1:], out, strict=True)):
            size = tuple(n // m for n, m in zip(x.shape[1:], out, strict=True))
            return b.pool(op, x, out, size, size)
        if op == "max_pool":
            b.refuse("is supported only where its output size divides the input size")
        return b.add("adaptive_avg_pool", (x,), shape, {"output": tuple(out)})

    return translate


def _with_indices(translate: Translation) -> Translation:
    """A pooling that returns the indices too, which must not be used."""

    def both(b: Builder, a: Arguments, shape: Shape) -> tuple[Ref | None, ...]:
        out = translate(b, a, shape)
        assert isinstance(out, Ref)
        return (out, None, None)

    return both


def largest(b: Builder, a: Arguments, shape: Shape) -> Ref:
    """Largest value along axes, as one pooling window."""
    x = a["self"]
    axes = axes_of(b, a["dim"], x.shape)
    rest = [axis for axis in range(len(x.shape)) if axis not in axes]
    count = math.prod(x.shape[axis] for axis in axes)
    flat = b.reshape(b.transpose(x, (*rest, *axes)), (math.prod(x.shape[axis] for axis in rest), count))
    return b.reshape(b.pool("max_pool", flat, (1,), (count,), (count,)), shape)


LAYERS: Mapping[str, Translation] = {
    "conv1d": _conv, "conv2d": _conv, "convolution": _conv, "conv_transpose1d": _conv, "conv_transpose2d": _conv,
    "linear": _linear, "matmul": _matmul, "mm": _matmul, "addmm": _addmm, "pad": _pad, "constant_pad_nd": _pad,
    "batch_norm": _batch_norm, "_native_batch_norm_legit_no_training": _with_indices(_batch_norm),
    "max_pool1d": _pool("max_pool", 1), "max_pool2d": _pool("max_pool", 2), "avg_pool1d": _pool("avg_pool", 1),
    "avg_pool2d": _pool("avg_pool", 2), "max_pool1d_with_indices": _with_indices(_pool("max_pool", 1)),
    "max_pool2d_with_indices": _with_indices(_pool("max_pool", 2)), "adaptive_avg_pool1d": _adaptive("avg_pool", 1),
    "adaptive_avg_pool2d": _adaptive("avg_pool", 2), "_adaptive_avg_pool2d": _adaptive("avg_pool", 2),
    "adaptive_max_pool1d": _with_indices(_adaptive("max_pool", 1)),
    "adaptive_max_pool2d": _with_indices(_adaptive("max_pool", 2)), "amax": largest,
}  # fmt: skip
