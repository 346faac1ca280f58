"""Suites of attacks, the evidence that they leave, and the audit that re-checks it."""

from robustly.evaluation.audit import Audit, audit
from robustly.evaluation.catalogue import SUITES, suite_named
from robustly.evaluation.check import Check
from robustly.evaluation.evaluate import evaluate
from robustly.evaluation.evidence import Evidence, EvidenceError, read_evidence, write_evidence
from robustly.evaluation.partial import Partial
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.subject import Subject
from robustly.evaluation.suites import Plan, Suite
from robustly.statistics import Proportion

__all__ = [
    "SUITES",
    "Audit",
    "Check",
    "EvaluationError",
    "Evidence",
    "EvidenceError",
    "Partial",
    "Plan",
    "Proportion",
    "Subject",
    "Suite",
    "audit",
    "evaluate",
    "read_evidence",
    "suite_named",
    "write_evidence",
]
