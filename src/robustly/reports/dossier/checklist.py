"""The implementation checklist of adversarial training, answered from the evidence of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from robustly.reports.dossier.document import Grid
from robustly.reports.formats import count, duration, percent, setting
from robustly.reports.run import RunEvidence
from robustly.reports.strength import BY_DECISIONS, BY_SCORES, TRANSFER, ran_attacks, strength

Reply = Literal["yes", "no", "not measured"]
_ELSEWHERE = "there is no record of the training: the model was trained elsewhere"


@dataclass(frozen=True)
class Answer:
    """The answer to one item.

    Args:
        item: the item of the checklist.
        reply: "not measured" if no file of the run states it.
        words: the reason, with the numbers.
        where: file or section that holds the evidence.
    """

    item: str
    reply: Reply
    words: str
    where: str


def checklist(run: RunEvidence) -> tuple[Answer, ...]:
    """The eight items in their order.

    Args:
        run: a run with an evaluation.
    """
    return (
        _attack_algorithm(run),
        _epsilon(run),
        _ratio(run),
        _time(run),
        _diverse(run),
        _monitored(run),
        _documented(run),
        _adaptive(run),
    )


def checklist_table(answers: tuple[Answer, ...]) -> Grid:
    """The answers as a table."""
    rows = tuple((one.item, one.reply, one.words, one.where) for one in answers)
    return Grid("Checklist", ("Item", "Answer", "Reason", "Evidence"), rows)


def _attack_algorithm(run: RunEvidence) -> Answer:
    item = "Choose the attack of the training (recommended: PGD)"
    method = _part(run.config, "method")
    if run.training is None or method is None:
        return Answer(item, "not measured", _ELSEWHERE, "config.yaml is missing")
    inner = _part(method, "inner")
    if inner is None:
        return Answer(
            item, "no", "the method has no inner attack: the training is not adversarial", "config.yaml: method"
        )
    named = {key: inner[key] for key in ("name", "objective", "steps", "start") if inner.get(key) is not None}
    return Answer(item, "yes", setting(named), "config.yaml: method.inner")


def _epsilon(run: RunEvidence) -> Answer:
    item = "Set epsilon from the threat model and the trade-off with accuracy"
    evaluation = run.evaluation
    assert evaluation is not None
    trained = (
        None if run.config is None or run.training is None else run.config.get("threat", run.config.get("threats"))
    )
    words = f"tested at {evaluation.threat.text}"
    trained = ", ".join(map(str, trained)) if isinstance(trained, list) else trained
    words += f", trained at {trained}" if isinstance(trained, str) else ""
    curve = evaluation.metrics.security_curve
    if curve is None:
        return Answer(
            item, "not measured", f"{words}; accuracy at other sizes was not measured", "no security curve"
        )
    ends = f"{percent(curve.accuracy[0])} at {curve.epsilon_text[0]}, {percent(curve.accuracy[-1])} at "
    words += f"; accuracy was measured at {len(curve.epsilon)} sizes: {ends}{curve.epsilon_text[-1]}"
    return Answer(item, "yes", words, "security_curve in summary.json")


def _ratio(run: RunEvidence) -> Answer:
    item = "Determine the ratio of clean to adversarial examples"
    method = _part(run.config, "method")
    loss = None if method is None or run.training is None else _part(method, "loss")
    if loss is None:
        return Answer(item, "not measured", _ELSEWHERE, "config.yaml is missing")
    weights = {key: value for key, value in loss.items() if value is not None}
    return Answer(
        item, "yes", f"the terms of the loss have fixed weights: {setting(weights)}", "config.yaml: method.loss"
    )


def _time(run: RunEvidence) -> Answer:
    item = "Allocate sufficient training time (2 to 10 times that of standard training)"
    if run.training is None:
        return Answer(item, "not measured", _ELSEWHERE, "metrics.csv is missing")
    status, epochs = run.training.status, len(run.training.columns["epoch"])
    words = f"{count(epochs)} epochs" + ("" if status.seconds is None else f" in {duration(status.seconds)}")
    words += "" if status.best_epoch is None else f", the best is epoch {status.best_epoch}"
    if status.state != "finished":
        return Answer(item, "no", f"{words}; the training is {status.state or 'not finished'}", "status.json")
    words += ", to its end; standard training of the same network was not timed"
    return Answer(item, "not measured", words, "status.json, metrics.csv")


def _diverse(run: RunEvidence) -> Answer:
    """Yes for attacks of two families, one of them without gradients of the model, and one not seen in training."""
    item = "Validate against diverse attacks, those not used in training among them"
    evaluation = run.evaluation
    assert evaluation is not None
    test, ran = strength(evaluation), ran_attacks(evaluation)
    names = [name for name, _ in test.families]
    free = [name for name in names if name in (BY_SCORES, BY_DECISIONS, TRANSFER)]
    fresh = [one for one in ran if not one.seen]
    words = f"{len(ran)} attacks of the kinds {', '.join(names) or 'none'}; "
    words += f"without gradients of the model: {', '.join(free) or 'none'}; "
    recorded = evaluation.seen_attacks is not None
    words += f"not seen in training: {len(fresh)}" if recorded else "attacks of the training are not recorded"
    enough = len(names) > 1 and bool(free) and bool(fresh) and not test.weaknesses
    return Answer(item, "yes" if enough else "no", words, "section on attacks; summary.json: suite")


def _monitored(run: RunEvidence) -> Answer:
    item = "Monitor both clean and robust accuracy"
    if run.training is None:
        return Answer(item, "not measured", f"{_ELSEWHERE}; the evaluation has both", "metrics.csv is missing")
    names = ("validation_clean_accuracy", "validation_robust_accuracy")
    missing = [name for name in names if run.training.column(name) is None]
    if missing:
        return Answer(item, "no", f"no epoch has {' or '.join(missing)}", "metrics.csv")
    return Answer(item, "yes", "both were measured on validation images in the epochs", "metrics.csv")


def _documented(run: RunEvidence) -> Answer:
    item = "Document the assumptions of the threat model"
    evaluation = run.evaluation
    assert evaluation is not None
    if not evaluation.threat.words:
        return Answer(item, "no", "the evidence has no words on the threat", "summary.json: threat")
    return Answer(item, "yes", "the section on the threat model states them", "summary.json: threat")


def _adaptive(run: RunEvidence) -> Answer:
    item = "Test against adaptive attacks"
    evaluation = run.evaluation
    assert evaluation is not None
    ran = [outcome.attack for outcome in evaluation.outcomes if not outcome.state]
    adapted = [one.title for one in ran if one.settings.get("estimator") is not None]
    if adapted:
        return Answer(
            item, "yes", f"with estimated or averaged gradients: {', '.join(adapted)}", "summary.json: suite"
        )
    watched = [one for one in evaluation.findings if one.passed is not None]
    words = "no attack was written against this defence"
    if watched:
        words += f"; {len(watched)} diagnostics test for masked gradients instead"
    return Answer(item, "not measured", words, "section on diagnostics")


def _part(values: Mapping[str, object] | None, key: str) -> Mapping[str, object] | None:
    """A mapping in the settings, or None."""
    found = None if values is None else values.get(key)
    return found if isinstance(found, Mapping) else None
