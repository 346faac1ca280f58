"""The verdict on a reproduction in one or two sentences, and the doubts about it."""

from collections.abc import Sequence

from robustly.reports.reproduction.controls import Answer, ControlAnswers
from robustly.reports.reproduction.determinism import Repetition
from robustly.reports.reproduction.differences import Difference
from robustly.reports.reproduction.guides import GuideRow
from robustly.reports.tables.paper_results import ResultTable, RunResult
from robustly.reports.verdict import Verdict


def reproduction_verdict(
    answers: ControlAnswers | None,
    tables: Sequence[ResultTable],
    guides: Sequence[GuideRow] = (),
    repeated: Repetition | None = None,
) -> Verdict:
    """The verdict.

    Args:
        answers: answers of the controls; None without controls.
        tables: the tables with their results.
        guides: accuracies of the guides.
        repeated: comparison of two runs of one recipe and seed.
    """
    sentence, sound = _sentence(answers)
    distinct = {result.run: result for table in tables for row in table.rows for result in row.results}
    doubts = [*_missing(list(distinct.values()))]
    suspected = dict.fromkeys(row.row.name for table in tables for row in table.rows if row.suspected)
    if suspected:
        doubts.append(f"Masking is suspected, so robust accuracies are upper bounds: {', '.join(suspected)}.")
    wrong = [guide.name for guide in guides if guide.warning.startswith("below 60 % to the end")]
    if wrong:
        doubts.append(f"The guide labels fewer than 60 % of the training images correctly: {', '.join(wrong)}.")
    if repeated is not None and repeated.identical is False:
        doubts.append("One recipe and seed gave different weights in two runs: the runs are not deterministic.")
    return Verdict(sentence, tuple(doubts), sound)


def _sentence(answers: ControlAnswers | None) -> tuple[str, bool]:
    if answers is None:
        return "The reproduction has no controls, so nothing is decided on the cause of its numbers.", False
    first = answers.trade_off
    if first.difference is None:
        return first.sentence, False
    if first.outcome is None:
        return _one_seed(first.difference), False
    apart = f"guided DYNAT has {_more(first.difference, 'clean accuracy')} than PGD-AT"
    robust = answers.robust[0]
    if robust.difference is not None and robust.outcome is not None:
        apart += f" and {_more(robust.difference, 'robust accuracy')}"
    seeds = " and ".join(dict.fromkeys(map(str, first.difference.counts)))
    apart += f" (\u00b1 2 standard errors over {seeds} seeds)"
    if not first.outcome:
        return f"The trade-off of the paper does not replicate at this scale: {apart}.", True
    return f"The trade-off of the paper replicates at this scale: {apart}. {_cause(answers.cause)}", True


def _more(found: Difference, what: str) -> str:
    side = "more" if found.share >= 0 else "less"
    return f"{abs(100 * found.share):.1f} \u00b1 {50 * (found.high - found.low):.1f} points {side} {what}"


def _cause(answer: Answer) -> str:
    if answer.outcome is None or answer.difference is None:
        return "Its cause is not decided."
    end = f"{_more(answer.difference, 'clean accuracy')} than PGD-AT with the KL attack and the labels of the data"
    if answer.outcome:
        return f"The guide is not its cause: guided DYNAT has {end}."
    return f"The KL attack alone does not explain it: guided DYNAT has {end}."


def _one_seed(found: Difference) -> str:
    apart = f"{abs(100 * found.share):.1f} points"
    place = f"{apart} {'above' if found.share > 0 else 'below'} that" if found.share else "equal to that"
    sure = "may be chance" if found.within else "is more than chance in the choice of images"
    return (
        "One seed, so the trade-off is not decided: the clean accuracy of guided DYNAT is "
        f"{place} of PGD-AT, which {sure}."
    )


def _missing(results: Sequence[RunResult]) -> list[str]:
    failed = sum(result.reason.startswith("failed") for result in results)
    others = sum(bool(result.reason) for result in results) - failed
    words = [f"{failed} failed"] if failed else []
    words += [f"{others} {'has' if others == 1 else 'have'} no numbers yet or cannot be read"] if others else []
    number = "1 run" if len(results) == 1 else f"{len(results)} runs"
    return [f"Of {number}, {' and '.join(words)}."] if words else []
