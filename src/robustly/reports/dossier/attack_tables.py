"""Attacks that were tried, and known attacks that were not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.summary import AttackOutcome
from robustly.reports.dossier.document import Grid
from robustly.reports.formats import NO_VALUE, count, percent, proportion, setting

_SHOWN = 6
"""Most settings of an attack in the table; the report has all."""


@dataclass(frozen=True)
class KnownAttack:
    """An attack of the package, whether or not it was tried.

    Args:
        name: its name in files of suites.
        words: one sentence on the attack.
        kind: kind of attack, as evidence records it.
        defined: whether it is defined for the evaluated threat.
        needs: the threats that it is defined for, in words.
        settings: settings of a preset; None for a kind with any settings.
    """

    name: str
    words: str
    kind: str
    defined: bool
    needs: str
    settings: Mapping[str, object] | None = None

    def is_tried_by(self, outcome: AttackOutcome) -> bool:
        """Return True if an attack of the suite is this one."""
        recorded = dict(outcome.attack.settings)
        return recorded.get("kind") == self.kind and (self.settings is None or recorded == dict(self.settings))


def tried_table(evaluation: Summary, table: EvidenceTable | None) -> Grid:
    """The attacks of the suite with their outcome."""
    rows = []
    for outcome in evaluation.outcomes:
        name = outcome.attack.name
        broken = NO_VALUE if table is None or name not in table.attacks else count(int(table.broken_by(name).sum()))
        accuracy, on = proportion(outcome.numbers.robust), count(outcome.numbers.tried)
        if outcome.state:
            accuracy, on, broken = outcome.state, NO_VALUE, NO_VALUE
        seen = f"in {outcome.seen}" if outcome.seen else ""
        rows.append((outcome.attack.title, _settings(outcome), on, broken, accuracy, seen))
    alone = evaluation.suite.mode == "every"
    last = ("Broken by it", "Accuracy under it") if alone else ("Broken so far", "Accuracy so far")
    header = ("Attack", "Settings", "Tried on", *last, "Seen before")
    return Grid("Attacks that were tried", header, tuple(rows))


def untried_table(evaluation: Summary, known: Sequence[KnownAttack]) -> Grid:
    """The known attacks that gave no numbers, with the reason."""
    rows = []
    for attack in known:
        found = [outcome for outcome in evaluation.outcomes if attack.is_tried_by(outcome)]
        if any(not outcome.state for outcome in found):
            continue
        rows.append((attack.name, attack.words, _reason(evaluation, attack, found)))
    return Grid("Known attacks that were not tried", ("Attack", "Description", "Reason"), tuple(rows))


def _reason(evaluation: Summary, attack: KnownAttack, found: Sequence[AttackOutcome]) -> str:
    failed = [outcome.attack.name for outcome in found if outcome.state == "failed"]
    if failed:
        return f"failed: {evaluation.failures[failed[0]]}"
    if found:
        return "in the suite, but not needed: nothing was suspicious"
    return "not run" if attack.defined else f"not defined for this threat (defined for {attack.needs})"


def _settings(outcome: AttackOutcome) -> str:
    """The kind and the first settings that are not empty."""
    pairs = [
        f"{key.replace('_', ' ')} {setting(value)}"
        for key, value in outcome.attack.settings.items()
        if key != "kind" and value not in (None, False, 0, "")
    ]
    kind = str(outcome.attack.settings.get("kind", ""))
    more = [f"and {len(pairs) - _SHOWN} more"] if len(pairs) > _SHOWN else []
    return "; ".join([*([kind] if kind else []), *pairs[:_SHOWN], *more])


def class_table(evaluation: Summary, most: int = 20) -> Grid:
    """Examples and accuracies of the classes; with more than `most`, those that are weakest under attack."""
    classes = list(evaluation.metrics.per_class)
    shown = classes if len(classes) <= most else sorted(classes, key=lambda one: one.robust.share)[:most]
    rows = [(one.name, count(one.clean.count), percent(one.clean.share), proportion(one.robust)) for one in shown]
    return Grid("Classes", ("Class", "Examples", "Clean", "Robust (worst case)"), tuple(rows))
