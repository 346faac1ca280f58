"""Diagnostics: tests for gradient masking and weak attacks."""

from robustly.evaluation.diagnostics.diagnose import (
    ALL,
    CHEAP,
    MASKING,
    Budget,
    cheap_findings,
    diagnose,
    masking_suspected,
)

__all__ = ["ALL", "CHEAP", "MASKING", "Budget", "cheap_findings", "diagnose", "masking_suspected"]
