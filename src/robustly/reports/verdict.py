"""The verdict on one run in a sentence, and the doubts about it."""

from collections.abc import Iterator
from dataclasses import dataclass

from robustly.evidence import Summary
from robustly.evidence.collapse import collapsed
from robustly.reports.formats import count, in_words, interval, percent
from robustly.reports.run import RunEvidence
from robustly.reports.strength import ran_attacks, strength
from robustly.statistics import Proportion

FEW_EXAMPLES = 200
"""With fewer, chance in their choice moves a share by several points, and the verdict states the interval."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    Args:
        sentence: the result in one sentence.
        doubts: sentences that limit it, the gravest first.
        sound: whether its robust accuracy may be ranked with others.
    """

    sentence: str
    doubts: tuple[str, ...] = ()
    sound: bool = True


def verdict(run: RunEvidence) -> Verdict:
    """The verdict on a run; it never states more than its evidence."""
    evaluation = run.evaluation
    if evaluation is None:
        return Verdict(f"{run.name} is trained but not evaluated: its robust accuracy is unknown.", sound=False)
    one_class = None if run.table is None else collapsed(run.table.examples)
    failed = run.audit is not None and not run.audit.passed
    doubtful = bool(evaluation.masking or run.notes) or failed or not ran_attacks(evaluation)
    if one_class is not None:
        sentence = (
            f"{run.name} predicts class {evaluation.data.class_name(one_class)} for every one of "
            f"{count(evaluation.data.count)} examples: the network has collapsed, and its accuracies mean nothing."
        )
    else:
        sentence = _result(run.name, evaluation)
    return Verdict(sentence, tuple(_doubts(run, evaluation)), not doubtful and one_class is None)


def held(part: Proportion) -> str:
    """A share as the object of "holds": `74.6 % of 1,000`; none and all in words, as rounding hides them."""
    of = f"of {count(part.count)}"
    if part.hits == 0:
        return f"none {of}"
    if part.hits == part.count:
        return f"all {of}"
    if not 0.0005 <= part.share < 0.9995:
        return f"{count(part.hits)} {of}"
    return f"{percent(part.share)} {of}"


def examples_words(evaluation: Summary) -> str:
    """The tested examples in words: "test examples of mnist5k"."""
    split = f"{evaluation.data.split} " if evaluation.data.split else ""
    return f"{split}examples of {evaluation.data.source}"


def attacks_words(number: int) -> str:
    """A number of attacks: "four attacks"."""
    return f"{in_words(number)} attack{'' if number == 1 else 's'}"


def _result(name: str, evaluation: Summary) -> str:
    metrics, number = evaluation.metrics, len(ran_attacks(evaluation))
    worst, proved = metrics.attacked, metrics.proved
    what, threat = examples_words(evaluation), evaluation.threat.text
    clean = f"without an attack, it classifies {percent(metrics.clean.share)} correctly"
    if not metrics.clean.hits:
        none = f"none of {count(metrics.clean.count)}"
        return f"{name} classifies {none} {what} correctly, so there is nothing to attack."
    if not number and proved is None:
        return f"No attack ran on {name}: its robust accuracy is unknown; {clean}."
    if proved is not None and not number:
        most = f", and at most on {percent(worst.share)}" if metrics.interval is not None else ""
        return f"{name} is proved robust on {held(proved)} {what} under {threat}{most}; no attack ran; {clean}."
    if evaluation.masking:
        least = "lower" if proved is None else f"lower, but not below the proved {percent(proved.share)}"
        return (
            f"{name} seems to hold {held(worst)} {what} against {attacks_words(number)} under {threat}, but "
            f"gradient masking is suspected: its true robust accuracy may be far {least}."
        )
    also = " and a certificate's counterexamples" if worst.hits < metrics.worst_case.robust.hits else ""
    against = f"against {attacks_words(number)}{also} under {threat}"
    if proved is None or not metrics.undecided:
        exact = "" if proved is None else ", and all of these are proved"
        return f"{name} holds {held(worst)} {what} {against}{exact}; {clean}."
    left = f"{count(metrics.undecided)} {'is' if metrics.undecided == 1 else 'are'} undecided"
    least = percent(proved.share) if proved.hits else "none"
    both = f"is proved robust on {least} and holds {held(worst)} {what} {against}"
    return f"{name} {both}; {left}; {clean}."


def _doubts(run: RunEvidence, evaluation: Summary) -> Iterator[str]:
    if run.notes:
        yield "The files of this run contradict each other, so at least one number is wrong."
    if run.audit is not None and not run.audit.passed:
        yield "The audit of the evidence failed: do not rely on these numbers."
    for name in evaluation.failures:
        yield f"The attack {evaluation.suite.title(name)} failed and is not part of the result."
    test = strength(evaluation)
    if test.weaknesses and evaluation.metrics.clean.hits:
        yield f"The test is weak: {'; '.join(test.weaknesses)}."
    elif test.narrow:
        yield f"All attacks are of one kind ({test.narrow}); one of another kind may break more."
    clean, classes = evaluation.metrics.clean, len(evaluation.data.classes)
    if classes > 1 and clean.low <= 1 / classes:
        yield f"Without an attack the network is hardly better than a guess among {count(classes)} classes."
    if run.training is not None and run.training.status.state == "diverged":
        yield "The training diverged."
    if evaluation.data.seen:
        yield f"{evaluation.data.seen_words.capitalize()}, so the accuracies may be too high."
    worst = evaluation.metrics.worst_case.robust
    if worst.count < FEW_EXAMPLES:
        examples = "is only one example" if worst.count == 1 else f"are only {count(worst.count)} examples"
        yield f"There {examples}: the 95 % interval of the worst case is {interval(worst)} %."
