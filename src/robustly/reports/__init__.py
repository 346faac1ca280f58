"""Reports: the evidence files of runs -> one self-contained HTML page. Knows no models and no attacks."""

from robustly.reports.evidence import ReportError, RunEvidence
from robustly.reports.pages.page import render, write_report
from robustly.reports.reading import read_run

__all__ = ["ReportError", "RunEvidence", "read_run", "render", "write_report"]
