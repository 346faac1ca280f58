"""Results of the rows of a paper's table: numbers over seeds, the best of each column, and missing runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

from robustly.evidence import EvidenceError
from robustly.evidence.provenance import Seen
from robustly.output_text import one_line
from robustly.reports.formats import count
from robustly.reports.run import ReportError
from robustly.reports.source_names import without_folders
from robustly.reports.tables.columns import CLEAN, seen_columns
from robustly.reports.tables.comparison import ComparedNumber, marked
from robustly.reports.tables.evaluations import EvaluatedRun, read_evaluated
from robustly.reports.tables.method_tables import Score, joint_mark, score_of
from robustly.reports.tables.paper_tables import (
    ALL,
    TITLES,
    PaperRow,
    PaperTable,
    attacks_in,
    is_evaluated,
    numbers_of,
    with_mean,
)
from robustly.statistics import Proportion

ANY_WEIGHTS: Mapping[Path, str] = MappingProxyType({})


@dataclass(frozen=True)
class RunResult:
    """Result of one run.

    Args:
        run: the folder.
        evaluated: the run and its evaluations; None if it has none that can be read.
        shares: numbers by column.
        seen: attacks by column that the model was trained, or its epoch selected, with.
        suspected: whether masking is suspected.
        reason: reason for missing numbers, all of them or those of a failed evaluation; empty if there is none.
    """

    run: Path
    evaluated: EvaluatedRun | None = None
    shares: Mapping[str, Proportion] = field(default_factory=dict)
    seen: Mapping[str, Seen] = field(default_factory=dict)
    suspected: bool = False
    reason: str = ""


@dataclass(frozen=True)
class ResultRow:
    """One row with its numbers.

    Args:
        row: the method, its runs and its published numbers.
        results: results of the runs, in their order.
        cells: numbers by column of the table.
        seen: marks of attacks by column of the table.
        published: published shares by column, with the mean of the attacks where the table has it.
    """

    row: PaperRow
    results: tuple[RunResult, ...]
    cells: tuple[ComparedNumber[Score], ...]
    seen: tuple[Seen | None, ...]
    published: Mapping[str, float]

    @property
    def suspected(self) -> bool:
        """True if masking is suspected for one of the runs."""
        return any(result.suspected for result in self.results)

    @property
    def found(self) -> int:
        """Number of runs that have numbers."""
        return sum(bool(result.shares) for result in self.results)

    @property
    def words(self) -> str:
        """The number of runs, printed below the name; empty for one run."""
        number = len(self.results)
        if number < 2:
            return ""
        return f"{number} seeds" if self.found == number else f"{self.found} of {number} seeds"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons for missing runs; they begin with the names of the runs if only some of a row have the reason."""
        if not self.results:
            return ("no run is planned at this scale",)
        names: dict[str, list[str]] = {}
        for result in self.results:
            if result.reason:
                names.setdefault(result.reason, []).append(result.run.name)
        return tuple(
            reason if len(own) == len(self.results) else f"{', '.join(own)}: {reason}"
            for reason, own in names.items()
        )


@dataclass(frozen=True)
class ResultTable:
    """A table with its results; `titles` are those of its columns, `tested` states the number of images."""

    table: PaperTable
    titles: tuple[str, ...]
    rows: tuple[ResultRow, ...]
    tested: str = ""

    @property
    def grouped(self) -> bool:
        """True if groups have a line of their own: there are rows enough for each of them."""
        groups = {row.row.group for row in self.rows}
        return 2 * len(groups) <= len(self.rows)

    @property
    def has_published(self) -> bool:
        """True if a row has published numbers."""
        return any(row.published for row in self.rows)


def read_results(
    runs: Iterable[Path], failures: Mapping[str, str], weights: Mapping[Path, str] = ANY_WEIGHTS
) -> dict[Path, RunResult]:
    """Results by folder. A run without numbers, or with damaged evidence, has a reason instead.

    Args:
        runs: folders of runs.
        failures: reasons of failed runs by the name of the folder.
        weights: SHA-256 of released weights, as in the evidence, by folder; evaluations of other weights than
            these have no numbers.
    """
    return {run: _result(run, failures.get(run.name, ""), weights.get(run)) for run in dict.fromkeys(runs)}


