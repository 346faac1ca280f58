"""`robustly compare`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from robustly.cli.runs import runs_in
from robustly.cli.terminal import PlainConsole
from robustly.experiments.locks import repair_evaluations
from robustly.files import write_text
from robustly.reports import ReportError
from robustly.reports.pages.methods_page import methods_csv, write_methods_page
from robustly.reports.tables.evaluations import read_rows
from robustly.reports.tables.method_tables import By, MethodTable, Row, Score, distinguishing, method_tables
from robustly.reports.tables.threat_matrix import ThreatMatrix, matrix_of_methods

MARKS = {"training": "\u2020", "selection": "\u2021"}
"""Signs of attacks of a kind that the model was trained, or its epoch selected, with."""


def run_comparison(runs: Sequence[Path], by: By, csv: Path | None, html: Path | None) -> int:
    """Print the tables, and write the files that are given; returns the exit code.

    Raises:
        ValueError: a run that cannot be read or is not evaluated yet.
        OSError: a file cannot be written.
    """
    folders = [folder for run in runs for folder in runs_in(run)]
    for folder in folders:
        repair_evaluations(folder)
    rows = [row for folder in folders for row in read_rows(folder)]
    tables, matrix = method_tables(rows, by), matrix_of_methods(rows, by)
    console = PlainConsole()
    if csv is not None:
        _check_target(csv)
        csv.parent.mkdir(parents=True, exist_ok=True)
        write_text(csv, methods_csv(tables))
    if html is not None:
        _check_target(html)
        write_methods_page(tables, html, matrix)
    if len(tables) > 1:
        console.print(f"the runs were tested under different threats or on different images: {len(tables)} tables")
    for table, title in zip(tables, distinguishing(tables), strict=True):
        _print(console, table, title)
        _explain(console, table)
    if matrix is not None:
        _print_widest(console, _matrix(matrix), lambda: _matrix(matrix, brief=True), "--html FILE")
        for note in matrix.notes:
            console.print(f"! {note}", soft_wrap=True, highlight=False, markup=False)
    for kind, file in (("table", csv), ("page", html)):
        if file is not None:
            console.print(f"{kind}: {file.resolve().as_uri()}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _matrix(matrix: ThreatMatrix, brief: bool = False) -> Table:
    """A table of methods (rows) and threats (columns), with two lines per row unless `brief`."""
    drawn = Table(title="accuracy in % by threat", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    drawn.add_column("method", overflow="fold")
    for name in matrix.columns:
        drawn.add_column(escape(name), justify="right")
    for row in matrix.rows:
        cells = [_number(cell.number.value, cell.number.best, brief, cell.suspected) for cell in row.cells]
        drawn.add_row(escape(row.name), *cells)
    return drawn


def _number(score: Score | None, best: bool, brief: bool, suspected: bool) -> str:
    if score is None:
        return "-"
    first, second = f"{100 * score.share:.1f}", f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
    if score.deviation is not None and score.worst is not None:
        first, second = f"{first} \u00b1 {100 * score.deviation:.1f}", f"worst {100 * score.worst:.1f}"
    first += " (!)" if suspected else ""
    shown = f"[bold]{first}[/]" if best else first
    return shown if brief else f"{shown}\n{escape(second)}"


def _check_target(file: Path) -> None:
    if file.is_dir():
        raise ReportError(f"{file} is a folder: name a file to write.")


def _print(console: Console, table: MethodTable, title: str) -> None:
    """Print a table; intervals are left out if the terminal is too narrow for them."""
    _print_widest(console, _drawn(table, title), lambda: _drawn(table, title, brief=True), "--csv FILE")


def _print_widest(console: Console, drawn: Table, brief: Callable[[], Table], file: str) -> None:
    """Print a table, or the one without intervals if the terminal is too narrow; `file` names where they are."""
    wide = PlainConsole(width=2000)
    needed = Measurement.get(wide, wide.options, drawn).maximum
    if not console.is_terminal:
        PlainConsole(width=needed).print(drawn)
    elif needed <= console.width:
        console.print(drawn)
    else:
        console.print(brief())
        console.print(f"intervals need a terminal of {needed} columns, or {file}", highlight=False)


def _drawn(table: MethodTable, title: str, brief: bool = False) -> Table:
    """A table with two lines per row: numbers, then intervals or the worst seed unless `brief`."""
    drawn = Table(title=escape(f"{title}; accuracy in %"), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    drawn.add_column("method", overflow="fold")
    for name in table.titles:
        drawn.add_column(escape(name), justify="right")
    for row in table.rows:
        words = row.words
        if brief:
            words = f"{len(row.seeds)} seeds" if len(row.seeds) > 1 else ""
        about = row.name + (" (!)" if row.suspected else "") + (f"\n  {words}" if words else "")
        drawn.add_row(escape(about), *(_cell(cell.value, row, i, brief) for i, cell in enumerate(row.cells)))
        if row.published is not None:
            theirs = row.published
            shares = [theirs.accuracy.get(column.key) for column in table.columns]
            about = f"  published: {theirs.name}"
            about += "" if brief else f"\n  {theirs.architecture}, linf {theirs.epsilon}"
            cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
            drawn.add_row(escape(about), *cells, style="dim italic")
        drawn.add_section()
    return drawn


def _cell(score: Score | None, row: Row, column: int, brief: bool) -> str:
    if score is None:
        return "-"
    first, second = f"{100 * score.share:.1f}", f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
    if score.deviation is not None and score.worst is not None:
        between = "\u00b1" if brief else " \u00b1 "
        some = f" ({score.seeds} of {len(row.seeds)})" if score.seeds < len(row.seeds) else ""
        first += f"{between}{100 * score.deviation:.1f}{some}"
        second = f"worst {100 * score.worst:.1f}"
    first += MARKS.get(row.seen[column] or "", "") if row.seen else ""
    shown = f"[bold]{first}[/]" if row.cells[column].best else first
    return shown if brief else f"{shown}\n{escape(second)}"


def _explain(console: Console, table: MethodTable) -> None:
    """Print the legend of a table and the sources of published numbers."""
    lines = [f"! {note}" for note in (*table.notes, *table.remarks)]
    if any(row.suspected for row in table.rows):
        lines.append("(!) upper bound; masking suspected: not ranked")
    marks = {mark for row in table.rows for mark in row.seen if mark}
    lines += [f"{sign}: seen in {mark}" for mark, sign in MARKS.items() if mark in marks]
    several = any(len(row.seeds) > 1 for row in table.rows)
    lines.append("[ ]: 95 % Wilson interval" + ("; \u00b1: standard deviation over seeds" if several else ""))
    sources = {row.published.words for row in table.rows if row.published is not None}
    if sources:
        lines.append("published numbers are on a different scale (another network, all data, another budget):")
        lines += [f"  {words}" for words in sorted(sources)]
    console.print("\n".join(lines) + "\n", soft_wrap=True, highlight=False, markup=False)
