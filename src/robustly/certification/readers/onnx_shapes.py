"""ONNX operators that move or sum values in the vocabulary of the verifier: convolution, pooling, shapes, parts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from robustly.certification.readers.building import Shape
from robustly.certification.readers.onnx_call import Call, Computed, drops


def _window(call: Call, kernel: Sequence[int]) -> tuple[Shape, Shape, list[tuple[int, int]]]:
    """Stride, dilation and padding (before, after) of each spatial axis."""
    x = call.x()
    if x.shape[0] != 1 or len(x.shape) not in (3, 4) or len(kernel) != len(x.shape) - 2 or min(kernel) < 1:
        raise call.refuse(
            f"has an input of shape {list(x.shape)} and a kernel of shape {list(kernel)}; supported are a batch of "
            "1, channels and 1 or 2 spatial axes"
        )
    axes = len(kernel)
    stride = tuple(call.attributes.get("strides", [1] * axes))
    dilation = tuple(call.attributes.get("dilations", [1] * axes))
    if len(stride) != axes or len(dilation) != axes or min(stride + dilation) < 1:
        raise call.refuse(f"has strides {list(stride)} and dilations {list(dilation)}; each axis needs 1 or more")
    automatic = call.attributes.get("auto_pad", b"NOTSET").decode()
    if automatic == "NOTSET":
        given = list(call.attributes.get("pads", [0] * (2 * axes)))
        if len(given) != 2 * axes or min(given) < 0:
            raise call.refuse(f"has pads {given}; allowed are two numbers from 0 on for each axis")
        return stride, dilation, list(zip(given[:axes], given[axes:], strict=True))
    pads = []
    for length, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = 0 if automatic == "VALID" else max((-(-length // s) - 1) * s + (k - 1) * d + 1 - length, 0)
        pads.append(
            (total - total // 2, total // 2) if automatic == "SAME_LOWER" else (total // 2, total - total // 2)
        )
    return stride, dilation, pads


def _lengths(x: Computed, kernel: Sequence[int], stride: Shape, dilation: Shape, pads: Any, ceil: bool) -> Shape:
    """Spatial shape of the output; a last window that would begin behind the input is left out."""
    lengths = []
    for n, k, s, d, (low, high) in zip(x.shape[2:], kernel, stride, dilation, pads, strict=True):
        room = n + low + high - (k - 1) * d - 1
        count = (-(-room // s) if ceil else room // s) + 1
        lengths.append(count - 1 if ceil and (count - 1) * s >= n + low else count)
    return tuple(lengths)


def _even(pads: Sequence[tuple[int, int]]) -> bool:
    return all(low == high for low, high in pads)


def _weights(call: Call) -> dict[str, Any]:
    weight, bias = call.constant(1, "weight"), call.constant(2, "bias")
    if weight is None or weight.ndim < 3:
        raise call.refuse("has no weight of at least 3 axes")
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def _conv(call: Call) -> Computed:
    x, constants, groups = call.x(), _weights(call), call.attributes.get("group", 1)
    kernel = constants["weight"].shape[2:]
    stride, dilation, pads = _window(call, kernel)
    if x.shape[1] != constants["weight"].shape[1] * groups:
        raise call.refuse(f"has {x.shape[1]} input channels and a weight of {list(constants['weight'].shape)}")
    shape = (1, len(constants["weight"]), *_lengths(x, kernel, stride, dilation, pads, False))
    if not _even(pads):
        x, pads = call.pad(x, pads), [(0, 0)] * len(pads)
    padding = tuple(low for low, _ in pads)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return call.add("conv", [x], shape, settings, constants)


def _conv_transpose(call: Call) -> Computed:
    """Transposed convolution; unequal padding is cut off afterwards."""
    x, constants, groups = call.x(), _weights(call), call.attributes.get("group", 1)
    kernel = constants["weight"].shape[2:]
    if "output_shape" in call.attributes or call.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise call.refuse("has an output shape or automatic padding; only given pads are supported")
    stride, dilation, pads = _window(call, kernel)
    more = tuple(call.attributes.get("output_padding", [0] * len(kernel)))
    padding = tuple(min(pair) for pair in pads)
    sizes = zip(x.shape[2:], stride, kernel, dilation, more, padding, strict=True)
    lengths = tuple((n - 1) * s + (k - 1) * d + 1 + m - 2 * p for n, s, k, d, m, p in sizes)
    settings = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "output_padding": more,
    }
    shape = (1, constants["weight"].shape[1] * groups, *lengths)
    result = call.add("conv_transpose", [x], shape, settings, constants)
    for axis, (p, length, (low, high)) in enumerate(zip(padding, lengths, pads, strict=True), 2):
        result = call.slice(result, axis, slice(low - p, length - (high - p)))
    return result


def _max_pool(call: Call) -> Computed:
    """Largest value of each window; unequal padding repeats the border, which changes no window's largest value."""
    x, kernel = call.x(), tuple(call.attributes["kernel_shape"])
    stride, dilation, pads = _window(call, kernel)
    ceil = bool(call.attributes.get("ceil_mode", 0))
    lengths = _lengths(x, kernel, stride, dilation, pads, ceil)
    if not _even(pads) or any(2 * low > k for (low, _), k in zip(pads, kernel, strict=True)):
        if max(dilation) > 1 or any(max(pair) >= k for pair, k in zip(pads, kernel, strict=True)):
            raise call.refuse(
                f"has padding {pads}, which is supported without dilation and below the kernel's size"
            )
        for axis, (count, k, s, (low, _)) in enumerate(zip(lengths, kernel, stride, pads, strict=True), 2):
            places = np.arange((count - 1) * s + k) - low
            x = call.take(x, axis, places.clip(0, x.shape[axis] - 1))
        pads, ceil = [(0, 0)] * len(pads), False
    padding, own = [low for low, _ in pads], {"dilation": dilation}
    pooled = call.builder.pool("max_pool", call.ref(x), lengths, kernel, stride, padding, ceil, own)
    return call.computed(pooled, (1, *pooled.shape))