def _result(run: Path, failure: str, weights: str | None) -> RunResult:
    failed = without_folders(one_line(f"failed: {failure}")) if failure else ""
    if not is_evaluated(run):
        state = "not evaluated yet" if run.is_dir() else "not run yet"
        return RunResult(run, reason=failed or state)
    try:
        evaluated = read_evaluated(run)
        shares = numbers_of(evaluated)
    except (ReportError, EvidenceError) as error:
        return RunResult(run, reason=without_folders(one_line(f"cannot be read: {error}")))
    if evaluated.last_epoch:
        return RunResult(run, reason="evaluated after the last epoch only: its selected weights are not")
    if weights not in (None, evaluated.evaluations[0].evaluation.model.weights_sha256):
        return RunResult(run, reason="its evaluation is of other weights than its model.safetensors")
    seen = {column.key: mark for column, mark in seen_columns(evaluated.evaluations).items()}
    suspected = any(one.evaluation.masking for one in evaluated.evaluations)
    return RunResult(run, evaluated, shares, seen, suspected, failed)


def result_table(table: PaperTable, results: Mapping[Path, RunResult]) -> ResultTable:
    """A table with the numbers of its runs.

    The best of a column is marked if all its numbers are on the same number of images. Numbers under attack with
    suspected masking are never marked.
    """
    by_row = [tuple(results[run] for run in row.runs) for row in table.rows]
    scores = [scores_of(own, table.columns) for own in by_row]
    suspected = [any(result.suspected for result in own) for own in by_row]
    counts = {key: _counts(by_row, key) for key in table.columns}
    largest = max((number for numbers in counts.values() for number in numbers), default=0)
    columns = [
        marked(
            [row.get(key) for row in scores],
            [key == CLEAN.key or not masked for masked in suspected],
            comparable=_comparable(key, counts),
        )
        for key in table.columns
    ]
    rows = tuple(
        ResultRow(
            row=row,
            results=own,
            cells=tuple(column[i] for column in columns),
            seen=tuple(_seen(own, key) for key in table.columns),
            published=with_mean(row.published, table.columns),
        )
        for i, (row, own) in enumerate(zip(table.rows, by_row, strict=True))
    )
    titles = tuple(_title(key, counts[key], largest) for key in table.columns)
    return ResultTable(table, titles, rows, _tested(largest, titles))


def scores_of(results: Sequence[RunResult], columns: Sequence[str]) -> dict[str, Score]:
    """Numbers of a row by column, over its seeds, with the mean of the attacks where the table has it.

    The interval of a mean is the mean of the attacks' intervals. It is at least as wide as the interval of the
    mean, because the attacks have the same images.
    """
    found = {}
    for key in columns:
        parts = [_mean(result.shares, columns) if key == ALL else result.shares.get(key) for result in results]
        score = score_of(parts)
        if score is not None:
            found[key] = score
    return found


def _mean(shares: Mapping[str, Proportion], columns: Sequence[str]) -> Score | None:
    attacks = attacks_in(columns)
    if not attacks or any(key not in shares for key in attacks):
        return None
    parts = [shares[key] for key in attacks]
    return Score(
        fmean(part.share for part in parts), fmean(part.low for part in parts), fmean(part.high for part in parts)
    )


def robust_column(table: PaperTable) -> str:
    """The column that ranks rows by robust accuracy: AutoAttack, else the last attack of the table."""
    attacks = attacks_in(table.columns)
    return "aa" if "aa" in attacks or not attacks else attacks[-1]


def _tested(largest: int, titles: Sequence[str]) -> str:
    """The number of test images in words; empty without numbers."""
    if not largest:
        return ""
    other = any("(n = " in title for title in titles)
    return f"{count(largest)} test images" + (
        " unless the title of a column states another number" if other else ""
    )


def _counts(by_row: Sequence[Sequence[RunResult]], key: str) -> set[int]:
    return {result.shares[key].count for own in by_row for result in own if key in result.shares}


def _comparable(key: str, counts: Mapping[str, set[int]]) -> bool:
    keys = attacks_in(list(counts)) if key == ALL else [key]
    return all(len(counts[one]) < 2 for one in keys)


def _title(key: str, counts: set[int], largest: int) -> str:
    title = TITLES.get(key, key)
    if not counts or counts == {largest}:
        return title
    return f"{title} (n = {' or '.join(count(number) for number in sorted(counts))})"


def _seen(results: Sequence[RunResult], key: str) -> Seen | None:
    return joint_mark([result.seen.get(key) for result in results])
