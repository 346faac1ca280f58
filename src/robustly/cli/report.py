"""`robustly report`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from robustly.cli.runs import runs_in
from robustly.cli.terminal import PlainConsole
from robustly.evidence.protocol_result import protocol_file, protocol_files, read_protocol
from robustly.evidence.schema import SUMMARY
from robustly.experiments.locks import repair_evaluations
from robustly.experiments.run_folder import CERTIFIED, EVALUATION, REPORT, evaluation_folder
from robustly.files import write_text
from robustly.reports import ReportError, RunEvidence, read_run, render
from robustly.reports.reading import has_results
from robustly.reports.source_names import shown_path
from robustly.statistics import Proportion


def run_report(runs: Sequence[Path], out: Path | None, label: str | None = None) -> int:
    """Write the page of one run, or of a comparison; the folder of a sweep counts as its runs with results.

    An evaluation of `robustly certify` stands on the page beside the evaluation of its run, or alone if there is
    no other one.

    Args:
        runs: run folders, or folders of sweeps.
        out: file to write; None for `report.html` in the run, `report_LABEL.html` with a label, or `report.html`
            in the current folder for several runs.
        label: name of an evaluation; None for the evaluation without a name.

    Returns:
        The exit code.

    Raises:
        ValueError: a run that cannot be read, or one without an evaluation of this name.
        OSError: the page cannot be written.
    """
    for run in runs:
        repair_evaluations(run)
    page = REPORT if label is None else f"{Path(REPORT).stem}_{label}.html"
    target = out or (runs[0] / page if len(runs) == 1 else Path(page))
    console = PlainConsole()
    folders = []
    for folder in (one for run in runs for one in runs_in(run)):
        others = (evaluation_folder(folder, CERTIFIED) / SUMMARY, *protocol_files(folder))
        if folder in runs or has_results(folder) or any(file.is_file() for file in others):
            folders.append(folder)
        else:
            console.print(f"left out: {folder} has no results yet", soft_wrap=True, highlight=False, markup=False)
    if not folders:
        raise ReportError(f"{runs[0]} is a sweep without results so far.")
    folders = list({folder.resolve(): folder for folder in folders}.values())
    groups = [read_evaluations(folder, label) for folder in folders]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, render([group[0] for group in groups], [one for group in groups for one in group[1:]]))
    content = [one for group in groups for one in group]
    if len(content) > 1:
        console.print(_comparison(content))
    console.print(f"report: {target.resolve().as_uri()}", soft_wrap=True, highlight=False, markup=False)
    return 0


def read_evaluations(run: Path, label: str | None = None) -> list[RunEvidence]:
    """The evaluation of a name, or without one the evaluation of a run and that of `robustly certify`.

    Args:
        run: folder of the run.
        label: name of the evaluation, or of those of a protocol; None for both.

    Raises:
        ReportError: there is none, or a file is cut off.
        EvidenceError: a file of the evaluation is cut off or has another schema.
    """
    if label is not None:
        folder = evaluation_folder(run, label)
        if protocol_file(run, label).is_file():
            return [_first_of_protocol(run, label)]
        if run.is_dir() and not (folder / SUMMARY).is_file():
            found = sorted(one.parent.name for one in run.glob(f"{EVALUATION}_*/{SUMMARY}"))
            names = ", ".join(one.removeprefix(f"{EVALUATION}_") for one in found)
            raise ReportError(
                f"{run} has no evaluation named {label!r}; " + (f"it has {names}." if found else "it has none.")
            )
        return [read_run(run, folder)]
    certified = evaluation_folder(run, CERTIFIED)
    if not (certified / SUMMARY).is_file():
        results = protocol_files(run)
        if results and not (run / EVALUATION / SUMMARY).is_file():
            return [_first_of_protocol(run, read_protocol(results[0]).terms.label)]
        return [read_run(run)]
    if not (run / EVALUATION / SUMMARY).is_file():
        return [read_run(run, certified)]
    proofs = read_run(run, certified)
    return [read_run(run), replace(proofs, name=f"{proofs.name}, {CERTIFIED}", training=None)]


def _first_of_protocol(run: Path, label: str) -> RunEvidence:
    """A run with the first evaluation of a protocol, beside the table of all of them."""
    first = read_protocol(protocol_file(run, label)).columns[0].evaluation
    return replace(read_run(run, run / first), check=f"robustly audit {shown_path(run)} --as {label}")


def _comparison(runs: Sequence[RunEvidence]) -> Table:
    """A table of attacks (rows) and runs (columns), with 95 % intervals."""
    evaluations = [(run.name, run.evaluation) for run in runs if run.evaluation is not None]
    threats = {found.threat.text for _, found in evaluations}
    titles = list(dict.fromkeys(one.title for _, found in evaluations for one in found.suite.attacks))
    table = Table(title="accuracy in %, with 95 % intervals", title_justify="left", box=SIMPLE)
    table.add_column("attack")
    names = ("clean", *titles, "worst case")
    if any(found.metrics.proved is not None for _, found in evaluations):
        names = (*names, "certified")
    rows: dict[str, list[str]] = {title: [title] for title in names}
    for name, found in evaluations:
        title = f"{name}\n{found.threat.text}" if len(threats) > 1 else name
        table.add_column(escape(title), justify="right")
        by_title = {one.attack.title: one.numbers.robust for one in found.outcomes}
        shares = {"clean": found.metrics.clean, **by_title, "worst case": found.metrics.worst_case.robust}
        if found.metrics.proved is not None:
            shares["certified"] = found.metrics.proved
        for title, row in rows.items():
            row.append(_cell(shares[title]) if title in shares else "-")
    for row in rows.values():
        table.add_row(*map(escape, row))
    return table


def _cell(share: Proportion) -> str:
    return f"{100 * share.share:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
