"""Rules of pooling: avg_pool, adaptive_avg_pool, max_pool."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from robustly.certification.network import Node, UnsupportedOperationError
from robustly.certification.operations.relaxations import slack
from robustly.certification.operations.rows import Rows
from robustly.certification.operations.rule import Interval, Pushed, Relaxation, Rule


def _average(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    setting = node.settings
    pool = functional.avg_pool1d if len(node.shape) == 2 else functional.avg_pool2d
    return pool(
        inputs[0],
        setting["kernel"],
        setting["stride"],
        setting["padding"],
        bool(setting["ceil_mode"]),
        bool(setting["count_include_pad"]),
    )


def _average_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    return Interval(_average(node, [inputs[0].lower]), _average(node, [inputs[0].upper]))


def _average_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    setting = node.settings
    matrices = []
    for axis, (length, made) in enumerate(zip(node.input_shapes[0][1:], node.shape[1:], strict=True)):
        kernel, stride, padding = (int(setting[name][axis]) for name in ("kernel", "stride", "padding"))
        starts = [one * stride - padding for one in range(made)]
        whole = [(start, min(start + kernel, length + padding)) for start in starts]
        parts = [(max(0, start), min(end, length)) for start, end in whole]
        counted = whole if setting["count_include_pad"] else parts
        matrices.append(_averages(length, parts, [end - start for start, end in counted]))
    return Pushed((_through_matrices(rows, matrices),))


def _averages(length: int, parts: Sequence[tuple[int, int]], counts: Sequence[int]) -> Tensor:
    """Matrix of the averages over parts of an axis, `(parts, length)`."""
    matrix = torch.zeros(len(parts), length, dtype=torch.float64)
    for row, ((start, end), count) in enumerate(zip(parts, counts, strict=True)):
        matrix[row, start:end] = 1 / count
    return matrix


def _through_matrices(rows: Rows, matrices: Sequence[Tensor]) -> Rows:
    """Rows moved back through an average that is a product of averages along each axis of the plane."""
    last = matrices[-1].to(rows.coefficients)
    moved = rows.coefficients @ last
    if len(matrices) == 2:
        moved = matrices[0].to(rows.coefficients).T @ moved
    return rows.with_coefficients(moved)


def _average_terms(node: Node) -> int:
    return int(math.prod(node.settings["kernel"])) + 1


def _adaptive(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    if len(node.shape) == 2:
        return functional.adaptive_avg_pool1d(inputs[0], node.shape[1])
    return functional.adaptive_avg_pool2d(inputs[0], (node.shape[1], node.shape[2]))


def _adaptive_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    return Interval(_adaptive(node, [inputs[0].lower]), _adaptive(node, [inputs[0].upper]))


def _adaptive_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    matrices = []
    for length, made in zip(node.input_shapes[0][1:], node.shape[1:], strict=True):
        parts = [(one * length // made, -(-(one + 1) * length // made)) for one in range(made)]
        matrices.append(_averages(length, parts, [end - start for start, end in parts]))
    return Pushed((_through_matrices(rows, matrices),))


def _adaptive_terms(node: Node) -> int:
    spans = zip(node.input_shapes[0][1:], node.shape[1:], strict=True)
    return math.prod(-(-length // made) + 1 for length, made in spans) + 1


def _max(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    setting = node.settings
    pool = functional.max_pool1d if len(node.shape) == 2 else functional.max_pool2d
    return pool(
        inputs[0],
        setting["kernel"],
        setting["stride"],
        setting["padding"],
        setting["dilation"],
        bool(setting["ceil_mode"]),
    )


def _max_interval(node: Node, inputs: Sequence[Interval]) -> Interval:
    low, high = _max(node, [inputs[0].lower]), _max(node, [inputs[0].upper])
    if bool((high == -torch.inf).any()):
        raise UnsupportedOperationError(
            f"node {node.name!r} (max_pool) has windows that lie in the padding; supported are windows with a value"
        )
    return Interval(low, high)


def taps(node: Node, axis: int) -> list[list[int]]:
    """Places along an axis of the plane that each tap of a max pool reads, one list for each tap; -1 in padding."""
    length, made = node.input_shapes[0][1 + axis], node.shape[1 + axis]
    kernel, stride, padding, dilation = (
        int(node.settings[name][axis]) for name in ("kernel", "stride", "padding", "dilation")
    )
    places = [[one * stride - padding + tap * dilation for one in range(made)] for tap in range(kernel)]
    return [[place if 0 <= place < length else -1 for place in row] for row in places]


def _windows(node: Node, device: torch.device) -> Tensor:
    """Places in the flattened plane of the taps of each window, `(taps, windows)`; the plane's size in padding."""
    plane = node.input_shapes[0][1:]
    index = torch.zeros(1, 1, dtype=torch.int64)
    for axis, length in enumerate(plane):
        along = torch.tensor(taps(node, axis))
        step = torch.where(along < 0, math.prod(plane), along)
        both = index.unsqueeze(1).unsqueeze(3) * length + step.unsqueeze(0).unsqueeze(2)
        index = both.flatten(2).flatten(0, 1)
    return index.clamp_max(math.prod(plane)).to(device)


