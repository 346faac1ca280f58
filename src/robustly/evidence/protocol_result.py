"""`protocol_NAME.json`: accuracy under each threat of a protocol, their mean, and all of them at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from robustly.evidence.corruption_result import MeanAccuracy, mean_accuracy
from robustly.evidence.provenance import now
from robustly.evidence.records import EvidenceError, ShareKeys, ShareObject, from_json, read_object, to_json
from robustly.evidence.unions import Tested, read_rows, union_of_threats
from robustly.files import write_json
from robustly.statistics import Difference, Proportion

PREFIX, SCHEMA = "protocol_", 1
Role = Literal["trained", "tested"]
"""A threat of the training, or one that the protocol tests."""


@dataclass(frozen=True)
class Gap:
    """Accuracy under the threats of the training less that under another threat, on the same images.

    Args:
        only_trained: number of images that only the threats of the training leave unbroken.
        only_tested: number of images that only the other threat leaves unbroken.
        value: the difference, in [-1, 1].
        interval: its 95 % interval for paired data.
    """

    only_trained: int
    only_tested: int
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class TrainedShare:
    """Share of the images that are unbroken under all threats of the training."""

    robust: Annotated[Proportion, ShareKeys("robust")]


@dataclass(frozen=True)
class ProtocolColumn:
    """Accuracy under one threat.

    Args:
        evaluation: name of the evaluation's folder in the run.
        threat: text of the threat.
        words: the threat in one sentence.
        suite: name of the suite.
        attacks: titles of the attacks.
        role: "trained" for a threat of the training, else "tested".
        masking: sentences on suspected gradient masking.
        failed: titles of attacks that raised an error.
        robust: share of unbroken images.
        gap: difference from the threats of the training; None for these, and where the protocol compares nothing.

    Raises:
        ValueError: a name that is not that of an evaluation.
    """

    evaluation: str
    threat: str
    words: str
    suite: str
    attacks: tuple[str, ...]
    role: Role
    masking: tuple[str, ...]
    failed: tuple[str, ...]
    robust: Annotated[Proportion, ShareKeys("robust")]
    gap: Gap | None = None

    def __post_init__(self) -> None:
        if not self.evaluation.startswith("evaluation") or not self.evaluation.isidentifier():
            raise ValueError(f"evaluation should be the name of an evaluation, but is {self.evaluation[:60]!r}")


@dataclass(frozen=True)
class ProtocolTerms:
    """Settings of a protocol for one run.

    Args:
        protocol: name of the protocol.
        label: name of its evaluations in the run.
        words: description in one sentence.
        mean: the columns of the mean: "with_clean" (clean and all threats) or "of_threats" (the tested threats).
        compares: whether accuracies are compared with those under the threats of the training.
        chosen: whether the user chose the threats in place of those of the protocol.
        stated: threats of the training that the user named and no run states.
        left_out: threats that the protocol leaves out for this run, with the reasons.
        notes: sentences on the limits of the numbers.
    """

    protocol: str
    label: str
    words: str
    mean: Literal["with_clean", "of_threats"]
    compares: bool
    chosen: bool
    stated: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ProtocolResult:
    """The content of `protocol_NAME.json`.

    Args:
        schema: version of the format.
        created: time, in ISO format.
        terms: settings of the protocol.
        weights_sha256: hash of the weights.
        data_sha256: hash of the images.
        clean: accuracy without an attack.
        columns: accuracy under each threat, those of the training first.
        trained: accuracy under all threats of the training at once; None without one, or if nothing is compared.
        mean: mean accuracy over the columns of the terms.
        worst: threat of the lowest accuracy among the tested ones.
        union: share of images that are unbroken under all threats.

    Raises:
        ValueError: no threat is tested, the worst is not one of them, or an evaluation counts twice.
    """

    schema: int
    created: str
    terms: ProtocolTerms
    weights_sha256: str
    data_sha256: str
    clean: Annotated[Proportion, ShareObject("robust")]
    columns: tuple[ProtocolColumn, ...]
    mean: MeanAccuracy
    worst: str
    union: Annotated[Proportion, ShareObject("robust")]
    trained: TrainedShare | None = None

    def __post_init__(self) -> None:
        if self.worst not in [one.threat for one in self.tested]:
            raise ValueError(f"worst should be one of the tested threats, but is {self.worst[:60]!r}")
        if len({one.evaluation for one in self.columns}) < len(self.columns):
            raise ValueError("columns should name each evaluation once")

    @property
    def doubts(self) -> tuple[str, ...]:
        """Sentences on suspected masking and on attacks that failed, with their threats."""
        return tuple(
            f"{one.threat}: {sentence}"
            for one in self.columns
            for sentence in (*one.masking, *(f"the attack {title} failed" for title in one.failed))
        )

    @property
    def tested(self) -> tuple[ProtocolColumn, ...]:
        """The columns that are not of the training."""
        return tuple(one for one in self.columns if one.role == "tested")

    @property
    def left_out(self) -> tuple[str, ...]:
        """Threats that the protocol leaves out, with the reasons.

        Earlier files also name the threats of the training there, which are columns.
        """
        shown = {one.threat for one in self.columns}
        return tuple(line for line in self.terms.left_out if line.partition(": ")[0] not in shown)

    @property
    def mean_words(self) -> str:
        """The columns of the mean."""
        if self.terms.mean == "with_clean":
            return "mean with clean"
        return "mean of those not trained on" if self.trained is not None else "mean of the threats"


def protocol_result(
    terms: ProtocolTerms, found: Mapping[str, Tested], trained: Sequence[str], created: str | None = None
) -> ProtocolResult:
    """The numbers of a protocol from the rows of its evaluations.

    Gaps are differences between the images that are unbroken under all threats of the training (or correct without
    an attack, if there are none) and those that are unbroken under another threat. The interval of the mean is over
    images.

    Args:
        terms: settings of the protocol.
        found: evaluations by the name of their folder, in the order of the columns.
        trained: names of those under threats of the training.
        created: time; None for now.

    Raises:
        EvidenceError: none is tested; other models, images or labels; the same threat twice.
    """
    tested = [name for name in found if name not in trained]
    if not tested:
        raise EvidenceError(f"the protocol {terms.protocol} has no threat that is tested")
    if len(found) > 1:
        union_of_threats([*found.values()])  # raises if they do not fit together
    unbroken = {name: ~one.table.worst_case.broken for name, one in found.items()}
    first = next(iter(found.values()))
    correct, count = first.table.correct, len(first.table)
    reference = np.logical_and.reduce([correct, *(unbroken[name] for name in trained)])
    shares = {name: Proportion(int(rows.sum()), count) for name, rows in unbroken.items()}
    columns = tuple(
        ProtocolColumn(
            evaluation=name,
            threat=one.summary.threat.text,
            words=one.summary.threat.words,
            suite=one.summary.suite.name,
            attacks=tuple(attack.title for attack in one.summary.suite.attacks),
            role="trained" if name in trained else "tested",
            masking=one.summary.masking,
            failed=tuple(one.summary.suite.title(attack) for attack in one.summary.failures),
            robust=shares[name],
            gap=_gap(reference, unbroken[name]) if terms.compares and name in tested else None,
        )
        for name, one in found.items()
    )
    averaged = [unbroken[name] for name in tested]
    if terms.mean == "with_clean":
        averaged = [correct, *averaged]
    worst = min(tested, key=lambda name: shares[name].hits)
    return ProtocolResult(
        schema=SCHEMA,
        created=created or now(),
        terms=terms,
        weights_sha256=first.summary.model.weights_sha256,
        data_sha256=first.summary.data.sha256,
        clean=Proportion(int(correct.sum()), count),
        columns=columns,
        trained=TrainedShare(Proportion(int(reference.sum()), count)) if terms.compares and trained else None,
        mean=mean_accuracy(np.mean(averaged, axis=0).tolist()),
        worst=found[worst].summary.threat.text,
        union=Proportion(int(np.logical_and.reduce([*unbroken.values()]).sum()), count),
    )


def _gap(reference: NDArray[np.bool_], unbroken: NDArray[np.bool_]) -> Gap:
    only = int((reference & ~unbroken).sum()), int((unbroken & ~reference).sum())
    found = Difference(*only, len(unbroken))
    return Gap(*only, found.value, found.interval)


def recomputed(run: Path, stated: ProtocolResult) -> ProtocolResult:
    """The result of a protocol from the rows of its evaluations as they are now.

    Args:
        run: folder of the run.
        stated: the result in its file.

    Raises:
        EvidenceError: an evaluation is missing, damaged, or of another model or other images.
    """
    found = {one.evaluation: read_rows(run / one.evaluation) for one in stated.columns}
    trained = [one.evaluation for one in stated.columns if one.role == "trained"]
    return protocol_result(stated.terms, found, trained, stated.created)


def contradiction(run: Path, stated: ProtocolResult) -> str:
    """The difference between the file of a protocol and its evaluations, in one sentence; empty without one."""
    file = protocol_file(run, stated.terms.label)
    try:
        derived = recomputed(run, stated)
    except EvidenceError as error:
        return f"{file.name} cannot be checked: {error}"
    wrong = [key for key, value in to_json(derived).items() if value != to_json(stated)[key]]
    return f"{file.name} and its evaluations disagree on {', '.join(wrong)}" if wrong else ""


def protocol_file(run: Path, label: str) -> Path:
    """The file of a protocol's result in a run."""
    return run / f"{PREFIX}{label}.json"


