"""Suites of attacks, the evidence that they leave, and the audit that re-checks it."""

from robustly.evaluation.audit.audit import Audit, audit
from robustly.evaluation.audit.check import Check
from robustly.evaluation.checkpoint import Partial
from robustly.evaluation.evaluate import evaluate
from robustly.evaluation.evidence import Evidence, EvidenceError, read_evidence, write_evidence
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.suites import SUITES, suite_named
from robustly.evaluation.suites.suite import Plan, Suite
from robustly.evaluation.target import EvaluationTarget
from robustly.statistics import Proportion

__all__ = [
    "SUITES",
    "Audit",
    "Check",
    "EvaluationError",
    "EvaluationTarget",
    "Evidence",
    "EvidenceError",
    "Partial",
    "Plan",
    "Proportion",
    "Suite",
    "audit",
    "evaluate",
    "read_evidence",
    "suite_named",
    "write_evidence",
]
