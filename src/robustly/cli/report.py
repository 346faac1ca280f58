"""`robustly report`."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from robustly.cli.runs import runs_in
from robustly.cli.terminal import PlainConsole
from robustly.experiments.locks import repair_evaluations
from robustly.experiments.run_folder import REPORT
from robustly.reports import ReportError, RunEvidence, read_run, write_report
from robustly.reports.reading import has_results
from robustly.statistics import Proportion


def run_report(runs: Sequence[Path], out: Path | None) -> int:
    """Write the page of one run, or of a comparison; the folder of a sweep counts as its runs with results.

    Returns the exit code.

    Raises:
        ValueError: a run that cannot be read.
        OSError: the page cannot be written.
    """
    for run in runs:
        repair_evaluations(run)
    target = out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    console = PlainConsole()
    folders = []
    for folder in (one for run in runs for one in runs_in(run)):
        if folder in runs or has_results(folder):
            folders.append(folder)
        else:
            console.print(f"left out: {folder} has no results yet", soft_wrap=True, highlight=False, markup=False)
    if not folders:
        raise ReportError(f"{runs[0]} is a sweep without results so far.")
    folders = list({folder.resolve(): folder for folder in folders}.values())
    written = write_report(folders, target)
    if len(folders) > 1:
        console.print(_comparison([read_run(folder) for folder in folders]))
    console.print(f"report: {written.resolve().as_uri()}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _comparison(runs: Sequence[RunEvidence]) -> Table:
    """A table of attacks (rows) and runs (columns), with 95 % intervals."""
    evaluations = [(run.name, run.evaluation) for run in runs if run.evaluation is not None]
    titles = list(dict.fromkeys(one.title for _, found in evaluations for one in found.suite.attacks))
    table = Table(title="accuracy in %, with 95 % intervals", title_justify="left", box=SIMPLE)
    table.add_column("attack")
    rows: dict[str, list[str]] = {title: [title] for title in ("clean", *titles, "worst case")}
    for name, found in evaluations:
        table.add_column(escape(name), justify="right")
        by_title = {one.attack.title: one.numbers.robust for one in found.outcomes}
        shares = {"clean": found.metrics.clean, **by_title, "worst case": found.metrics.worst_case.robust}
        for title, row in rows.items():
            row.append(_cell(shares[title]) if title in shares else "-")
    for row in rows.values():
        table.add_row(*map(escape, row))
    return table


def _cell(share: Proportion) -> str:
    return f"{100 * share.share:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
