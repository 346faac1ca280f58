"""Suites: named lists of attacks and certificates."""

from robustly.evaluation.suites.given import as_suite, check_suite_name
from robustly.evaluation.suites.named import SUITES, suite_named

__all__ = ["SUITES", "as_suite", "check_suite_name", "suite_named"]
