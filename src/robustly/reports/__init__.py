"""Reports: one self-contained HTML page from the files of runs. Needs no models, attacks or PyTorch."""

from robustly.reports.pages.page import render, write_report
from robustly.reports.reading import read_run
from robustly.reports.run import ReportError, RunEvidence

__all__ = ["ReportError", "RunEvidence", "read_run", "render", "write_report"]
