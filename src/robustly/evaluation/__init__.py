"""Suites of attacks, the evidence that they leave, and the audit that re-checks it."""

from robustly.evaluation.audit import Audit, audit
from robustly.evaluation.check import Check
from robustly.evaluation.evaluate import EvaluationError, evaluate
from robustly.evaluation.evidence import Evidence, EvidenceError, read_evidence, write_evidence
from robustly.evaluation.subject import Subject
from robustly.evaluation.suites import SUITES, Suite
from robustly.statistics import Proportion

__all__ = [
    "SUITES",
    "Audit",
    "Check",
    "EvaluationError",
    "Evidence",
    "EvidenceError",
    "Proportion",
    "Subject",
    "Suite",
    "audit",
    "evaluate",
    "read_evidence",
    "write_evidence",
]
