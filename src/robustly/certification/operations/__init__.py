"""The table of operations: one rule for each."""

from collections.abc import Mapping

from robustly.certification.operations import activations, affine, arithmetic, pooling, shapes
from robustly.certification.operations.rows import Rows, add_rows
from robustly.certification.operations.rule import Interval, Pushed, Relaxation, Rule

RULES: Mapping[str, Rule] = {
    **affine.RULES,
    **shapes.RULES,
    **pooling.RULES,
    **activations.RULES,
    **arithmetic.RULES,
}

_LINES = {
    "relu": "chord above; slope below free in [0, 1]",
    "leaky_relu": "chord on one side; line through the kink with a free slope on the other",
    "abs": "chord above; line through the kink with a free slope below",
    "clip": "lines through the kinks with free slopes; chords where a limit is not reached",
    "sigmoid": "chords and tangents; tangent points are free",
    "tanh": "chords and tangents; tangent points are free",
    "softplus": "chord above; tangent below, its point is free",
    "elu": "chord above; tangent below, its point is free; constants for alpha > 1",
    "square": "chord above; tangent below, its point is free",
    "gelu": "chord slope above; slope of a tangent below, its point is free; offsets from samples",
    "silu": "chord slope above; slope of a tangent below, its point is free; offsets from samples",
    "mul": "McCormick planes, the mixture is free",
    "max_pool": "one value of the window below; chord of the maximum of one value and a constant above",
}


def supported() -> list[tuple[str, str]]:
    """The operations of the table, sorted, with a description of their bounds."""
    return [(op, _LINES.get(op, "exact: linear")) for op in sorted(RULES)]


__all__ = ["RULES", "Interval", "Pushed", "Relaxation", "Rows", "Rule", "add_rows", "supported"]
