"""Diagnostics: tests for gradient masking and weak attacks."""

from robustly.evaluation.diagnostics.diagnose import (
    ALL,
    CHEAP,
    DIAGNOSTIC,
    MASKING,
    Budget,
    cheap_findings,
    cheap_work,
    diagnose,
    masking_suspected,
)
from robustly.evaluation.diagnostics.forced_routes import Branch, Routes, broken_by_routes, forced_routes

__all__ = [
    "ALL",
    "CHEAP",
    "DIAGNOSTIC",
    "MASKING",
    "Branch",
    "Budget",
    "Routes",
    "broken_by_routes",
    "cheap_findings",
    "cheap_work",
    "diagnose",
    "forced_routes",
    "masking_suspected",
]
