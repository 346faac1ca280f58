"""The table of operations: one rule for each."""

from collections.abc import Mapping

from robustly.certification.operations.rows import Rows, add_rows
from robustly.certification.operations.rule import Interval, Pushed, Relaxation, Rule

RULES: Mapping[str, Rule] = {}

__all__ = ["RULES", "Interval", "Pushed", "Relaxation", "Rows", "Rule", "add_rows"]
