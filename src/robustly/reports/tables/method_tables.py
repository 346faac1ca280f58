"""Tables of methods as in papers: one for every threat and set of test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from robustly.evidence.provenance import DataRecord, Seen, ThreatRecord
from robustly.reports.formats import count, short_hash
from robustly.reports.run import ReportError
from robustly.reports.tables.columns import (
    CERTIFIED,
    CLEAN,
    WORST_CASE,
    TableColumn,
    ordered,
    seen_columns,
    titled,
)
from robustly.reports.tables.comparison import ComparedNumber, ShareInterval, marked
from robustly.reports.tables.evaluations import EvaluatedRun
from robustly.reports.tables.mixed_counts import Measured, entries_by_table
from robustly.reports.tables.published import Published, published_row
from robustly.reports.tables.seeds import group_names, seed_groups, seed_of

By = Literal["method", "run"]


@dataclass(frozen=True)
class Score:
    """One number of a table.

    Args:
        share: the share, or its mean over several seeds, in [0, 1].
        low: lower end of the 95 % Wilson interval; over seeds, the lowest end.
        high: upper end; over seeds, the highest end.
        deviation: standard deviation over the seeds; None for one run.
        worst: the lowest of the seeds; None for one run.
        seeds: number of runs that have this number.
    """

    share: float
    low: float
    high: float
    deviation: float | None = None
    worst: float | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Row:
    """One method: a run, or several that differ only in the seed.

    Args:
        name: name of the row.
        recipe: recipe of the runs.
        seeds: their seeds.
        cells: the numbers, one per column.
        suspected: whether masking is suspected.
        published: published numbers of the method, or None.
        seen: per column "training" or "selection" if the model was trained, or its epoch selected, with this kind
            of attack; None for others, and where it is unknown.
        trained_on: number of test images that the model was trained on, the largest of the runs; None if unknown.
        selected_on: number of test images that the model was selected on.
    """

    name: str
    recipe: str | None
    seeds: tuple[int | None, ...]
    cells: tuple[ComparedNumber[Score], ...]
    suspected: bool = False
    published: Published | None = None
    seen: tuple[Seen | None, ...] = ()
    trained_on: int | None = None
    selected_on: int | None = None

    @property
    def words(self) -> str:
        """The recipe and the seeds, printed below the name."""
        seeds = [str(seed) for seed in self.seeds if seed is not None]
        parts = [] if self.recipe is None or self.recipe == self.name else [self.recipe]
        if len(self.seeds) > 1:
            parts.append(f"{len(self.seeds)} seeds: {', '.join(seeds)}")
        elif seeds:
            parts.append(f"seed {seeds[0]}")
        return " \u00b7 ".join(parts)


@dataclass(frozen=True)
class MethodTable:
    """Rows under the same threat, on images of one data set.

    Args:
        threat: the threat model.
        data: the test images of the first row.
        columns: the columns in order.
        titles: their titles.
        rows: the rows.
        notes: sentences on worst cases that are not comparable; empty if they are.
        remarks: sentences on the rows, such as test images that a model was trained on.
        tests: the data of each set of images, the largest first.
    """

    threat: ThreatRecord
    data: DataRecord
    columns: tuple[TableColumn, ...]
    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    tests: tuple[DataRecord, ...] = ()

    @property
    def title(self) -> str:
        """Text about data and threat."""
        numbers = " and ".join(count(one.count) for one in self.tests or (self.data,))
        examples = f"{numbers} {self.data.split or ''} examples".replace("  ", " ")
        return f"{examples} of {self.data.source}, {self.threat.text}"

    @property
    def robust_column(self) -> int:
        """Index of the column that ranks the rows.

        It is the worst case if that is over the same attacks in all rows, else the strongest column of all rows.
        """
        worst = self._lowest_worst_case
        if not self.notes:
            return worst
        shared = [
            i
            for i, column in enumerate(self.columns)
            if _is_attack(column) and all(row.cells[i].value is not None for row in self.rows)
        ]
        return shared[-1] if shared else worst

    @property
    def _lowest_worst_case(self) -> int:
        """Index of the worst case that most rows have; of several, of the lowest."""
        places = [i for i, column in enumerate(self.columns) if column.key == WORST_CASE.key]

        def rank(place: int) -> tuple[int, float]:
            known = [row.cells[place].value for row in self.rows]
            shares = [score.share for score in known if score is not None]
            return -len(shares), fmean(shares)

        return min(places, key=rank)


def method_tables(runs: Sequence[EvaluatedRun], by: By = "method") -> tuple[MethodTable, ...]:
    """Tables of evaluated runs, one for every threat and data set; see `entries_by_table`.

    Args:
        runs: the runs, in the order of the rows.
        by: "method" makes one row of runs that differ only in the seed, "run" makes one row per run.

    Raises:
        ReportError: there are no runs.
        EvidenceError: an evidence table is damaged.
    """
    if not runs:
        raise ReportError("A comparison needs at least one run.")
    distinct = list({(run.path.resolve(), run.last_epoch): run for run in runs}.values())
    return tuple(_table(entries, by) for entries in entries_by_table(distinct))


def _table(entries: Sequence[Measured], by: By) -> MethodTable:
    columns = ordered(column for _, _, numbers in entries for column in numbers)
    runs = [run for run, *_ in entries]
    groups = seed_groups(runs) if by == "method" else [[i] for i in range(len(runs))]
    names = group_names([[runs[i] for i in group] for group in groups])
    scores = [[score_of([entries[i][2].get(column) for i in group]) for column in columns] for group in groups]
    suspected = [any(one.evaluation.masking for i in group for one in entries[i][1]) for group in groups]
    titles = titled(columns)
    notes = _notes(columns, titles, [len(group) for group in groups], scores)
    marks = [
        marked(
            [row[i] for row in scores],
            [column.key == CLEAN.key or not masked for masked in suspected],
            comparable=column.key != WORST_CASE.key or not notes,
        )
        for i, column in enumerate(columns)
    ]
    rows = tuple(
        Row(
            name=names[g],
            recipe=runs[group[0]].recipe,
            seeds=tuple(seed_of(runs[i]) for i in group),
            cells=tuple(column[g] for column in marks),
            suspected=suspected[g],
            published=_published(entries[group[0]], [column.key for column in columns if _is_attack(column)]),
            seen=_seen([entries[i] for i in group], columns),
            trained_on=_largest([one.evaluation.data.trained_on for i in group for one in entries[i][1]]),
            selected_on=_largest([one.evaluation.data.selected_on for i in group for one in entries[i][1]]),
        )
        for g, group in enumerate(groups)
    )
    first = entries[0][1][0].evaluation
    remarks = [_seen_rows(row.name, [entries[i] for i in group]) for row, group in zip(rows, groups, strict=True)]
    found = tuple(remark for remark in remarks if remark)
    data = [one.evaluation.data for _, kept, _ in entries for one in kept]
    distinct = {one.sha256: one for one in data}
    tests = tuple(sorted(distinct.values(), key=lambda one: -one.count))
    return MethodTable(first.threat, first.data, tuple(columns), tuple(titles), rows, notes, found, tests)


def _seen(entries: Sequence[Measured], columns: Sequence[TableColumn]) -> tuple[Seen | None, ...]:
    marks = [seen_columns(kept) for _, kept, _ in entries]
    found = [[one.get(column.everywhere) for one in marks] for column in columns]
    return tuple(map(joint_mark, found))


def joint_mark(marks: Sequence[Seen | None]) -> Seen | None:
    """The mark of a row from those of its runs: "training" before "selection"."""
    return "training" if "training" in marks else next(filter(None, marks), None)


def _largest(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return max(known) if len(known) == len(numbers) or any(known) else None


def _seen_rows(name: str, entries: Sequence[Measured]) -> str:
    """A remark if a model of a row was trained or selected on test images; else empty."""
    tested = [one.evaluation.data for _, kept, _ in entries for one in kept]
    words = list(dict.fromkeys(data.seen_words for data in tested if data.seen))
    return f"{name}: {'; '.join(words)}. Its accuracies may be too high." if words else ""


def score_of(parts: Sequence[ShareInterval | None]) -> Score | None:
    """The number of a row from those of its runs, one for each seed; None if no run has it."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    shares = [part.share for part in known]
    low, high = min(part.low for part in known), max(part.high for part in known)
    if len(known) == 1:
        return Score(shares[0], low, high)
    return Score(fmean(shares), low, high, stdev(shares), min(shares), len(known))


