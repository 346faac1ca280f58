"""The table of operations: one rule for each."""

from collections.abc import Mapping

from robustly.certification.operations import activations, affine, arithmetic, shapes
from robustly.certification.operations.rows import Rows, add_rows
from robustly.certification.operations.rule import Interval, Pushed, Relaxation, Rule

RULES: Mapping[str, Rule] = {**affine.RULES, **shapes.RULES, **activations.RULES, **arithmetic.RULES}

__all__ = ["RULES", "Interval", "Pushed", "Relaxation", "Rows", "Rule", "add_rows"]
