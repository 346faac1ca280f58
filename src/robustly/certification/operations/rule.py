"""Contract of one operation: evaluation, interval, linear relaxation and the adjoint that moves rows backwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from robustly.certification.network import Node
from robustly.certification.operations.rows import Rows


class Interval(NamedTuple):
    """Lower and upper bounds of a node's output, `(B, *shape)` each."""

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Relaxation:
    """Two lines around an operation f: `lower_slope x + lower_offset <= f(x) <= upper_slope x + upper_offset`.

    For an operation with two inputs the slopes have a last axis of length 2, one slope for each input.

    Args:
        lower_slope: slope of the line below.
        lower_offset: its offset; None means 0.
        upper_slope: slope of the line above.
        upper_offset: its offset; None means 0.
        per_row: the tensors have the leading axes of the rows, `(B, R, ...)` or `(R, ...)`; else `(B, *shape)`.
            The caller of `relax` sets it if the free parameters are per row.
        index: places in the flattened plane of a channel of the input values that the line below and the line
            above read, int64 like the slopes; None if they read the value at the output's own place.
    """

    lower_slope: Tensor
    lower_offset: Tensor | None
    upper_slope: Tensor
    upper_offset: Tensor | None
    per_row: bool = False
    index: tuple[Tensor, Tensor] | None = None


class Pushed(NamedTuple):
    """Rows moved from the output of a node to its inputs.

    Args:
        inputs: rows over each input; None where the input does not occur.
        bias: what the constants of the node add to the value of each row, with the leading axes of the rows; None
            means 0.
    """

    inputs: tuple[Rows | None, ...]
    bias: Tensor | None = None


def _exact(node: Node) -> int:
    return 0


@dataclass(frozen=True)
class Rule:
    """One operation of the table.

    Args:
        evaluate: the operation on batches: `(node, inputs) -> output`.
        interval: bounds of the output from bounds of the inputs.
        backward: rows over the output -> lower-bounding rows over the inputs, `(node, rows, extra) -> Pushed`.
            `extra` is what `relax` returned; None for an operation without `relax`.
        relax: linear bounds of the operation from the bounds of its inputs, `(node, intervals, free) -> extra`;
            None if the operation is linear. `free` holds free parameters in [0, 1], one per value of the output,
            or is None for the standard choice.
        has_free: the relaxation has free parameters that can be optimised.
        windows: `backward` accepts rows that are windows of a plane.
        terms: number of summed products in a value of the output, for rounding errors; 0 if the operation selects
            and rounds nothing.
    """

    evaluate: Callable[[Node, Sequence[Tensor]], Tensor]
    interval: Callable[[Node, Sequence[Interval]], Interval]
    backward: Callable[[Node, Rows, "Relaxation | None"], Pushed]
    relax: "Callable[[Node, Sequence[Interval], Tensor | None], Relaxation] | None" = None
    has_free: bool = False
    windows: bool = False
    terms: Callable[[Node], int] = _exact