def _average_pool(call: Call) -> Computed:
    """Mean of each window; where the windows count different numbers of values, a scale follows."""
    x, kernel = call.x(), tuple(call.attributes["kernel_shape"])
    stride, dilation, pads = _window(call, kernel)
    ceil, all_count = (bool(call.attributes.get(name, 0)) for name in ("ceil_mode", "count_include_pad"))
    if max(dilation) > 1:
        raise call.refuse("has a dilation; averages are supported without it")
    lengths = _lengths(x, kernel, stride, dilation, pads, ceil)
    factor, more = np.ones(()), []
    for n, count, k, s, (low, high) in zip(x.shape[2:], lengths, kernel, stride, pads, strict=True):
        starts = np.arange(count) * s - low
        first, last = (-low, n + high) if all_count else (0, n)
        counted = np.minimum(starts + k, last) - np.maximum(starts, first)
        factor = factor[..., None] * (k / counted)
        more.append((low, int(starts[-1]) + k - n))
    x = call.pad(x, [(low, max(high, 0)) for low, high in more])
    pooled = call.builder.pool("avg_pool", call.ref(x), lengths, kernel, stride)
    return call.scale(call.computed(pooled, (1, *pooled.shape)), factor)


def _reduced(call: Call, axes: Sequence[int] | None, keep: bool, mean: bool) -> Computed:
    x = call.x()
    rank = len(x.shape)
    axes = sorted({call.axis(axis, rank) for axis in (range(rank) if axes is None else axes)})
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape) if keep or axis not in axes)
    first = int(drops(x.shape))
    long = [axis - first for axis in axes if x.shape[axis] > 1]
    return call.computed(call.builder.sum(call.ref(x, not first), long, True, mean), shape)


def _reduce(call: Call) -> Computed:
    axes = call.integers("axes")
    if not axes and call.attributes.get("noop_with_empty_axes", 0):
        return call.x()
    return _reduced(call, axes or None, bool(call.attributes.get("keepdims", 1)), call.op == "ReduceMean")


def _global_average(call: Call) -> Computed:
    return _reduced(call, range(2, len(call.x().shape)), True, True)


def _global_max(call: Call) -> Computed:
    return _max_pool(replace(call, attributes={"kernel_shape": call.x().shape[2:]}))


def _reshape(call: Call) -> Computed:
    x, target = call.x(), call.integers("shape") or []
    if 0 in target and call.attributes.get("allowzero", 0):
        raise call.refuse("has an axis of length 0")
    shape = [x.shape[axis] if length == 0 else length for axis, length in enumerate(target)]
    if shape.count(-1) == 1:
        rest = -math.prod(shape)
        shape[shape.index(-1)] = math.prod(x.shape) // rest if rest > 0 else -1
    return call.reshape(x, tuple(shape))


