"""Columns of a table of methods: clean, the attacks, the suites and the worst case of evaluations."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from robustly.evidence import Summary
from robustly.evidence.provenance import Seen, SuiteAttack
from robustly.reports.formats import count, setting
from robustly.reports.tables.evaluations import KeptEvaluation, joint_worst_case
from robustly.statistics import Proportion

SUITE_TITLES = {"aa_standard": "AA", "aa_plus": "AA+", "aa_rand": "AA rand"}
SUITE_ORDER = ("quick", "", "aa_rand", "aa_standard", "aa_plus", "standard", "strong")
"""Suites from the weakest to the strongest; the empty name means composed suites."""
NUMERICS = ("full_precision", "precision", "batch_size")
"""Settings that change the computation of a search, not its result."""


@dataclass(frozen=True)
class TableColumn:
    """One column.

    Args:
        key: name in published numbers and files.
        title: title in tables.
        settings: settings of the attack or of the stages as JSON; columns with other settings are other columns.
        stages: whether it is the outcome of a suite whose stages attack the unbroken examples only.
        count: number of images, in a table with several; else None.
        images: hash of the images, if the table has other images of this number; else empty.
    """

    key: str
    title: str
    settings: str = ""
    stages: bool = False
    count: int | None = None
    images: str = ""

    @property
    def everywhere(self) -> "TableColumn":
        """The same column without its images."""
        return replace(self, count=None, images="")

    @property
    def tested_on(self) -> str:
        """The images in brackets, for the title; empty if all columns have the same."""
        images = f", images {self.images}" if self.images else ""
        return "" if self.count is None else f" (n = {count(self.count)}{images})"


CLEAN, WORST_CASE, CERTIFIED = TableColumn("clean", "Clean"), TableColumn("worst_case", "Worst case"), "certified"


def measured(kept: Sequence[KeptEvaluation]) -> dict[TableColumn, Proportion]:
    """All numbers in evaluations of one model, on the same images and under one threat.

    In mode `every` each attack has a column. In mode `worst_case` the suite as a whole has one column, because the
    number of an attack depends on the attacks before it. Of two numbers for one column, the lower one is used.

    Raises:
        EvidenceError: a damaged evidence table.
    """
    found = {CLEAN: kept[0].evaluation.metrics.clean}
    for one in kept:
        for column, part in _of(one.evaluation):
            if column not in found or part.share < found[column].share:
                found[column] = part
    found[WORST_CASE] = joint_worst_case(kept)
    for one in kept:
        certified = one.evaluation.metrics.certified
        if certified is not None:
            found[TableColumn(CERTIFIED, f"Certified ({certified.name})")] = certified.robust
    return found


def seen_columns(kept: Sequence[KeptEvaluation]) -> dict[TableColumn, Seen]:
    """The columns of attacks that the model was trained, or its epoch selected, with."""
    return {
        _attack_column(outcome.attack): outcome.seen
        for one in kept
        if one.evaluation.suite.mode == "every"
        for outcome in one.evaluation.outcomes
        if outcome.seen is not None
    }


def ordered(columns: Iterable[TableColumn]) -> list[TableColumn]:
    """Columns in order: clean, single steps, PGD by its steps, C&W, others, suites, the worst case."""
    distinct = list(dict.fromkeys(columns))
    return sorted(distinct, key=lambda column: (*_rank(column), distinct.index(column)))


def titled(columns: Sequence[TableColumn]) -> list[str]:
    """Titles of columns, with the settings that differ where two have one title."""
    titles = []
    for column in columns:
        alike = [json.loads(other.settings) for other in columns if other.title == column.title and other.settings]
        if len(alike) < 2:
            titles.append(column.title + column.tested_on)
            continue
        own = json.loads(column.settings)
        keys = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        apart = ", ".join(f"{key.replace('_', ' ')} {setting(own[key])}" for key in keys)
        title = f"{column.title} ({apart})" if 0 < len(apart) < 40 else column.title
        titles.append(title + column.tested_on)
    often = [titles.count(title) for title in titles]
    return [
        title if often[i] == 1 else f"{title} ({titles[: i + 1].count(title)})" for i, title in enumerate(titles)
    ]


def _of(evaluation: Summary) -> list[tuple[TableColumn, Proportion]]:
    suite = evaluation.suite
    if suite.mode == "every":
        return [(_attack_column(one.attack), one.numbers.robust) for one in evaluation.outcomes if not one.state]
    if not suite.attacks:
        return []
    key = "aa" if suite.name == "aa_standard" else suite.name
    stages = {one.name: _plain(one.settings) for one in suite.attacks}
    title = SUITE_TITLES.get(suite.name, suite.name)
    column = TableColumn(key, title, json.dumps(stages, sort_keys=True, default=str), stages=True)
    return [(column, evaluation.metrics.worst_case.robust)]


def attack_key(name: str) -> str:
    """Key of the column of an attack, by its name in a suite."""
    if re.fullmatch(r"cw(_\d+)?", name):
        return "cw"
    return "aa" if name in ("autoattack", "aa") else name


def _attack_column(attack: SuiteAttack) -> TableColumn:
    return TableColumn(
        attack_key(attack.name), attack.title, json.dumps(_plain(attack.settings), sort_keys=True, default=str)
    )


def _plain(settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key not in NUMERICS}


def _rank(column: TableColumn) -> tuple[int, int]:
    if column.key == CLEAN.key:
        return 0, 0
    if column.key == WORST_CASE.key:
        return 6, 0
    if column.key == CERTIFIED:
        return 7, 0
    if column.stages or column.key == "aa":
        name = "aa_standard" if column.key == "aa" else column.key
        return 5, SUITE_ORDER.index(name if name in SUITE_ORDER else "")
    steps = re.fullmatch(r"pgd_(\d+)", column.key)
    if steps:
        return 2, int(steps[1])
    return {"fgsm": 1, "r_fgsm": 1, "cw": 3}.get(column.key, 4), 0