def _notes(
    columns: Sequence[TableColumn],
    titles: Sequence[str],
    sizes: Sequence[int],
    scores: Sequence[Sequence[Score | None]],
) -> tuple[str, ...]:
    """A note if worst cases are over different attacks: a row with more attacks has a lower number."""
    lacking = [
        title
        for i, (column, title) in enumerate(zip(columns, titles, strict=True))
        if _is_attack(column) and any(_seeds(row[i]) < size for row, size in zip(scores, sizes, strict=True))
    ]
    if not lacking:
        return ()
    return (
        f"The worst cases are over different attacks (not every run has {', '.join(lacking)}): none of them is "
        "marked as best.",
    )


def _seeds(score: Score | None) -> int:
    return 0 if score is None else score.seeds


def _is_attack(column: TableColumn) -> bool:
    return column.key not in (CLEAN.key, WORST_CASE.key, CERTIFIED)


def _published(entry: Measured, attacks: Sequence[str]) -> Published | None:
    run, kept, _ = entry
    evaluation = kept[0].evaluation
    if run.recipe is None or run.last_epoch or evaluation.threat.norm != "linf":
        return None
    return published_row(
        run.recipe,
        attacks,
        model=evaluation.model.name,
        epsilon=evaluation.threat.limit,
        source=evaluation.data.source,
    )


def distinguishing(tables: Sequence[MethodTable]) -> list[str]:
    """Titles of tables, with the hash of the images where two would be equal."""
    titles = [table.title for table in tables]
    return [
        title if titles.count(title) == 1 else f"{title} (images {short_hash(table.data.sha256)})"
        for title, table in zip(titles, tables, strict=True)
    ]
