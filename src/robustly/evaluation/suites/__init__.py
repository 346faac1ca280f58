"""Suites: named lists of attacks and certificates."""

from robustly.evaluation.suites.given import as_suite, check_suite_name
from robustly.evaluation.suites.named import PROTOCOLS, SUITES, suite_named
from robustly.evaluation.suites.protocol import Protocol

__all__ = ["PROTOCOLS", "SUITES", "Protocol", "as_suite", "check_suite_name", "suite_named"]