def protocol_files(run: Path) -> list[Path]:
    """The files of all results in a run, sorted by name."""
    return sorted(run.glob(f"{PREFIX}*.json"))


def own_evaluations(results: Iterable[ProtocolResult]) -> frozenset[str]:
    """Names of the evaluations that protocols made for themselves, not those that they used again."""
    return frozenset(
        one.evaluation for result in results for one in result.columns if one.suite == result.terms.protocol
    )


def write_protocol(run: Path, result: ProtocolResult) -> Path:
    """Write a result into a run folder; returns the file."""
    file = protocol_file(run, result.terms.label)
    write_json(file, to_json(result))
    return file


def read_protocol(file: Path) -> ProtocolResult:
    """Read a result.

    Raises:
        EvidenceError: the file is cut off, has another schema, or a field is missing or of the wrong kind.
    """
    values = read_object(file)
    if values.get("schema") != SCHEMA:
        raise EvidenceError(
            f"{file} is written in schema {str(values.get('schema'))[:20]}, but this robustly reads schema "
            f"{SCHEMA}: evaluate again."
        )
    found = from_json(ProtocolResult, values, str(file))
    if file != protocol_file(file.parent, found.terms.label):
        raise EvidenceError(f"{file} states the name {found.terms.label[:60]!r}, which is not that of the file.")
    return found
