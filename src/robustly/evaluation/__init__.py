"""Suites of attacks and certificates, the evaluation that records evidence, and the audit that re-checks it."""

from robustly.evaluation.audit import Audit, Check, audit
from robustly.evaluation.checkpoint import EvaluationCheckpoint
from robustly.evaluation.evaluate import evaluate
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.suites import SUITES, suite_named
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence.provenance import Plan

__all__ = [
    "SUITES",
    "Audit",
    "Check",
    "EvaluationCheckpoint",
    "EvaluationError",
    "EvaluationTarget",
    "Plan",
    "Suite",
    "audit",
    "evaluate",
    "suite_named",
]
