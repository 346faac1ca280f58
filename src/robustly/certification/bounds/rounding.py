"""Rounding errors of float64 arithmetic (Higham, "Accuracy and Stability of Numerical Algorithms", chapter 3)."""

import torch
from torch import Tensor

from robustly.certification.network import Node
from robustly.certification.operations import RULES, Interval, Rows

_UNIT = 2.0**-53
_SAFETY = 2.0


def relative_error(terms: int) -> float:
    """Bound of the error of a sum of that many products, relative to the sum of their sizes."""
    count = _SAFETY * (terms + 8) * _UNIT
    return count / (1 - count)


def row_magnitude(rows: Rows, interval: Interval) -> Tensor:
    """Sum of the sizes of all products of rows with values in an interval, with the leading axes of the rows."""
    size = torch.maximum(interval.lower.abs(), interval.upper.abs())
    return rows.with_coefficients(rows.coefficients.abs()).dot(size)


def widened(node: Node, interval: Interval, sources: list[Interval]) -> Interval:
    """Bounds of a node's output that hold in real arithmetic, from bounds that were computed with rounding."""
    rule = RULES[node.op]
    terms = rule.terms(node) + (4 if rule.relax is not None else 0)
    if not terms or node.op in ("relu", "max_pool"):
        return interval
    sizes = [torch.maximum(one.lower.abs(), one.upper.abs()) for one in sources]
    reached = rule.interval(node, [Interval(-size, size) for size in sizes])
    error = relative_error(terms) * torch.maximum(reached.lower.abs(), reached.upper.abs())
    return Interval(interval.lower - error, interval.upper + error)
