"""Audit: recompute everything that an evaluation states."""

from robustly.evaluation.audit.audit import Audit, audit
from robustly.evaluation.audit.check import Check

__all__ = ["Audit", "Check", "audit"]
