"""Answers of the controls by rules that were fixed beforehand: is there a trade-off, and is the guide its cause?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from robustly.reports.reproduction.differences import Difference, difference
from robustly.reports.tables.columns import CLEAN
from robustly.reports.tables.paper_results import RunResult
from robustly.reports.tables.paper_tables import TITLES, PaperRow

ONE_SEED = "One seed: no decision."
RULES = (
    "Rules, fixed before the runs: the trade-off replicates if the clean accuracy of guided DYNAT exceeds that of "
    "PGD-AT by more than 2 standard errors of the difference over seeds; the guide is not its cause if guided "
    "DYNAT is within 2 standard errors of PGD-AT with DYNAT's KL attack and the labels of the data. With few "
    "seeds, 2 standard errors are narrower than a 95 % interval. Large ones meet the second rule easily: it "
    "decides little then."
)


@dataclass(frozen=True)
class Controls:
    """Rows that the rules compare; None for one that the reproduction does not have.

    Args:
        guided: DYNAT with a guide that was trained first.
        at_ce: PGD-AT.
        at_kl: PGD-AT with DYNAT's KL attack and the labels of the data.
    """

    guided: PaperRow | None = None
    at_ce: PaperRow | None = None
    at_kl: PaperRow | None = None


NO_CONTROLS = Controls()


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        question: the question.
        sentence: the difference and the outcome of the rule.
        difference: the difference; None without numbers.
        outcome: outcome of the rule; None without a decision.
    """

    question: str
    sentence: str
    difference: Difference | None = None
    outcome: bool | None = None


@dataclass(frozen=True)
class ControlAnswers:
    """Answers on clean accuracy, by which the rules decide, and on robust accuracy."""

    trade_off: Answer
    cause: Answer
    robust: tuple[Answer, Answer]

    @property
    def every(self) -> tuple[Answer, ...]:
        """All answers in order."""
        return self.trade_off, self.cause, *self.robust


def control_answers(controls: Controls, results: Mapping[Path, RunResult], robust: str) -> ControlAnswers | None:
    """Apply the rules; None if no row of the controls is given.

    Args:
        controls: the rows.
        results: results of runs by folder.
        robust: column of the robust accuracy.
    """
    if controls == NO_CONTROLS:
        return None
    first, ce, kl = controls.guided, controls.at_ce, controls.at_kl

    def exceeds(found: Difference) -> tuple[bool, str]:
        return found.low > 0, _trade_off_words(found)

    trade_off = _answer("Does the trade-off replicate?", (first, ce), results, CLEAN.key, exceeds)

    def is_within(found: Difference) -> tuple[bool, str]:
        return found.within, _cause_words(found, trade_off.outcome)

    cause = _answer("Is the guide its cause?", (first, kl), results, CLEAN.key, is_within)
    question = "Robust accuracy against {}"
    both = tuple(
        _answer(question.format(other.name if other else name), (first, other), results, robust, _robust_words)
        for other, name in ((ce, "PGD-AT"), (kl, "AT-KL"))
    )
    return ControlAnswers(trade_off, cause, (both[0], both[1]))


def _answer(
    question: str,
    pair: tuple[PaperRow | None, PaperRow | None],
    results: Mapping[Path, RunResult],
    key: str,
    rule: Callable[[Difference], tuple[bool, str]],
) -> Answer:
    """The answer to one question.

    Args:
        question: the question.
        pair: the rows to compare.
        results: results by folder.
        key: the column.
        rule: outcome and its words, for a difference over seeds.
    """
    first, second = pair
    if first is None or second is None:
        return Answer(question, "No decision: the reproduction does not have both rows.")
    ours, theirs = ([results[run] for run in row.runs] for row in (first, second))
    found = difference(ours, theirs, key)
    column = "clean accuracy" if key == CLEAN.key else f"robust accuracy ({TITLES.get(key, key)})"
    if found is None:
        missing = [row.name for row, own in zip(pair, (ours, theirs), strict=True) if row and not _has(own, key)]
        return Answer(question, f"No decision: no {column} of {' and '.join(missing)}.")
    measured = f"{first.name} minus {second.name}, {column}: {found.words}."
    suspected = [
        row.name for row, own in ((first, ours), (second, theirs)) if any(result.suspected for result in own)
    ]
    if suspected and key != CLEAN.key:
        doubt = f"No decision: masking is suspected for {' and '.join(suspected)}."
        return Answer(question, f"{measured} {doubt}", found)
    if not found.decides:
        return Answer(question, f"{measured} {ONE_SEED}", found)
    outcome, words = rule(found)
    return Answer(question, f"{measured} {words}", found, outcome)


def _has(results: list[RunResult], key: str) -> bool:
    return any(key in result.shares for result in results)


def _trade_off_words(found: Difference) -> str:
    if found.low > 0:
        return "More than 2 standard errors above: the trade-off replicates."
    if found.high < 0:
        return "More than 2 standard errors below: the trade-off does not replicate, its sign is the opposite."
    return "Not more than 2 standard errors above: the trade-off does not replicate."


def _cause_words(found: Difference, replicates: bool | None) -> str:
    if replicates is None:
        return "Within 2 standard errors." if found.within else "Not within 2 standard errors."
    if not replicates:
        end = "within" if found.within else "not within"
        return f"It is {end} 2 standard errors, but the trade-off does not replicate: there is no cause to find."
    if found.within:
        return "Within 2 standard errors: the guide is not the cause of the trade-off."
    return "Not within 2 standard errors: the attack alone does not explain the trade-off."


def _robust_words(found: Difference) -> tuple[bool, str]:
    if found.within:
        return False, "Within 2 standard errors: no difference is shown."
    return True, f"More than 2 standard errors {'above' if found.share > 0 else 'below'}."
