"""Tables of the domains that a model was trained on and of the one that was left out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustly.cli.terminal import PlainConsole, print_text
from robustly.evidence import EvidenceError
from robustly.evidence.domain_protocol import PROTOCOL_SCHEMA, Protocol, ProtocolFile, ProtocolNumber, protocol
from robustly.evidence.domains import DOMAINS, DomainAccuracy, DomainResult, Gap, result_of_folders, write_domains
from robustly.evidence.records import to_json
from robustly.experiments.run_folder import EVALUATION
from robustly.files import write_json


def report_domains(run: Path, targets: Sequence[Path]) -> None:
    """Write and print the accuracies by domain of evaluations, and the gaps between sources and target.

    Args:
        run: folder of the run.
        targets: folders of the evaluations on the left-out domain, one for each threat.

    Raises:
        EvidenceError: the evaluations do not fit together.
        OSError: a file cannot be written.
    """
    console = PlainConsole()
    for target in targets:
        result = result_of_folders(target)
        if result is None:
            raise EvidenceError(f"{target} has no evaluation on the source domains beside it: evaluate again")
        write_domains(target, result)
        print_domains(console, run.resolve().name, result)
        console.print(f"numbers: {target / DOMAINS}", soft_wrap=True, markup=False, highlight=False)


def print_domains(console: Console, run: str, result: DomainResult) -> None:
    """Print the table of a result."""
    columns = ["clean", "robust", *(["certified"] if _has_certified(result) else [])]
    table = Table(
        title=escape(f"{run}: target {result.left_out}, {result.threat}, accuracy in %"),
        title_justify="left",
    )
    table.add_column("domain")
    table.add_column("images", justify="right")
    for column in columns:
        table.add_column(column, justify="right")
    for one in result.sources:
        table.add_row(escape(one.name), *_cells(one, columns), end_section=one is result.sources[-1])
    if len(result.sources) > 1:
        table.add_row("all sources", *_cells(result.source, columns))
    table.add_row(escape(f"{result.left_out} (target)"), *_cells(result.target, columns), end_section=True)
    gaps = {"clean": result.clean_gap, "robust": result.robust_gap, "certified": result.certified_gap}
    table.add_row("gap: sources - target", "", *(_gap(gaps[column]) for column in columns), style="bold")
    console.print(table)


def _has_certified(result: DomainResult) -> bool:
    return result.target.certified is not None or result.source.certified is not None


def _cells(one: DomainAccuracy, columns: Sequence[str]) -> list[str]:
    shares = {"clean": one.clean, "robust": one.robust, "certified": one.proved}
    cells = []
    for column in columns:
        share = shares[column]
        cells.append(
            "-" if share is None else f"{100 * share.share:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
        )
    return [str(one.clean.count), *cells]


def _gap(gap: Gap | None) -> str:
    if gap is None:
        return "-"
    low, high = gap.interval
    return f"{100 * gap.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def report_protocols(console: Console, folder: Path, groups: Mapping[str, Sequence[Path]]) -> None:
    """Write and print the tables of a sweep in which several domains were left out, one for each method.

    Runs that are not evaluated are passed over; nothing is written without evaluated runs.

    Args:
        console: the console.
        folder: folder of the sweep.
        groups: run folders by the name of their method.

    Raises:
        EvidenceError: evaluations of a run do not fit together.
        OSError: the file cannot be written.
    """
    found: list[Protocol] = []
    for name, runs in groups.items():
        by_test: dict[tuple[str, str], list[DomainResult]] = {}
        for run in runs:
            result = result_of_folders(run / EVALUATION)
            if result is not None:
                by_test.setdefault((result.threat, result.suite), []).append(result)
        found += [protocol(name, some) for some in by_test.values()]
    if not found:
        return
    write_json(folder / DOMAINS, to_json(ProtocolFile(PROTOCOL_SCHEMA, tuple(found))))
    for one in found:
        console.print(_protocol_table(one))
        if one.missing:
            print_text(console, f"not left out: {', '.join(one.missing)}, so the mean is not over all domains")
    print_text(console, f"numbers: {folder / DOMAINS}")


def _protocol_table(found: Protocol) -> Table:
    several = max(row.seeds for row in found.rows) > 1
    title = f"{found.name}: leave one domain out, {found.threat}, {found.suite}, accuracy in %"
    table = Table(title=escape(title + (", means over seeds" if several else "")), title_justify="left")
    table.add_column("left out")
    for column in found.columns:
        table.add_column(column, justify="right")
    for row in found.rows:
        cells = [_number(row.numbers[column]) for column in found.columns]
        table.add_row(escape(row.left_out), *cells, end_section=row is found.rows[-1])
    table.add_row("mean", *(_number(found.mean[column]) for column in found.columns), style="bold")
    worst = [_number(found.worst[column]) if column in found.worst else "" for column in found.columns]
    table.add_row("worst target", *worst, style="bold")
    return table


def _number(number: ProtocolNumber) -> str:
    if number.interval is None:
        return f"{100 * number.accuracy:.1f}"
    low, high = number.interval
    return f"{100 * number.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