def _max_relax(node: Node, inputs: Sequence[Interval], free: Tensor | None) -> Relaxation:
    """Bound the largest value of each window.

    Below: the value with the largest lower bound, the first of equals. Above: let x be the value with the largest
    upper bound, m the largest upper bound of the others; then the maximum is at most max(x, m), and that is at most
    its chord; it is x itself where no other value can exceed it.
    """
    windows = _windows(node, inputs[0].lower.device)
    lower, upper = (
        functional.pad(bound.flatten(2), (0, 1), value=-torch.inf)[:, :, windows] for bound in inputs[0]
    )
    first, last = lower.argmax(2, keepdim=True), upper.argmax(2, keepdim=True)
    top, bottom = upper.gather(2, last), lower.gather(2, last)
    others = upper.scatter(2, last, -torch.inf).amax(2, keepdim=True)
    exact = bottom >= others
    floor = torch.where(exact, bottom, others)
    slope = torch.where(exact, 1.0, (top - floor) / torch.where(exact, 1.0, top - bottom))
    through = torch.maximum(floor - slope * bottom, top - slope * top)
    offset = torch.where(exact, 0.0, through + slack(floor, top, slope * bottom, slope * top))

    def place(tap: Tensor) -> Tensor:
        return windows.expand_as(lower).gather(2, tap)

    below, above, slope, offset = (
        one.reshape(-1, *node.shape) for one in (place(first), place(last), slope, offset)
    )
    return Relaxation(torch.ones_like(slope), None, slope, offset, index=(below, above))


def _max_backward(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    rows = rows if _is_tiled(node) else rows.dense()
    assert extra is not None
    assert extra.index is not None
    assert extra.upper_offset is not None
    below, above, slope, offset = (
        rows.gather(one) for one in (*extra.index, extra.upper_slope, extra.upper_offset)
    )
    coefficients = rows.coefficients
    positive = coefficients > 0
    shape = node.input_shapes[0]
    bias = rows.total(coefficients.clamp_max(0) * offset)
    place = torch.where(positive, below, above).flatten(rows.lead + 1)
    moved = (coefficients * torch.where(positive, 1.0, slope)).flatten(rows.lead + 1)
    if rows.offset is not None:
        return Pushed((_max_windows(node, rows, place, moved),), bias)
    plane = coefficients.new_zeros(*rows.leading, shape[0], math.prod(shape[1:]))
    full = plane.scatter_add(-1, place, moved).reshape(*rows.leading, *shape)
    return Pushed((rows.with_coefficients(full),), bias)


def _max_windows(node: Node, rows: Rows, place: Tensor, moved: Tensor) -> Rows:
    """Windows moved through a max pool whose own windows do not overlap.

    Args:
        node: the max pool.
        rows: rows over its output, as windows.
        place: place in the input's plane to which each coefficient moves, `(R, C, h*w)`.
        moved: the coefficients there.
    """
    assert rows.offset is not None
    _, height, width = node.input_shapes[0]
    (down, right), (h, w) = node.settings["stride"], rows.coefficients.shape[2:]
    offset = rows.offset * torch.tensor([down, right], device=rows.offset.device)
    row = place // width - offset[:, :1].unsqueeze(2)
    column = place % width - offset[:, 1:].unsqueeze(2)
    # outside the plane the coefficients are 0, wherever they go
    inside = (row * (w * right) + column).clamp(0, h * down * w * right - 1)
    window = moved.new_zeros(*moved.shape[:2], h * down * w * right).scatter_add(2, inside, moved)
    moved_rows = replace(
        rows,
        coefficients=window.reshape(*moved.shape[:2], h * down, w * right),
        offset=offset,
        plane=(height, width),
    )
    return moved_rows.dense() if h * down * w * right >= height * width else moved_rows


def _is_tiled(node: Node) -> bool:
    """Return True if the windows of a pool of a plane do not overlap, and none leaves the plane."""
    settings = node.settings
    return len(node.shape) == 3 and all(
        settings["kernel"][axis] == settings["stride"][axis]
        and not settings["padding"][axis]
        and settings["dilation"][axis] == 1
        and node.shape[1 + axis] * settings["stride"][axis] <= node.input_shapes[0][1 + axis]
        for axis in (0, 1)
    )


def _one(node: Node) -> int:
    return 1


RULES = {
    "avg_pool": Rule(_average, _average_interval, _average_backward, terms=_average_terms),
    "adaptive_avg_pool": Rule(_adaptive, _adaptive_interval, _adaptive_backward, terms=_adaptive_terms),
    "max_pool": Rule(_max, _max_interval, _max_backward, _max_relax, windows=True, terms=_one),
}
