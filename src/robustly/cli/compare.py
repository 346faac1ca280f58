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
from robustly.evidence.corruption_result import MeanAccuracy
from robustly.experiments.locks import repair_evaluations
from robustly.files import write_text
from robustly.reports import ReportError
from robustly.reports.pages.methods_page import methods_csv, write_methods_page
from robustly.reports.run import distinct_names
from robustly.reports.tables.evaluations import read_rows
from robustly.reports.tables.method_tables import By, MethodTable, Row, Score, distinguishing, method_tables
from robustly.reports.tables.protocol_tables import ProtocolTable, ends, protocol_tables, protocols_csv
from robustly.reports.tables.threat_matrix import ThreatMatrix, matrix_of_methods
from robustly.statistics import Difference, Proportion

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
    distinct = list({folder.resolve(): folder for folder in folders}.values())
    names = distinct_names([(folder.resolve().name, folder) for folder in distinct])
    protocols = protocol_tables(list(zip(names, distinct, strict=True)))
    tables, matrix = (method_tables(rows, by), matrix_of_methods(rows, by)) if rows else ((), None)
    console, files = PlainConsole(), _written(csv, html, tables, matrix, protocols)
    if len(tables) > 1:
        console.print(f"the runs were tested under different threats or on different images: {len(tables)} tables")
    for table, title in zip(tables, distinguishing(tables), strict=True):
        _print(console, table, title)
        _explain(console, table)
    if matrix is not None:
        _print_widest(console, _matrix(matrix), lambda: _matrix(matrix, brief=True), "--html FILE")
        for note in matrix.notes:
            console.print(f"! {note}", soft_wrap=True, highlight=False, markup=False)
    for suite in protocols:
        _print_suite(console, suite)
    for kind, file in files:
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


def _written(
    csv: Path | None,
    html: Path | None,
    tables: Sequence[MethodTable],
    matrix: ThreatMatrix | None,
    protocols: Sequence[ProtocolTable],
) -> list[tuple[str, Path]]:
    """Write the files that are given; returns them with words on their content.

    Raises:
        ReportError: a file would have no table of methods, or is a folder.
        OSError: a file cannot be written.
    """
    written = []
    for file in (csv, html):
        if file is not None and not tables:
            raise ReportError(f"{file} would be empty: the runs were evaluated by suites of several threats alone.")
    if csv is not None:
        beside = csv.with_name(f"{csv.stem}_suites{csv.suffix}")
        for words, file, content in (
            ("table", csv, methods_csv(tables)),
            ("table of suites", beside, protocols_csv(protocols) if protocols else ""),
        ):
            if content:
                _check_target(file)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, content)
                written.append((words, file))
    if html is not None:
        _check_target(html)
        write_methods_page(tables, html, matrix, protocols)
        written.append(("page", html))
    return written


def _print_suite(console: Console, table: ProtocolTable) -> None:
    """Print the runs of a suite of several threats, with notes."""
    _print_widest(console, _suite_drawn(table), lambda: _suite_drawn(table, brief=True), "--csv FILE")
    for note in table.notes:
        console.print(f"! {note}", soft_wrap=True, highlight=False, markup=False)


def _suite_drawn(table: ProtocolTable, brief: bool = False) -> Table:
    """A table of runs by their numbers over the threats of a suite, with two lines per row unless `brief`."""
    drawn = Table(
        title=escape(f"{table.name}; accuracy in %"), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    drawn.add_column("run", overflow="fold")
    several = len(table.lines) > 1
    trained = any(line.trained is not None for line in table.lines)
    less = [f"mean less {table.reference}", f"union less {table.reference}"] if several else []
    for name in ("clean", *(["trained"] if trained else []), table.mean_words, "worst threat", "union", *less):
        drawn.add_column(escape(name), justify="right")
    for line in table.lines:
        worst = _ends(line.worst_share, brief)
        cells = [
            _ends(line.clean, brief),
            *([_ends(line.trained, brief)] if trained else []),
            _ends(line.mean, brief),
            worst if brief else f"{worst}\n{escape(line.worst)}",
            _ends(line.union, brief),
            *([_ends(line.mean_less, brief), _ends(line.union_less, brief)] if several else []),
        ]
        drawn.add_row(escape(line.run) + (" (!)" if line.doubted else ""), *cells)
    return drawn


def _ends(number: Proportion | MeanAccuracy | Difference | None, brief: bool) -> str:
    if number is None:
        return "-"
    value, low, high = ends(number)
    return f"{100 * value:.1f}" if brief else f"{100 * value:.1f}\n{escape(f'[{100 * low:.1f}, {100 * high:.1f}]')}"


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
