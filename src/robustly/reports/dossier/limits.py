"""Limits of an evaluation: what its numbers do not state, as sentences that follow from the evidence."""

from collections.abc import Iterator

from robustly.evidence import EvidenceTable
from robustly.evidence.schema import RULES_SINCE
from robustly.reports.formats import count, percent
from robustly.reports.run import RunEvidence

_CLOSE = 0.02


def limit_sentences(run: RunEvidence) -> tuple[str, ...]:
    """Sentences on the limits of the numbers, the most important first.

    Args:
        run: a run with an evaluation.

    Raises:
        ValueError: the run has no evaluation.
    """
    if run.evaluation is None:
        raise ValueError(f"{run.name} has no evaluation")
    return (*_strength(run), *_coverage(run), *_chance(run), *_scope(run))


def _strength(run: RunEvidence) -> Iterator[str]:
    """Limits of attacks, certificates and audit."""
    evaluation = run.evaluation
    assert evaluation is not None
    metrics = evaluation.metrics
    if evaluation.masking:
        yield "Gradient masking is suspected: the accuracy under attack may be far above the true robust accuracy."
    for name in evaluation.failures:
        yield f"The attack {name} failed, so the worst case is without it."
    if metrics.proved is None:
        yield (
            "No certificate was computed: the accuracy under attack is an upper bound, and a stronger attack can "
            "only lower it."
        )
    else:
        yield f"{count(metrics.undecided)} examples are neither broken nor certified; on these the truth is open."
        risk = 0.0 if metrics.interval is None else metrics.interval.failure_probability
        if risk is None:
            yield "The failure probability of the certificates is not recorded."
        elif risk:
            yield f"Each certified example is wrong with a probability of at most {risk:g}."
    if evaluation.composed is not None:
        yield "The suite was composed by its user; its strength is that of its stages, not that of a known suite."
    if run.audit is None:
        yield "The evidence was not audited as it is now."
    elif not run.audit.passed:
        yield f"The last audit failed: {'; '.join(run.audit.failed)}."
    if evaluation.schema < RULES_SINCE:
        yield f"The evidence is of the older schema {evaluation.schema}, which an audit checks by older rules."


def _coverage(run: RunEvidence) -> Iterator[str]:
    """Examples and threats that were left out."""
    evaluation, table = run.evaluation, run.table
    assert evaluation is not None
    for outcome in evaluation.outcomes:
        if table is None or outcome.state:
            continue
        standing = _standing_before(table, outcome.attack.name)
        if outcome.numbers.tried < standing:
            yield (
                f"{outcome.attack.title} was run on {count(outcome.numbers.tried)} of the {count(standing)} "
                "examples that stood before it."
            )
    curve = evaluation.metrics.security_curve
    if curve is not None and curve.count < evaluation.data.count:
        yield (
            f"The curve over sizes of the change is that of one attack on {count(curve.count)} of "
            f"{count(evaluation.data.count)} examples."
        )
    union, weights = run.union, evaluation.model.weights_sha256
    texts = [evaluation.threat.text] if union is None else [one.text for one in union.threats]
    texts += [one.threat for suite in run.protocols if suite.weights_sha256 == weights for one in suite.columns]
    tested = list(dict.fromkeys(texts))
    if len(tested) == 1:
        yield f"Only {tested[0]} was tested. Accuracy under other threats was not measured."
    else:
        yield f"Tested threats are {', '.join(tested)}. Accuracy under other threats was not measured."


def _chance(run: RunEvidence) -> Iterator[str]:
    """Limits of the sample of examples."""
    evaluation = run.evaluation
    assert evaluation is not None
    worst, data = evaluation.metrics.worst_case, evaluation.data
    yield (
        f"The intervals cover chance in the choice of {count(data.count)} examples: accuracy under these "
        f"attacks, on other examples of this kind, lies between {percent(worst.robust.low)} and "
        f"{percent(worst.robust.high)} with 95 % confidence. They do not cover examples of another kind."
    )
    if data.trained_on is None or data.selected_on is None:
        yield "It is not recorded which images the model was trained on, so test images may be among them."
    elif data.seen:
        yield f"{data.seen_words.capitalize()}, so accuracies may be too high."
    seen = [one.attack.title for one in evaluation.outcomes if one.seen]
    if evaluation.seen_attacks is None:
        yield "It is not recorded which attacks the model was trained with, so their numbers may be too high."
    elif seen:
        yield f"The model was trained or selected with {', '.join(seen)}, so these numbers may be too high."
    classes = evaluation.metrics.per_class
    if len(classes) > 1:
        weakest = min(classes, key=lambda one: one.robust.share)
        yield f"Accuracy differs between classes: for class {weakest.name} it is {percent(weakest.robust.share)}."


def _scope(run: RunEvidence) -> Iterator[str]:
    """Limits of the kind of test."""
    evaluation = run.evaluation
    assert evaluation is not None
    worst = evaluation.metrics.worst_case
    if worst.robust_8bit is not None and worst.robust_8bit.share - worst.robust.share > _CLOSE:
        yield (
            f"Against an attacker who saves 8-bit files the accuracy is {percent(worst.robust_8bit.share)}; the "
            "worst case is that of an attacker who sets exact inputs."
        )
    if evaluation.metrics.invalid:
        number = count(evaluation.metrics.invalid)
        yield f"On {number} examples the output became NaN or infinite; they count as broken."
    yield from evaluation.warnings
    yield (
        "The test is digital, of single images, at the time of use. It does not cover changes of the physical "
        "scene, poisoned training data, stolen weights or privacy."
    )


def _standing_before(table: EvidenceTable, name: str) -> int:
    """Number of examples that the attacks before one left unbroken."""
    names = list(table.attacks)
    index = names.index(name) if name in names else 0
    if index == 0:
        return int(table.correct.sum())
    return int((table.correct & ~table.attacks[names[index - 1]].broken).sum())
