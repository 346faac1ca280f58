"""Tables of runs by protocol: mean, worst threat, union, and differences from the first run on the same images."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustly.evidence import EvidenceError
from robustly.evidence.corruption_result import MeanAccuracy
from robustly.evidence.protocol_result import ProtocolResult, contradiction, protocol_files, read_protocol
from robustly.evidence.protocol_rows import (
    ProtocolRows,
    mean_difference,
    other_test,
    protocol_rows,
    union_difference,
)
from robustly.output_text import csv_cell
from robustly.reports.figures.threat_rows import threat_title
from robustly.statistics import Difference, Proportion


@dataclass(frozen=True)
class ProtocolLine:
    """The numbers of one run.

    Args:
        run: name of the run.
        clean: accuracy without an attack.
        trained: accuracy under all threats of the training; None without one.
        mean: the mean of the protocol.
        worst: heading of the threat with the lowest accuracy.
        worst_share: accuracy under it.
        union: accuracy under all threats at once.
        mean_less: mean less that of the first run; None for the first, and on other images or threats.
        union_less: union less that of the first run; None likewise.
        doubted: whether gradient masking is suspected, or an attack failed.
    """

    run: str
    clean: Proportion
    trained: Proportion | None
    mean: MeanAccuracy
    worst: str
    worst_share: Proportion
    union: Proportion
    mean_less: MeanAccuracy | None
    union_less: Difference | None
    doubted: bool


@dataclass(frozen=True)
class ProtocolTable:
    """The runs that were evaluated by one protocol.

    Args:
        name: name of the protocol, with that of its evaluations if it is another.
        mean_words: the columns of the mean.
        lines: one entry for each run, in the order given.
        notes: sentences on numbers that are doubted, contradicted or not comparable.
    """

    name: str
    mean_words: str
    lines: tuple[ProtocolLine, ...]
    notes: tuple[str, ...]

    @property
    def reference(self) -> str:
        """Name of the run from which differences are taken."""
        return self.lines[0].run


def protocol_tables(runs: Sequence[tuple[str, Path]]) -> tuple[ProtocolTable, ...]:
    """One table for each protocol and label.

    Numbers are computed from the rows of the evaluations, not taken from the files of the protocols.

    Args:
        runs: name and folder of each run.

    Raises:
        EvidenceError: a file of a protocol is damaged.
    """
    kept: dict[tuple[str, str], list[tuple[str, Path, ProtocolResult]]] = {}
    for name, folder in runs:
        for stated in map(read_protocol, protocol_files(folder)):
            kept.setdefault((stated.terms.protocol, stated.terms.label), []).append((name, folder, stated))
    found = (_table(protocol, label, some) for (protocol, label), some in kept.items())
    return tuple(one for one in found if one.lines)


def _table(protocol: str, label: str, runs: Sequence[tuple[str, Path, ProtocolResult]]) -> ProtocolTable:
    lines: list[ProtocolLine] = []
    notes: list[str] = []
    first: ProtocolRows | None = None
    for name, folder, stated in runs:
        problem = contradiction(folder, stated)
        notes += [f"{name}: {problem}."] if problem else []
        try:
            rows = protocol_rows(folder, stated)
        except EvidenceError:
            continue  # with a note
        apart = "" if first is None else other_test(rows, first)
        notes += [f"{name} has {apart} than {lines[0].run}: no difference is computed."] if apart else []
        notes += [f"{name}: {doubt}" for doubt in rows.result.doubts]
        lines.append(_line(name, rows, None if apart else first))
        first = rows if first is None else first
    title = protocol if label == protocol else f"{protocol} ({label})"
    mean_words = next((one.mean_words for _, _, one in runs), "mean")
    return ProtocolTable(title, mean_words, tuple(lines), tuple(notes))


def _line(name: str, rows: ProtocolRows, reference: ProtocolRows | None) -> ProtocolLine:
    result = rows.result
    worst = next(one for one in result.tested if one.threat == result.worst)
    return ProtocolLine(
        run=name,
        clean=result.clean,
        trained=None if result.trained is None else result.trained.robust,
        mean=result.mean,
        worst=threat_title(worst.threat),
        worst_share=worst.robust,
        union=result.union,
        mean_less=None if reference is None else mean_difference(rows, reference),
        union_less=None if reference is None else union_difference(rows, reference),
        doubted=bool(result.doubts),
    )


HEADER = ("suite", "run", "number", "threat", "accuracy", "low", "high")


def protocols_csv(tables: Iterable[ProtocolTable]) -> str:
    """The tables as CSV, in per cent: one line for each number of each run."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEADER)
    for table in tables:
        for line in table.lines:
            numbers: list[tuple[str, str, Proportion | MeanAccuracy | Difference | None]] = [
                ("clean", "", line.clean),
                ("all that were trained on", "", line.trained),
                (table.mean_words, "", line.mean),
                ("worst threat", line.worst, line.worst_share),
                ("union", "", line.union),
                (f"mean less {table.reference}", "", line.mean_less),
                (f"union less {table.reference}", "", line.union_less),
            ]
            for words, threat, number in numbers:
                if number is not None:
                    cells = (table.name, line.run, words, threat, *(f"{100 * part:.2f}" for part in ends(number)))
                    writer.writerow([csv_cell(cell) for cell in cells])
    return stream.getvalue()


def ends(number: Proportion | MeanAccuracy | Difference) -> tuple[float, float, float]:
    """A number and the ends of its 95 % interval."""
    if isinstance(number, MeanAccuracy):
        return number.accuracy, number.low, number.high
    if isinstance(number, Difference):
        return number.value, *number.interval
    return number.share, number.low, number.high
