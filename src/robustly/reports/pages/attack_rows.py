"""Rows of the table of attacks on a run's page."""

from dataclasses import dataclass

import numpy as np

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.summary import AttackOutcome
from robustly.reports.formats import setting, tenths


@dataclass(frozen=True)
class AttackRow:
    """A row of the table of attacks."""

    outcome: AttackOutcome
    broken: int | None
    alone: int | None
    settings: tuple[tuple[str, str], ...]


def attack_rows(evaluation: Summary, table: EvidenceTable | None) -> tuple[AttackRow, ...]:
    """A row for each attack, in the order of the suite."""
    rows = []
    for outcome in evaluation.outcomes:
        name = outcome.attack.name
        broken = alone = None
        if table is not None and name in table.attacks:
            mine = table.broken_by(name)
            others = [table.broken_by(other) for other in table.attacks if other != name]
            broken = int(mine.sum())
            if others and evaluation.suite.mode == "every":
                alone = int((mine & ~np.any(others, axis=0)).sum())
        words = tuple((key.replace("_", " "), setting(value)) for key, value in outcome.attack.settings.items())
        rows.append(AttackRow(outcome, broken, alone, words))
    return tuple(rows)


def not_needed(evaluation: Summary) -> tuple[str, ...]:
    """Titles of the attacks that nothing suspicious called for."""
    return tuple(outcome.attack.title for outcome in evaluation.outcomes if outcome.state == "not needed")


def passes(outcome: AttackOutcome) -> str:
    """Mean passes per attacked example: `9.1 + 8.0`."""
    return f"{tenths(outcome.numbers.mean_forwards)} + {tenths(outcome.numbers.mean_backwards)}"
