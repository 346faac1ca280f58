"""Evaluations of one model on different numbers of images of one data set, in one row with several columns."""

from collections.abc import Sequence
from dataclasses import replace

from robustly.reports.formats import short_hash
from robustly.reports.tables.columns import WORST_CASE, TableColumn, measured
from robustly.reports.tables.evaluations import EvaluatedRun, KeptEvaluation
from robustly.statistics import Proportion

Measured = tuple[EvaluatedRun, tuple[KeptEvaluation, ...], dict[TableColumn, Proportion]]
"""A run, its evaluations in one table, and their numbers by column."""
Test = tuple[object, ...]


def entries_by_table(runs: Sequence[EvaluatedRun]) -> list[list[Measured]]:
    """The entries of each table, one table for every threat and data set.

    Evaluations on the same images are in one table. Those on another number of images of the same data set are in
    it too if a run has both; their columns state the number of images.

    Raises:
        EvidenceError: an evidence table is damaged.
    """
    tested = [(run, _by_test(run)) for run in runs]
    tables: list[list[Test]] = []
    for _, own in tested:
        for test in own:
            related = [other for other in own if _is_related(own[test][0], own[other][0])]
            joined = [table for table in tables if any(other in table for other in (test, *related))]
            merged = list(dict.fromkeys([*(other for table in joined for other in table), test]))
            place = tables.index(joined[0]) if joined else len(tables)
            tables = [table for table in tables if table not in joined]
            tables.insert(place, merged)
    return [_entries(tested, table) for table in tables]


def _by_test(run: EvaluatedRun) -> dict[Test, list[KeptEvaluation]]:
    """Evaluations of a run by images and threat."""
    found: dict[Test, list[KeptEvaluation]] = {}
    for one in run.evaluations:
        data, threat = one.evaluation.data, one.evaluation.threat
        found.setdefault((data.sha256, threat.kind, round(threat.limit, 7), threat.box), []).append(one)
    return found


def _is_related(one: KeptEvaluation, other: KeptEvaluation) -> bool:
    """Return True for other numbers of images of the same data set, under the same threat."""
    data, theirs = one.evaluation.data, other.evaluation.data
    threats = [kept.evaluation.threat.text for kept in (one, other)]
    same = (data.source, data.split, data.classes) == (theirs.source, theirs.split, theirs.classes)
    return same and data.count != theirs.count and threats[0] == threats[1]


def _entries(
    tested: Sequence[tuple[EvaluatedRun, dict[Test, list[KeptEvaluation]]]], table: Sequence[Test]
) -> list[Measured]:
    data = {test: kept[0].evaluation.data for _, own in tested for test, kept in own.items() if test in table}
    counts = [one.count for one in data.values()]
    entries: list[Measured] = []
    for run, own in tested:
        tests = sorted((test for test in own if test in table), key=lambda test: -data[test].count)
        numbers: dict[TableColumn, Proportion] = {}
        for test in tests:
            images = short_hash(data[test].sha256) if counts.count(data[test].count) > 1 else ""
            for column, part in measured(own[test]).items():
                own_column = replace(column, count=data[test].count, images=images) if len(table) > 1 else column
                numbers[own_column] = part
        if tests:
            entries.append((run, tuple(one for test in tests for one in own[test]), numbers))
    repeated = _repeated(entries)
    return [
        (run, kept, {column: part for column, part in numbers.items() if column not in repeated})
        for run, kept, numbers in entries
    ]


def _repeated(entries: Sequence[Measured]) -> set[TableColumn]:
    """Columns that all their rows have on more images too; worst cases stay, as they are over other attacks."""
    every = {column for _, _, numbers in entries for column in numbers if column.count is not None}

    def has_larger(column: TableColumn) -> bool:
        larger = [
            other
            for other in every
            if other.everywhere == column.everywhere and (other.count or 0) > (column.count or 0)
        ]
        rows = [numbers for _, _, numbers in entries if column in numbers]
        return any(all(other in numbers for numbers in rows) for other in larger)

    return {column for column in every if column.key != WORST_CASE.key and has_larger(column)}
