"""Rows of the costs of confusions under attack, and the numbers that follow from them."""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from robustly.cost_matrix import CostMatrix
from robustly.evidence.records import EvidenceError, ShareKeys
from robustly.evidence.schema import Column, Flags, Texts, Whole
from robustly.statistics import Proportion, wilson_interval

CLEAN, TARGETED, OF_EVALUATION = "clean", "targeted", "evaluation:"
"""Origins of a reached class: the clean image, the targeted attack, or an attack of the evaluation, by its name."""
_LISTED = 20


@dataclass(frozen=True)
class CostPairs:
    """One row for each example with costs and each class j with C_yj > 0, in ascending (row, j) order, `(P,)`."""

    id: Annotated[Whole, Column("int64", "number that names the example in its data set")]
    target: Annotated[Whole, Column("int64", "the class j")]
    tried: Annotated[Flags, Column("bool", "whether the targeted attack was run at the class")]
    reached: Annotated[Flags, Column("bool", "whether j is predicted for the clean image or inside the threat set")]
    origin: Annotated[
        Texts,
        Column("text", "'clean', 'targeted' or 'evaluation:NAME': where j is predicted; empty if nowhere"),
    ]
    invalid: Annotated[Flags, Column("bool", "whether the output was NaN or infinite; counts as reached")]
    forwards: Annotated[Whole, Column("int64", "forward passes of the targeted attack")]
    backwards: Annotated[Whole, Column("int64", "passes of the gradient to the input of the targeted attack")]
    passes_8bit: Annotated[Whole, Column("int64", "passes of the search for an 8-bit image; 0 before schema 2")]

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True)
class Confusion:
    """A confusion under attack.

    Args:
        label: true class.
        predicted: costliest class that was reached.
        cost: its cost.
        count: number of examples whose costliest reached class it is.
    """

    label: int
    predicted: int
    cost: float
    count: int


@dataclass(frozen=True)
class MeanCost:
    """A mean over all examples of the cost of each, with a 95 % interval.

    The interval is Wilson's for the mean of values between 0 and the largest cost: exact for a single cost, wider
    than needed for several.
    """

    mean: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, costs: NDArray[np.float64], largest: float) -> "MeanCost":
        """Mean of costs in [0, `largest`], `(N,)`, N >= 1."""
        total = math.fsum(costs.tolist())  # the same on every machine
        low, high = wilson_interval(min(total / largest, len(costs)), len(costs))
        return cls(total / len(costs), (low * largest, high * largest))


@dataclass(frozen=True)
class EightBitCosts:
    """Numbers against an attacker who saves 8-bit files.

    Args:
        robust: share of the applicable examples of which no costly class is reached by an 8-bit image.
        worst: mean over all examples of the largest cost that such an image reaches; clean errors count.
        passes: passes of the search for the images.
    """

    robust: Annotated[Proportion, ShareKeys("robust")]
    worst: MeanCost
    passes: int


@dataclass(frozen=True)
class CostNumbers:
    """Numbers that follow from the pairs and the rows of the evaluation.

    Args:
        robust: share of the applicable examples (those whose class has costs) of which no costly class was reached.
        clean: the same without an attack.
        worst: mean over all examples of the largest cost reached; 0 for the others. Clean errors count.
        clean_cost: mean cost of the clean predictions.
        not_applicable: number of examples whose class has no costs.
        confusions: the confusions with the largest total cost, at most 20.
        passes: forward and backward passes of the targeted attack.
        eight_bit: the numbers of 8-bit files; None in schema 1.
    """

    robust: Annotated[Proportion, ShareKeys("robust")]
    clean: Annotated[Proportion, ShareKeys("clean", "clean_accuracy", "clean_interval")]
    worst: MeanCost
    clean_cost: MeanCost
    not_applicable: int
    confusions: tuple[Confusion, ...]
    passes: int
    eight_bit: EightBitCosts | None = None


