"""Outcomes of a protocol per image, and differences between two models on the same images."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly.evidence.corruption_result import MeanAccuracy
from robustly.evidence.protocol_result import ProtocolResult, protocol_result
from robustly.evidence.records import EvidenceError
from robustly.evidence.unions import read_rows
from robustly.statistics import Difference, student_t_95


@dataclass(frozen=True, eq=False)
class ProtocolRows:
    """A protocol of one run, from the rows of its evaluations as they are now.

    Args:
        result: the numbers.
        ids: ids of the images, `(N,)`.
        mean: share of the columns of the mean under which each image is classified correctly, `(N,)`.
        union: whether each image is unbroken under all threats, `(N,)`.
    """

    result: ProtocolResult
    ids: NDArray[np.int64]
    mean: NDArray[np.float64]
    union: NDArray[np.bool_]


def protocol_rows(run: Path, stated: ProtocolResult) -> ProtocolRows:
    """The outcomes of a protocol per image.

    Args:
        run: folder of the run.
        stated: the result in its file, whose numbers are not used.

    Raises:
        EvidenceError: an evaluation is missing, damaged, or of another model or other images.
    """
    found = {one.evaluation: read_rows(run / one.evaluation) for one in stated.columns}
    trained = [one.evaluation for one in stated.columns if one.role == "trained"]
    result = protocol_result(stated.terms, found, trained, stated.created)
    unbroken = {name: ~one.table.worst_case.broken for name, one in found.items()}
    first = next(iter(found.values())).table
    averaged = [rows for name, rows in unbroken.items() if name not in trained]
    averaged += [first.correct] if stated.terms.mean == "with_clean" else []
    return ProtocolRows(
        result, first.examples.id, np.mean(averaged, axis=0), np.logical_and.reduce([*unbroken.values()])
    )


def other_test(first: ProtocolRows, second: ProtocolRows) -> str:
    """The reason why two results cannot be compared image by image; empty if they can."""
    ours, theirs = first.result, second.result
    if ours.data_sha256 != theirs.data_sha256 or not np.array_equal(first.ids, second.ids):
        return "other images"
    if {one.threat for one in ours.tested} != {one.threat for one in theirs.tested}:
        return "other threats"
    return "" if _all(ours) == _all(theirs) else "other threats of the training"


def _all(result: ProtocolResult) -> set[str]:
    return {one.threat for one in result.columns}


def mean_difference(first: ProtocolRows, second: ProtocolRows) -> MeanAccuracy:
    """Mean accuracy of the first less that of the second on the same images, with its 95 % interval.

    The interval is that of Student's t over the differences of the images; where all are equal, that of a paired
    share.

    Raises:
        EvidenceError: the results are of other images or threats.
    """
    _check(first, second)
    differences = first.mean - second.mean
    count, value = len(differences), float(differences.mean())
    deviation = float(differences.std(ddof=1)) if count > 1 else 0.0
    if deviation < 1e-12:
        sure = round(abs(value) * count)
        low, high = Difference(*((sure, 0) if value >= 0 else (0, sure)), count).interval
        return MeanAccuracy(value, (low, high))
    half = student_t_95(count - 1) * deviation / math.sqrt(count)
    return MeanAccuracy(value, (max(-1.0, value - half), min(1.0, value + half)))


def union_difference(first: ProtocolRows, second: ProtocolRows) -> Difference:
    """Accuracy of the first under all threats at once less that of the second, on the same images.

    Raises:
        EvidenceError: the results are of other images or threats.
    """
    _check(first, second)
    only = int((first.union & ~second.union).sum()), int((second.union & ~first.union).sum())
    return Difference(*only, len(first.union))


def _check(first: ProtocolRows, second: ProtocolRows) -> None:
    problem = other_test(first, second)
    if problem:
        raise EvidenceError(f"two results of {first.result.terms.protocol} have no difference: {problem}")
