"""ATen operations that move values: shapes, slices, joins, assignments to parts.

A translation gets the builder, the arguments by the names of the operation's schema, and the shape of the result
for one example. Values that depend on the input are `Ref`; all others are constants with their batch axis.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustly.certification.readers.building import Builder, Ref, Shape

Arguments = Mapping[str, Any]
Translation = Callable[[Builder, Arguments, Shape], "Ref | Tensor | tuple[Ref | None, ...]"]


def first(arguments: Arguments) -> Any:
    """The first argument."""
    return next(iter(arguments.values()))


def axis_of(dim: int, axes: int) -> int:
    """Axis of an example, for an axis of a batch with that many axes; -1 for the batch axis."""
    return dim % axes - 1


def axes_of(b: Builder, dims: Sequence[int] | int | None, shape: Shape) -> tuple[int, ...]:
    """Axes of an example that an operation reduces or moves, ascending; the batch axis is refused."""
    given = range(len(shape) + 1) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    axes = tuple(sorted(axis_of(dim, len(shape) + 1) for dim in given))
    if -1 in axes:
        b.refuse("works along the batch axis, so the outputs of an example depend on other examples")
    return axes


def same(b: Builder, a: Arguments, shape: Shape) -> Ref:
    """The values of the first argument in the shape of the result."""
    return b.reshape(first(a), shape)


def _permute(b: Builder, a: Arguments, shape: Shape) -> Ref:
    x, axes = a["self"], len(shape) + 1
    if "dims" in a:
        order = [axis_of(dim, axes) for dim in a["dims"]]
    else:
        order = list(range(-1, axes - 1))
        first, second = axis_of(a["dim0"], axes) + 1, axis_of(a["dim1"], axes) + 1
        order[first], order[second] = order[second], order[first]
    if order[0] != -1:
        b.refuse("moves the batch axis")
    return b.transpose(x, order[1:])


def _places(b: Builder, a: Arguments, length: int) -> tuple[int, int, int]:
    return slice(a["start"], a["end"], a["step"]).indices(length)


def _slice(b: Builder, a: Arguments, shape: Shape) -> Ref:
    x: Ref = a["self"]
    axis = axis_of(a["dim"], len(x.shape) + 1)
    if axis == -1:
        if (a["start"] or 0) != 0 or a["step"] != 1:
            b.refuse("takes some examples of a batch")
        return x
    return b.slice(x, axis, *_places(b, a, x.shape[axis]))


def _select(b: Builder, a: Arguments, shape: Shape) -> Ref:
    x = a["self"]
    (axis,) = axes_of(b, a["dim"], x.shape)
    index = a["index"] % x.shape[axis]
    return b.reshape(b.slice(x, axis, index, index + 1), shape)


def _index(b: Builder, a: Arguments, shape: Shape) -> Ref:
    x = a["self"]
    given = [(axis - 1, index) for axis, index in enumerate(a["indices"]) if index is not None]
    if len(given) != 1 or given[0][0] < 0 or isinstance(given[0][1], Ref):
        b.refuse("is supported with one constant index that is not on the batch axis")
    axis, index = given[0]
    index = index.nonzero() if index.dtype == torch.bool else index
    return b.reshape(b.gather(x, axis, index.flatten()), shape)


def _index_select(b: Builder, a: Arguments, shape: Shape) -> Ref:
    (axis,) = axes_of(b, a["dim"], a["self"].shape)
    if isinstance(a["index"], Ref):
        b.refuse("has an index that depends on the input")
    return b.gather(a["self"], axis, a["index"].flatten())


def _flip(b: Builder, a: Arguments, shape: Shape) -> Ref:
    out: Ref = a["self"]
    for axis in axes_of(b, a["dims"], shape):
        out = b.gather(out, axis, torch.arange(shape[axis] - 1, -1, -1))
    return out


def _cat(b: Builder, a: Arguments, shape: Shape) -> Ref:
    (axis,) = axes_of(b, a["dim"], shape)
    parts = [part for part in a["tensors"] if isinstance(part, Ref) or part.numel()]
    return b.concat([b.as_ref(part, len(shape) + 1) for part in parts], axis)


def _stack(b: Builder, a: Arguments, shape: Shape) -> Ref:
    (axis,) = axes_of(b, a["dim"], shape)
    parts = [b.as_ref(part, len(shape)) for part in a["tensors"]]
    return b.concat([b.reshape(p, (*p.shape[:axis], 1, *p.shape[axis:])) for p in parts], axis)


def _split(b: Builder, a: Arguments, shape: Shape) -> tuple[Ref, ...]:
    x = a["self"]
    (axis,) = axes_of(b, a["dim"], x.shape)
    length = x.shape[axis]
    if "split_sizes" in a:
        sizes = list(a["split_sizes"])
    else:
        size = a["split_size"] if "split_size" in a else -(-length // a["chunks"])
        sizes = [min(size, length - start) for start in range(0, length, size)]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return tuple(b.slice(x, axis, start, start + size) for start, size in zip(starts, sizes, strict=True))


def _unbind(b: Builder, a: Arguments, shape: Shape) -> tuple[Ref, ...]:
    x = a["self"]
    (axis,) = axes_of(b, a["dim"], x.shape)
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    return tuple(b.reshape(b.slice(x, axis, place, place + 1), rest) for place in range(x.shape[axis]))


def _expand(b: Builder, a: Arguments, shape: Shape) -> Ref:
    return b.expand(first(a), shape)


def _repeat(b: Builder, a: Arguments, shape: Shape) -> Ref:
    out: Ref = a["self"]
    if len(a["repeats"]) != len(out.shape) + 1 or a["repeats"][0] != 1:
        b.refuse("repeats the batch axis")
    for axis, count in enumerate(a["repeats"][1:]):
        out = b.concat([out] * count, axis)
    return out


def _scatter(b: Builder, a: Arguments, shape: Shape) -> Ref:
    """A value with a part of one axis replaced: assignment to a slice."""
    whole, part = a["self"], a["src"]
    axes = len(shape) + 1
    axis = axis_of(a["dim"], axes)
    if axis == -1:
        if a.get("start") or a.get("step", 1) != 1 or "index" in a:
            b.refuse("assigns to some examples of a batch")
        return b.as_ref(part, axes)
    if "index" in a:
        start = a["index"] % shape[axis]
        stop, step = start + 1, 1
    else:
        start, stop, step = _places(b, a, shape[axis])
    part = b.as_ref(part, axes - 1 if "index" in a else axes)
    rest = (*shape[:axis], len(range(start, stop, step)), *shape[axis + 1 :])
    both = b.concat([b.as_ref(whole, axes), b.reshape(part, rest)], axis)
    index = torch.arange(shape[axis])
    index[start:stop:step] = torch.arange(shape[axis], shape[axis] + rest[axis])
    return b.gather(both, axis, index)


def _filled(b: Builder, a: Arguments, shape: Shape) -> Ref | Tensor:
    """The second value, broadcast to the shape of the first: `fill` and `copy`."""
    value = list(a.values())[1]
    if isinstance(value, Ref):
        return b.expand(value, shape)
    return torch.as_tensor(value).double().expand(b.batch, *shape)


def _to(b: Builder, a: Arguments, shape: Shape) -> Ref:
    return a["self"]  # type: ignore[no-any-return]  # the reader checks the type of the result


SHAPES: Mapping[str, Translation] = {
    "flatten": same, "view": same, "reshape": same, "_unsafe_view": same, "unflatten": same, "squeeze": same,
    "unsqueeze": same, "permute": _permute, "transpose": _permute, "slice": _slice, "select": _select,
    "index": _index, "index_select": _index_select, "flip": _flip, "cat": _cat, "concat": _cat, "stack": _stack,
    "split": _split, "split_with_sizes": _split, "chunk": _split, "unbind": _unbind, "expand": _expand,
    "expand_as": _expand, "repeat": _repeat, "slice_scatter": _scatter, "select_scatter": _scatter,
    "fill": _filled, "copy": _filled, "contiguous": _to, "clone": _to, "detach": _to, "alias": _to, "to": _to,
    "_to_copy": _to, "type_as": _to,
}  # fmt: skip