def cost_numbers(
    costs: CostMatrix,
    ids: Whole,
    labels: Whole,
    clean_prediction: Whole,
    pairs: CostPairs,
    saved: Flags | None,
) -> CostNumbers:
    """The numbers of the pairs.

    Args:
        costs: the matrix.
        ids: ids of all examples, `(N,)`.
        labels: their true classes, `(N,)`.
        clean_prediction: predicted class of their clean images, `(N,)`.
        pairs: the rows.
        saved: mask of the pairs of which there is an 8-bit image, `(P,)`; None without such images.

    Raises:
        EvidenceError: no example is of a class with costs.
    """
    matrix, applicable = costs.array, check_applicable(costs, labels)
    row = rows_of(ids, pairs.id)

    def largest(reached: Flags) -> NDArray[np.float64]:
        worst = np.zeros(len(labels))
        np.maximum.at(worst, row[reached], matrix[labels[row[reached]], pairs.target[reached]])
        return worst

    worst = largest(pairs.reached)
    without = matrix[labels, clean_prediction]
    count = int(applicable.sum())
    return CostNumbers(
        robust=Proportion(int((applicable & (worst == 0)).sum()), count),
        clean=Proportion(int((applicable & (without == 0)).sum()), count),
        worst=MeanCost.of(worst, costs.largest),
        clean_cost=MeanCost.of(without, costs.largest),
        not_applicable=len(labels) - count,
        confusions=_confusions(matrix, labels[row], pairs, worst[row]),
        passes=int(pairs.forwards.sum() + pairs.backwards.sum()),
        eight_bit=None if saved is None else _eight_bit(costs, applicable, largest(in_files(pairs, saved)), pairs),
    )


def _eight_bit(costs: CostMatrix, applicable: Flags, worst: NDArray[np.float64], pairs: CostPairs) -> EightBitCosts:
    return EightBitCosts(
        Proportion(int((applicable & (worst == 0)).sum()), int(applicable.sum())),
        MeanCost.of(worst, costs.largest),
        int(pairs.passes_8bit.sum()),
    )


def in_files(pairs: CostPairs, saved: Flags) -> Flags:
    """Mask of the pairs that 8-bit files reach: by the clean image, without an output, or by a stored image."""
    found: Flags = pairs.reached & (saved | pairs.invalid | (pairs.origin == CLEAN))
    return found


def pair_rows(pairs: CostPairs, ids: Whole, targets: Whole) -> Whole:
    """Rows of the pairs of some examples and classes, `(M,)`; -1 where there is no such pair."""
    place = {pair: row for row, pair in enumerate(zip(pairs.id.tolist(), pairs.target.tolist(), strict=True))}
    keys = zip(ids.tolist(), targets.tolist(), strict=True)
    return np.array([place.get(key, -1) for key in keys], dtype=np.int64)


def pair_mask(pairs: CostPairs, ids: Whole, targets: Whole) -> Flags:
    """Mask of the pairs that are among those of some examples and classes, `(P,)`."""
    found: Flags = np.isin(np.arange(len(pairs)), pair_rows(pairs, ids, targets))
    return found


def check_applicable(costs: CostMatrix, labels: Whole) -> Flags:
    """Mask of the examples whose class has costs, `(N,)`.

    Raises:
        EvidenceError: there is none.
    """
    applicable: Flags = np.asarray((costs.array[labels] > 0).any(axis=1), dtype=np.bool_)
    if not applicable.any():
        raise EvidenceError(
            f"costs {costs.text!r}: none of the {len(labels)} examples is of a class whose confusions cost anything"
        )
    return applicable


def rows_of(ids: Whole, wanted: Whole) -> Whole:
    """Positions of some ids among all.

    Raises:
        EvidenceError: an id is missing.
    """
    position = {int(one): row for row, one in enumerate(ids.tolist())}
    try:
        return np.array([position[int(one)] for one in wanted.tolist()], dtype=np.int64)
    except KeyError as error:
        raise EvidenceError(f"costs: there is no example {error}") from None


def _confusions(
    matrix: NDArray[np.float64], labels: Whole, pairs: CostPairs, worst: NDArray[np.float64]
) -> tuple[Confusion, ...]:
    """Costliest reached class of each example, counted; equal costs go to the lowest class."""
    cost = matrix[labels, pairs.target]
    chosen: dict[int, int] = {}
    for place in np.flatnonzero(pairs.reached & (cost == worst)).tolist():
        chosen.setdefault(int(pairs.id[place]), place)
    counts: dict[tuple[int, int], int] = {}
    for place in chosen.values():
        key = int(labels[place]), int(pairs.target[place])
        counts[key] = counts.get(key, 0) + 1
    found = [Confusion(y, j, float(matrix[y, j]), count) for (y, j), count in counts.items()]
    return tuple(sorted(found, key=lambda one: (-one.cost * one.count, one.label, one.predicted))[:_LISTED])
