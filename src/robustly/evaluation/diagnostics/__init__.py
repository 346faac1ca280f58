"""Diagnostics: signs that robust accuracy should not be trusted."""

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
