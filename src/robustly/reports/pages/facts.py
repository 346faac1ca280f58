"""Facts needed to repeat an evaluation: model, data, test, training, software."""

from dataclasses import dataclass

from robustly.evidence import Summary
from robustly.evidence.audit_record import STATED
from robustly.reports.formats import count, duration, moment
from robustly.reports.run import RunEvidence, Training

Pairs = list[tuple[str, str | None]]


@dataclass(frozen=True)
class FactGroup:
    """Facts under one heading, as (name, value)."""

    title: str
    facts: tuple[tuple[str, str], ...]


def facts(run: RunEvidence) -> tuple[FactGroup, ...]:
    """The facts in the run's files; facts without a value are left out."""
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
        groups.append(("Evidence", _evidence(run)))
    found = [(title, tuple((name, value) for name, value in pairs if value)) for title, pairs in groups]
    return tuple(FactGroup(title, pairs) for title, pairs in found if pairs)


def _model(evaluation: Summary) -> Pairs:
    model = evaluation.model
    return [
        ("Architecture", model.name),
        ("Parameters", count(model.parameters)),
        ("Checkpoint", model.checkpoint),
        ("SHA-256 of weights", model.weights_sha256),
    ]


def _data(evaluation: Summary) -> Pairs:
    data = evaluation.data
    return [
        ("Source", data.source),
        ("Split", data.split),
        ("Examples", count(data.count)),
        ("Images seen before", data.seen_words),
        ("Classes", count(len(data.classes)) if data.classes else None),
        ("SHA-256 of examples", data.sha256),
    ]


def _test(evaluation: Summary) -> Pairs:
    low, high = evaluation.threat.box
    suite = evaluation.suite
    return [
        ("Threat model", evaluation.threat.text),
        ("Pixel range", f"{low:g} to {high:g}"),
        ("Suite", suite.name if evaluation.composed is None else f"{suite.name}, composed by its user"),
        ("Attacks seen before", evaluation.seen_words),
        (
            "Mode",
            "every attack on every example" if suite.mode == "every" else "each attack on the unbroken examples",
        ),
        ("Seed", str(suite.seed)),
        ("Evaluated", moment(evaluation.created)),
    ]


def _training(training: Training) -> Pairs:
    status = training.status
    return [
        ("State", status.state),
        ("Epochs", count(len(training.columns["epoch"]))),
        ("Best epoch", None if status.best_epoch is None else str(status.best_epoch)),
        ("Time", None if status.seconds is None else duration(status.seconds)),
    ]


def _evidence(run: RunEvidence) -> Pairs:
    """Status of audit and signature; the last line names the statements that no audit checks."""
    audit, signature = run.audit, run.signature
    found: Pairs = [("Audit", audit_words(run))]
    if audit is not None:
        found += [("Guarantee", audit.guarantee if audit.passed else None), ("Failed", "; ".join(audit.failed))]
        found += [("Note", note) for note in audit.notes]
    if signature is not None:
        found.append(
            ("Signature", f"names the key {signature.fingerprint}...; robustly audit --verify KEY checks it")
        )
    return [*found, ("Stated, not checked", "; ".join(STATED))]


def audit_words(run: RunEvidence) -> str:
    """The status of the audit in a few words."""
    audit = run.audit
    if audit is None:
        return "not audited"
    passed = audit.checks - len(audit.failed)
    return f"{'passed' if audit.passed else 'FAILED'}, {passed} of {audit.checks} checks, {moment(audit.created)}"
