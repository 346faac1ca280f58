"""The evaluations of a protocol for one run: its threats, their folders, and what is left out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robustly.cli.evaluate_plan import PlannedEvaluation
from robustly.cli.protocol_choice import undefined_problem, untrained
from robustly.cli.subject import Subject
from robustly.evaluation import Protocol
from robustly.evaluation.suites.protocol import AS_STRONG, PLANES
from robustly.evidence import EvidenceError, read_summary
from robustly.evidence.protocol_result import ProtocolTerms
from robustly.evidence.schema import SUMMARY
from robustly.evidence.summary import Summary
from robustly.experiments.class_planes import planes_of_run
from robustly.experiments.run_folder import EVALUATION, RunError, evaluation_folder, open_run
from robustly.experiments.trained_on import trained_on
from robustly.models import weights_hash
from robustly.threats import Subspace, Threat, parse_threat, parse_threats, short_names

NOTHING = "none"
"""Word for a training without an attack."""


@dataclass(frozen=True)
class ProtocolPlan:
    """The evaluations of a protocol.

    Args:
        protocol: the protocol.
        terms: its settings for the run.
        trained: evaluations under the threats of the training; none if the protocol compares nothing.
        tested: evaluations under the other threats.
        reused: names of folders of `trained` whose evaluations were made without the protocol.
    """

    protocol: Protocol
    terms: ProtocolTerms
    trained: tuple[PlannedEvaluation, ...]
    tested: tuple[PlannedEvaluation, ...]
    reused: frozenset[str]

    @property
    def evaluations(self) -> tuple[PlannedEvaluation, ...]:
        """All evaluations, in the order of the work."""
        return (*self.trained, *self.tested)

    @property
    def own(self) -> tuple[PlannedEvaluation, ...]:
        """Those that the protocol makes itself."""
        return tuple(one for one in self.evaluations if one.target.name not in self.reused)


def protocol_plan(
    protocol: Protocol,
    subject: Subject,
    label: str,
    chosen: bool,
    stated: Sequence[str] | None,
    planes: Path | None,
    dry_run: bool,
) -> ProtocolPlan:
    """The evaluations of a protocol for a model and its images.

    Args:
        protocol: the protocol.
        subject: model and images.
        label: name of the evaluations.
        chosen: whether the settings name the threats, in place of the protocol.
        stated: threats of the training that the user names; None for none.
        planes: file of principal directions; None for those of the run.
        dry_run: whether nothing may be written.

    Raises:
        RunError: images that a threat is not defined for; a network whose training is not known; no threat is left.
        ValueError: a threat that cannot be parsed, or a file of principal directions that cannot be used.
    """
    if not protocol.compares and stated is not None:
        raise RunError(f"--trained-on is for the suite unforeseen, {protocol.name} compares with no training")
    before = _trained(subject, stated) if protocol.compares else ()
    left_out: tuple[str, ...] = ()
    if chosen:
        tested = tuple(one for one in subject.run.config.threats if one not in before)
    else:
        every = _parsed(protocol, subject, planes, dry_run)
        tested = every
        if protocol.compares:
            tested, left_out = untrained(every, [str(one) for one in before], subject.data.shape)
    if not tested:
        raise RunError(
            f"{protocol.name} has no threat that the network was not trained on: name some with --threats"
        )
    for threat in (*before, *tested):
        _refuse_undefined(protocol, threat, subject)
    names = short_names((*before, *tested))
    targets = [evaluation_folder(subject.run.folder, f"{label}_{name}") for name in names]
    reused: dict[int, Path] = {}
    for number, threat in enumerate(before):
        earlier = None if (targets[number] / SUMMARY).is_file() else _reusable(subject, threat)
        if earlier is not None:
            targets[number] = reused[number] = earlier
    settings = replace(subject.run.config.evaluation, suite=protocol.name, stages=None)
    evaluations = [
        PlannedEvaluation(
            replace(subject.run.config, threats=(threat,), threat_texts=(str(threat),), evaluation=settings), target
        )
        for threat, target in zip((*before, *tested), targets, strict=True)
    ]
    known = _known(subject) or ()
    terms = ProtocolTerms(
        protocol=protocol.name,
        label=label,
        words=protocol.words,
        mean=protocol.mean,
        compares=protocol.compares,
        chosen=chosen,
        stated=tuple(str(one) for one in before if one not in known),
        left_out=left_out,
        notes=protocol.notes,
    )
    folders = frozenset(folder.name for folder in reused.values())
    count = len(before)
    return ProtocolPlan(protocol, terms, tuple(evaluations[:count]), tuple(evaluations[count:]), folders)


def _trained(subject: Subject, stated: Sequence[str] | None) -> tuple[Threat, ...]:
    """The threats of the training: those that the run states, and those that the user names.

    Raises:
        RunError: neither states any.
        ThreatError: a threat that cannot be parsed.
    """
    known = _known(subject)
    if known is None and stated is None:
        raise RunError(
            "the training of this network is not known: name its threats with --trained-on, such as --trained-on "
            f"linf:8/255, or --trained-on {NOTHING} for training without an attack"
        )
    given = () if stated is None or tuple(stated) == (NOTHING,) else parse_threats(stated)
    return tuple(dict.fromkeys((*(known or ()), *given)))


def _known(subject: Subject) -> tuple[Threat, ...] | None:
    """The threats of the training that the run states; the settings of a command may name other threats."""
    run = subject.run
    return trained_on(run.config if run.is_new else open_run(run.folder))


def _parsed(protocol: Protocol, subject: Subject, planes: Path | None, dry_run: bool) -> tuple[Threat, ...]:
    """The threats of a protocol; principal directions are computed if there is no file of them.

    Raises:
        RunError: a file of directions that the protocol does not need; images that a threat is not defined for.
    """
    texts = protocol.threats(subject.data.shape)
    if not any(map(_needs_planes, texts)) and planes is not None:
        raise RunError(f"--planes is for threats along principal directions, which {protocol.name} does not have")
    others = {text: parse_threat(text) for text in texts if not _needs_planes(text)}
    if not protocol.compares:
        for threat in others.values():  # grey images are refused before directions are computed
            _refuse_undefined(protocol, threat, subject)
    found: list[Threat] = []
    for text in texts:
        if _needs_planes(text):
            directions = planes_of_run(subject.run, planes, make=not dry_run)
            found.append(Subspace(text.partition(":")[2].removesuffix(f"@{PLANES}"), directions))
        else:
            found.append(others[text])
    return tuple(found)


def _needs_planes(text: str) -> bool:
    return text.endswith(f"@{PLANES}")


def _refuse_undefined(protocol: Protocol, threat: Threat, subject: Subject) -> None:
    problem = undefined_problem(threat, subject.data.shape)
    if not problem:
        return
    texts = protocol.threats(subject.data.shape)
    others = [
        text
        for text in texts
        if not _needs_planes(text) and not undefined_problem(parse_threat(text), subject.data.shape)
    ]
    advice = f"; --threats {' '.join(others)} evaluates the threats that are defined" if others else ""
    raise RunError(f"{protocol.name} cannot be evaluated on these images: {problem}{advice}")


def _reusable(subject: Subject, threat: Threat) -> Path | None:
    """The evaluation of the run under a threat with the lowest accuracy, if it is of these weights and images."""
    folder, found = subject.run.folder, []
    weights, images = weights_hash(subject.model), subject.data.digest()
    for place in [folder / EVALUATION, *sorted(folder.glob(f"{EVALUATION}_*"))]:
        summary = _summary(place)
        if summary is None or summary.suite.name.partition("+")[0] not in AS_STRONG or summary.composed is not None:
            continue
        same = (summary.threat.text, summary.model.weights_sha256, summary.data.sha256)
        if same == (str(threat), weights, images):
            found.append((summary.metrics.worst_case.robust.hits, place))
    return min(found, key=lambda one: one[0])[1] if found else None


def _summary(folder: Path) -> Summary | None:
    """The summary of an evaluation; None if there is none, or it cannot be read."""
    try:
        return read_summary(folder) if (folder / SUMMARY).is_file() else None
    except EvidenceError:
        return None