def _flatten(call: Call) -> Computed:
    x, axis = call.x(), call.attributes.get("axis", 1)
    axis = axis if axis == len(x.shape) else call.axis(axis, len(x.shape))
    return call.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _squeeze(call: Call) -> Computed:
    x, axes = call.x(), call.integers("axes")
    rank = len(x.shape)
    gone = (
        {axis for axis in range(rank) if x.shape[axis] == 1} if axes is None else {call.axis(a, rank) for a in axes}
    )
    return call.reshape(x, tuple(n for axis, n in enumerate(x.shape) if axis not in gone))


def _unsqueeze(call: Call) -> Computed:
    x, axes = call.x(), call.integers("axes") or []
    rank = len(x.shape) + len(axes)
    new, old = {call.axis(axis, rank) for axis in axes}, iter(x.shape)
    return call.reshape(x, tuple(1 if axis in new else next(old) for axis in range(rank)))


def _transpose(call: Call) -> Computed:
    x = call.x()
    order = call.attributes.get("perm") or list(range(len(x.shape)))[::-1]
    return call.transpose(x, [call.axis(axis, len(x.shape)) for axis in order])


def _expand(call: Call) -> Computed:
    return call.expand(call.x(), np.broadcast_shapes(call.x().shape, tuple(call.integers("shape") or [])))


def _slice(call: Call) -> Computed:
    x = call.x()
    starts, ends = call.integers("starts", 1) or [], call.integers("ends", 2) or []
    axes, steps = call.integers("axes", 3), call.integers("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps, strict=True):
        x = call.slice(x, call.axis(axis, len(x.shape)), slice(start, end, step))
    return x


def _split(call: Call) -> list[Computed]:
    x = call.x()
    axis = call.axis(call.attributes.get("axis", 0), len(x.shape))
    sizes, start, parts = call.integers("split"), 0, []
    if sizes is None:
        each = -(-x.shape[axis] // call.results)
        sizes = [min(each, x.shape[axis] - each * at) for at in range(call.results)]
    for size in sizes:
        parts.append(call.slice(x, axis, slice(start, start + size)))
        start += size
    return parts


def _gather(call: Call) -> Computed:
    x, index = call.x(), call.constant(1, "index")
    axis = call.axis(call.attributes.get("axis", 0), len(x.shape))
    if index is None or not np.isin(index, np.arange(-x.shape[axis], x.shape[axis])).all():
        raise call.refuse(f"has an index outside an axis of length {x.shape[axis]}")
    result = call.take(x, axis, index.ravel() % x.shape[axis])
    return call.reshape(result, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _concat(call: Call) -> Computed:
    parts = [call.as_computed(one) for one in call.inputs if one is not None]
    axis = call.axis(call.attributes["axis"], len(parts[0].shape))
    return call.along(axis, lambda *refs: call.builder.concat(refs[:-1], refs[-1]), *parts)


def _pad(call: Call) -> Computed:
    x, given = call.x(), call.integers("pads") or []
    if call.attributes.get("mode", b"constant") != b"constant":
        raise call.refuse("pads in another mode than 'constant'")
    value = call.constant(2, "value")
    value = call.attributes.get("value", 0.0) if value is None else value.item()
    rank = len(x.shape)
    axes = [call.axis(axis, rank) for axis in call.integers("axes", 3) or range(rank)]
    pads = [(0, 0)] * rank
    for axis, low, high in zip(axes, given[: len(axes)], given[len(axes) :], strict=True):
        x = call.slice(x, axis, slice(max(-low, 0), x.shape[axis] + min(high, 0)))
        pads[axis] = (max(low, 0), max(high, 0))
    return call.pad(x, pads, float(value))


SHAPES: Mapping[str, Callable[[Call], Computed | list[Computed]]] = {
    "AveragePool": _average_pool, "Concat": _concat, "Conv": _conv, "ConvTranspose": _conv_transpose,
    "Expand": _expand, "Flatten": _flatten, "Gather": _gather, "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max, "MaxPool": _max_pool, "Pad": _pad, "ReduceMean": _reduce, "ReduceSum": _reduce,
    "Reshape": _reshape, "Slice": _slice, "Split": _split, "Squeeze": _squeeze, "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}  # fmt: skip
"""Operators that move or sum values."""
