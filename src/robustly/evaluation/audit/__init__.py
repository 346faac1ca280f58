"""Audit: recompute all numbers and verdicts of an evaluation."""

from robustly.evaluation.audit.audit import Audit, audit
from robustly.evaluation.audit.check import Check
from robustly.evaluation.audit.sampling import Sampling

__all__ = ["Audit", "Check", "Sampling", "audit"]
