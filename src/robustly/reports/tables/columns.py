"""The columns of a table of methods: clean, the attacks, the suites and the worst case that evaluations hold."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robustly.reports.evidence import AttackResult, Evaluation, Proportion
from robustly.reports.formats import setting
from robustly.reports.tables.evaluations import KeptEvaluation, joint_worst_case

SUITE_TITLES = {"aa_standard": "AA", "aa_plus": "AA+", "aa_rand": "AA rand"}
SUITE_ORDER = ("quick", "", "aa_rand", "aa_standard", "aa_plus", "standard", "strong")
"""From the weakest to the strongest; the empty name stands for suites of one's own."""
NUMERICS = ("full_precision", "precision", "batch_size")
"""Settings that change how a search is computed, not what it searches."""


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        key: what published numbers and files call it.
        title: what people call it.
        settings: of the attack, or of the stages, as JSON; columns of other settings are other columns.
        stages: whether it is the outcome of a suite whose stages hand on survivors.
    """

    key: str
    title: str
    settings: str = ""
    stages: bool = False


CLEAN, WORST_CASE, CERTIFIED = Column("clean", "Clean"), Column("worst_case", "Worst case"), "certified"


def measured(kept: Sequence[KeptEvaluation]) -> dict[Column, Proportion]:
    """Every number that evaluations of one model hold, on the same images and under one threat.

    In mode `every` each attack has a column. Where attacks see only what earlier ones left, their own numbers say
    little, and the suite as a whole has one. What was measured twice counts with the lower number.

    Raises:
        ReportError: a damaged evidence table.
    """
    found = {CLEAN: kept[0].evaluation.clean}
    for one in kept:
        for column, part in _of(one.evaluation):
            if column not in found or part.share < found[column].share:
                found[column] = part
    found[WORST_CASE] = joint_worst_case(kept)
    certified = [one.evaluation.certified for one in kept if one.evaluation.certified is not None]
    for each in certified:
        found[Column(CERTIFIED, f"Certified ({each.name})")] = each.robust
    return found


def ordered(columns: Iterable[Column]) -> list[Column]:
    """Columns from clean over single steps, PGD by its steps, C&W and others to suites and the worst case."""
    distinct = list(dict.fromkeys(columns))
    return sorted(distinct, key=lambda column: (*_rank(column), distinct.index(column)))


def titled(columns: Sequence[Column]) -> list[str]:
    """Titles that tell columns of the same attack with other settings apart."""
    titles = []
    for column in columns:
        alike = [json.loads(other.settings) for other in columns if other.title == column.title and other.settings]
        if len(alike) < 2:
            titles.append(column.title)
            continue
        own = json.loads(column.settings)
        keys = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        apart = ", ".join(f"{key.replace('_', ' ')} {setting(own[key])}" for key in keys)
        titles.append(f"{column.title} ({apart})" if 0 < len(apart) < 40 else column.title)
    often = [titles.count(title) for title in titles]
    return [
        title if often[i] == 1 else f"{title} ({titles[: i + 1].count(title)})" for i, title in enumerate(titles)
    ]


def _of(evaluation: Evaluation) -> list[tuple[Column, Proportion]]:
    if evaluation.mode == "every":
        return [(_attack_column(one), one.robust) for one in evaluation.attacks if not one.state]
    if not evaluation.attacks:
        return []
    key = "aa" if evaluation.suite == "aa_standard" else evaluation.suite
    stages = {one.name: _plain(one.settings) for one in evaluation.attacks}
    title = SUITE_TITLES.get(evaluation.suite, evaluation.suite)
    column = Column(key, title, json.dumps(stages, sort_keys=True, default=str), stages=True)
    return [(column, evaluation.worst_case)]


def _attack_column(attack: AttackResult) -> Column:
    key = attack.name
    if re.fullmatch(r"cw(_\d+)?", key):
        key = "cw"
    elif key in ("autoattack", "aa"):
        key = "aa"
    return Column(key, attack.title, json.dumps(_plain(attack.settings), sort_keys=True, default=str))


def _plain(settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key not in NUMERICS}


def _rank(column: Column) -> tuple[int, int]:
    if column == CLEAN:
        return 0, 0
    if column == WORST_CASE:
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
