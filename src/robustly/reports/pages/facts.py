"""Facts that let somebody else repeat an evaluation: model, data, test, training, software."""

from dataclasses import dataclass

from robustly.reports.evidence import Evaluation, RunEvidence, Training
from robustly.reports.formats import count, duration, moment

Pairs = list[tuple[str, str | None]]


@dataclass(frozen=True)
class FactGroup:
    """Facts under one heading, as (name, value)."""

    title: str
    facts: tuple[tuple[str, str], ...]


def facts(run: RunEvidence) -> tuple[FactGroup, ...]:
    """The facts that the run's files tell, without those they leave out."""
    groups: list[tuple[str, Pairs]] = []
    if run.evaluation is not None:
        groups += [
            ("Model", _model(run.evaluation)),
            ("Data", _data(run.evaluation)),
            ("Test", _test(run.evaluation)),
        ]
    if run.training is not None:
        groups.append(("Training", _training(run.training)))
    if run.evaluation is not None:
        groups.append(("Software", [*run.evaluation.versions.items(), ("Device", run.evaluation.device)]))
    found = [(title, tuple((name, value) for name, value in pairs if value)) for title, pairs in groups]
    return tuple(FactGroup(title, pairs) for title, pairs in found if pairs)


def _model(evaluation: Evaluation) -> Pairs:
    model = evaluation.model
    return [
        ("Architecture", model.name),
        ("Parameters", None if model.parameters is None else count(model.parameters)),
        ("Checkpoint", model.checkpoint),
        ("SHA-256 of weights", model.weights_sha256),
    ]


def _data(evaluation: Evaluation) -> Pairs:
    data = evaluation.data
    return [
        ("Source", data.source),
        ("Split", data.split),
        ("Examples", count(data.count)),
        ("Classes", count(len(data.classes)) if data.classes else None),
        ("SHA-256 of examples", data.sha256),
    ]


def _test(evaluation: Evaluation) -> Pairs:
    low, high = evaluation.threat.box
    every = evaluation.mode == "every"
    return [
        ("Threat model", evaluation.threat.text),
        ("Pixel range", f"{low:g} to {high:g}"),
        ("Suite", evaluation.suite),
        ("Mode", "every attack on every example" if every else "each attack on what is left"),
        ("Seed", None if evaluation.seed is None else str(evaluation.seed)),
        ("Evaluated", moment(evaluation.created)),
    ]


def _training(training: Training) -> Pairs:
    return [
        ("State", training.state),
        ("Epochs", count(len(training.columns["epoch"]))),
        ("Best epoch", None if training.best_epoch is None else str(training.best_epoch)),
        ("Time", None if training.seconds is None else duration(training.seconds)),
    ]
