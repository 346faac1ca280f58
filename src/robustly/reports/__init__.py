"""Reports: the files of runs as one self-contained HTML page; needs no models, no attacks and no PyTorch."""

from robustly.reports.pages.page import render, write_report
from robustly.reports.reading import read_run
from robustly.reports.run import ReportError, RunEvidence

__all__ = ["ReportError", "RunEvidence", "read_run", "render", "write_report"]
