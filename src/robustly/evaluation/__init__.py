"""Evaluation: suites of attacks and certificates, recorded evidence, diagnostics, and the audit."""

from robustly.evaluation.audit import Audit, Check, Sampling, audit
from robustly.evaluation.checkpoint import EvaluationCheckpoint
from robustly.evaluation.evaluate import evaluate
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.suites import PROTOCOLS, SUITES, Protocol, as_suite, suite_named
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence.provenance import Plan

__all__ = [
    "PROTOCOLS",
    "SUITES",
    "Audit",
    "Check",
    "EvaluationCheckpoint",
    "EvaluationError",
    "EvaluationTarget",
    "Plan",
    "Protocol",
    "Sampling",
    "Suite",
    "as_suite",
    "audit",
    "evaluate",
    "suite_named",
]
