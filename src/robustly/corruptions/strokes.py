"""Strokes over digits: dotted lines and zigzags, as in MNIST-C (Mu and Gilmer, 2019)."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from robustly.randomness import KeyedGenerator

Values = Float64[Tensor, "n c h w"]
Plane = Float64[Tensor, "h w"]
_REACH = 2.3  # distance in pixels at which the logarithm of a stroke's value ends
_HALF = 2.0  # half the length, and the height, of a tooth of a zigzag
_FIRST, _LAST = 2, 25  # columns between which a zigzag runs


def stroke(size: tuple[int, int], start: tuple[float, float], end: tuple[float, float]) -> Plane:
    """A line between two points (column, row): 1 + log(1 - d / 2.3) at vertical distance d, at least 0.

    It covers the columns from that of the start, rounded down, to that of the end, rounded up and excluded.
    """
    height, width = size
    (left, top), (right, bottom) = start, end
    if right == left:
        return torch.zeros(size, dtype=torch.float64)
    columns, rows = torch.arange(width, dtype=torch.float64), torch.arange(height, dtype=torch.float64)[:, None]
    line = top + (bottom - top) / (right - left) * (columns - left)
    distance = (rows - line).abs().clamp(max=_REACH - 1e-10)
    covered = (columns >= math.floor(left)) & (columns < math.ceil(right))
    return ((1 - distance / _REACH).log() + 1).clamp(min=0.0) * covered


def dotted_line(images: Values, draws: KeyedGenerator) -> Values:
    """Add a line from the left to the right border between random rows, in dots of two columns."""
    height, width = images.shape[2:]
    ends = draws.integers(height - 1, 2)
    dots = torch.arange(width) // 2 % 2 == 1
    lines = [stroke((height, width), (0, first), (width - 1, last)) * dots for first, last in ends.tolist()]
    return images + torch.stack(lines)[:, None]


def zigzag(images: Values, draws: KeyedGenerator) -> Values:
    """Add a zigzag of teeth 4 pixels long and 2 high between columns 2 and 25, sloping by at most 5 rows."""
    height, width = images.shape[2:]
    starts, falls = draws.fold("start").integers(height - 1, 1), draws.fold("fall").integers(10, 1) - 5
    strokes = [
        sum(stroke((height, width), *ends) for ends in pairwise(_zigzag_points(row, fall)))
        for (row,), (fall,) in zip(starts.tolist(), falls.tolist(), strict=True)
    ]
    return images + torch.stack(strokes)[:, None]  # type: ignore[arg-type]


def _zigzag_points(row: int, fall: int) -> list[tuple[float, float]]:
    """Corners (column, row) of a zigzag around the line from (2, row) to (25, row + fall)."""
    angle = math.atan(fall / (_LAST - _FIRST))
    length = (_LAST - _FIRST) / math.cos(angle)
    count = int((length - _HALF) // (2 * _HALF)) + 1
    along = [(0.0, 0.0), *(((2 * i + 1) * _HALF, (-1) ** i * _HALF) for i in range(count))]
    whole = 2 * _HALF * (length // (2 * _HALF))
    if length != whole:
        along.append((length, along[-1][1] / (2 * (length - whole))))  # as in the released code
    cosine, sine = math.cos(angle), math.sin(angle)
    return [(_FIRST + cosine * x - sine * y, row + sine * x + cosine * y) for x, y in along]
