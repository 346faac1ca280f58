"""Tables in the columns and rows of a paper: our numbers with the published ones beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustly.evidence.schema import SUMMARY
from robustly.reports.tables.columns import CLEAN, measured
from robustly.reports.tables.evaluations import EvaluatedRun
from robustly.reports.tables.published import published_rows
from robustly.statistics import Proportion

ALL = "all"
"""Key of the column with the mean of all attacks of the table."""
TITLES = {
    "clean": "Clean",
    "pgd_10": "PGD-10",
    "pgd_20": "PGD-20",
    "pgd_50": "PGD-50",
    "pgd_100": "PGD-100",
    "apgd": "APGD",
    "cw": "C&W",
    "aa": "AA",
    ALL: "All",
}


@dataclass(frozen=True)
class PaperRow:
    """One method of a table.

    Args:
        group: text of the first column, such as "Ours".
        name: name in the paper.
        runs: folders of its runs, one for each seed; some may be missing or not evaluated yet.
        published: published shares in [0, 1] by column; empty for a row that the paper does not have.
    """

    group: str
    name: str
    runs: tuple[Path, ...]
    published: Mapping[str, float]


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper.

    Args:
        key: identifier, such as "table1".
        title: its title.
        setting: setting of the published numbers: data, networks.
        heading: title of the column of groups.
        columns: keys of the columns in order, `ALL` included where the paper has it.
        rows: the rows.
        note: a sentence below the table; may be empty.
    """

    key: str
    title: str
    setting: str
    heading: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    note: str = ""


def attacks_in(columns: Sequence[str]) -> list[str]:
    """The columns of attacks."""
    return [key for key in columns if key not in (CLEAN.key, ALL)]


def with_mean(numbers: Mapping[str, float], columns: Sequence[str]) -> dict[str, float]:
    """Numbers of a row with the mean over its attacks, if the table has that column and every attack a number."""
    found = {key: numbers[key] for key in columns if key in numbers}
    attacks = attacks_in(columns)
    if ALL in columns and all(key in found for key in attacks):
        found[ALL] = sum(found[key] for key in attacks) / len(attacks)
    return found


def published_in(source: str, name: str, architecture: str = "") -> dict[str, float]:
    """Published shares of a row by column, from the paper's table; empty if there is no such row.

    Args:
        source: beginning of the source in `published.csv`, such as "arXiv 2408.13102, table 1".
        name: name of the row.
        architecture: beginning of the network's name, where a table has rows of one name.
    """
    paper = source.rpartition(",")[0]
    for beginning in (source, paper):  # a row that two tables share is listed once
        for row in published_rows():
            of_table = row.source == source or row.source.startswith((f"{beginning} ", f"{beginning},"))
            if of_table and row.name == name and row.architecture.startswith(architecture):
                return dict(row.accuracy)
    return {}


def is_evaluated(run: Path) -> bool:
    """Return True if a run has an evaluation."""
    return any((folder / SUMMARY).is_file() for folder in run.glob("evaluation*"))


def numbers_of(run: EvaluatedRun) -> dict[str, Proportion]:
    """Numbers of a run by column. Of several for one column, that on the most images is used.

    AutoAttack may be on fewer images than the other columns: every number has its own count.

    Raises:
        EvidenceError: a file of an evaluation is damaged.
    """
    found: dict[str, Proportion] = {}
    for one in sorted(run.evaluations, key=lambda kept: -kept.evaluation.data.count):
        for column, part in measured([one]).items():
            found.setdefault(column.key, part)
    return found
