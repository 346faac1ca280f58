"""`robustly report`."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from robustly.cli.terminal import PlainConsole
from robustly.experiments.locks import repair_evaluations
from robustly.experiments.run_folder import REPORT
from robustly.reports import RunEvidence, read_run, write_report
from robustly.statistics import Proportion


def run_report(runs: Sequence[Path], out: Path | None) -> int:
    """Write the page of one run, or of a comparison; returns the exit code.

    Raises:
        ValueError: a run that cannot be read.
        OSError: the page cannot be written.
    """
    for run in runs:
        repair_evaluations(run)
    target = out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    written = write_report(runs, target)
    console = PlainConsole()
    if len(runs) > 1:
        console.print(_comparison([read_run(run) for run in runs]))
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
