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
from robustly.evaluation.diagnostics.forced_routes import Branch, Routes, forced_routes

__all__ = [
    "ALL",
    "CHEAP",
    "MASKING",
    "Branch",
    "Budget",
    "Routes",
    "cheap_findings",
    "diagnose",
    "forced_routes",
    "masking_suspected",
]
