"""The worst case over several threats."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from robustly.evidence.records import EvidenceError, ShareKeys, ShareObject
from robustly.evidence.schema import EvidenceTable
from robustly.evidence.storage import Evidence, read_summary, read_table
from robustly.evidence.summary import Summary
from robustly.statistics import Proportion


@dataclass(frozen=True)
class Tested:
    """The rows and the summary of an evaluation, without its images."""

    table: EvidenceTable
    summary: Summary


def read_rows(folder: Path) -> Tested:
    """Rows and summary of an evaluation.

    Raises:
        EvidenceError: a file is missing, cut off or of another schema.
    """
    return Tested(read_table(folder), read_summary(folder))


@dataclass(frozen=True)
class ThreatShare:
    """Robust accuracy under one threat.

    Args:
        text: the threat, as users write it.
        words: the threat in one sentence.
        suite: name of the suite.
        masking: sentences on suspected gradient masking.
        robust: share of unbroken examples.
    """

    text: str
    words: str
    suite: str
    masking: tuple[str, ...]
    robust: Annotated[Proportion, ShareKeys("robust")]


@dataclass(frozen=True)
class MeanShare:
    """A mean of shares, with the 95 % interval of a single share, which is at least as wide."""

    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class ThreatUnion:
    """Accuracy without an attack, under each threat, under all of them, and on average over the threats."""

    clean: Annotated[Proportion, ShareObject("robust")]
    threats: tuple[ThreatShare, ...]
    union: Annotated[Proportion, ShareObject("robust")]
    average: MeanShare


def union_of_threats(evidences: Sequence[Evidence | Tested]) -> ThreatUnion:
    """Robust accuracy under each of several threats, under their union, and on average.

    Each threat is evaluated on all examples, so that its number does not depend on the other threats. The union
    counts the examples that are unbroken under all threats (Croce and Hein, "Adversarial robustness against
    multiple and single l_p-threat models via quick fine-tuning of robust classifiers", ICML 2022). The average is
    not a worst case.

    Args:
        evidences: at least two evaluations of one model on one data set, each under another threat.

    Raises:
        EvidenceError: fewer than two; another model, other images or labels; the same threat twice.
    """
    if len(evidences) < 2:
        raise EvidenceError(f"a union needs at least two evaluations, got {len(evidences)}")
    first = evidences[0]
    for other in evidences[1:]:
        _check_same(first, other)
    texts = [one.summary.threat.text for one in evidences]
    if len(set(texts)) < len(texts):
        raise EvidenceError(f"a union takes one evaluation for each threat, got {', '.join(texts)}")
    unbroken = np.stack([~one.table.worst_case.broken for one in evidences])
    counts, total = unbroken.sum(axis=1).tolist(), unbroken.shape[1]
    mean = sum(counts) / len(counts)
    return ThreatUnion(
        clean=Proportion(int(first.table.correct.sum()), total),
        threats=tuple(
            ThreatShare(
                one.summary.threat.text,
                one.summary.threat.words,
                one.summary.suite.name,
                one.summary.masking,
                Proportion(count, total),
            )
            for one, count in zip(evidences, counts, strict=True)
        ),
        union=Proportion(int(unbroken.all(axis=0).sum()), total),
        average=MeanShare(mean / total, Proportion(round(mean), total).interval),
    )


def _check_same(first: Evidence | Tested, other: Evidence | Tested) -> None:
    pair = f"{first.summary.threat.text} and {other.summary.threat.text}"
    for kind, one_value, other_value in (
        ("models", first.summary.model.weights_sha256, other.summary.model.weights_sha256),
        ("images", first.summary.data.sha256, other.summary.data.sha256),
    ):
        if one_value != other_value:
            raise EvidenceError(f"the evaluations under {pair} are of different {kind}: they have no union")
    for kind, values, other_values in (
        ("ids", first.table.examples.id, other.table.examples.id),
        ("labels", first.table.examples.label, other.table.examples.label),
    ):
        if not np.array_equal(values, other_values):
            raise EvidenceError(f"the evaluations under {pair} differ in the examples' {kind}: they have no union")
