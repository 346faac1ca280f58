"""`robustly report`."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from robustly.reports import write_report
from robustly.runs import REPORT


def run_report(runs: Sequence[Path], out: Path | None) -> int:
    """Write the page of one run, or of a comparison; returns the exit code.

    Raises:
        ValueError: a run that cannot be read.
        OSError: the page cannot be written.
    """
    target = out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    written = write_report(runs, target)
    Console().print(f"report: {written.resolve().as_uri()}", soft_wrap=True, highlight=False)
    return 0
