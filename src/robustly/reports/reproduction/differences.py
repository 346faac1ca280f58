"""Difference between two methods: over seeds, or over images where there is one seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robustly.evidence import EvidenceError
from robustly.evidence.schema import TABLE
from robustly.evidence.storage import read_table
from robustly.reports.formats import count
from robustly.reports.tables.columns import CLEAN, attack_key
from robustly.reports.tables.evaluations import KeptEvaluation
from robustly.reports.tables.paper_results import RunResult
from robustly.statistics import Z_95, Proportion


@dataclass(frozen=True)
class Difference:
    """First method minus second method in one column.

    Args:
        share: the difference of the shares, in [-1, 1].
        low: over seeds, the difference minus 2 standard errors; else the lower end of the 95 % interval.
        high: the upper end.
        over: "seeds" for means over at least two seeds of both; "paired images" for one seed on the same images,
            which takes the outcomes of each image; else "images".
        counts: number of seeds of the first and the second method, or of their images.
    """

    share: float
    low: float
    high: float
    over: Literal["seeds", "paired images", "images"]
    counts: tuple[int, int]

    @property
    def decides(self) -> bool:
        """True if a rule on standard errors over seeds can be applied."""
        return self.over == "seeds"

    @property
    def within(self) -> bool:
        """True if zero is in the interval."""
        return self.low <= 0 <= self.high

    @property
    def words(self) -> str:
        """Difference and uncertainty in points of a per cent."""
        if self.over == "seeds":
            first, second = self.counts
            seeds = f"{first}" if first == second else f"{first} and {second}"
            half = (self.high - self.low) / 2
            return f"{points(self.share)} points (2 standard errors over {seeds} seeds: {100 * half:.2f})"
        if self.over == "paired images":
            images = f"the same {count(self.counts[0])} images"
        else:
            images = " and ".join(dict.fromkeys(map(count, self.counts))) + " images, not paired"
        return (
            f"{points(self.share)} points (95 % interval {points(self.low)} to {points(self.high)}, over {images})"
        )


def points(share: float) -> str:
    """A difference of shares in points of a per cent, with its sign."""
    text = f"{100 * share:+.2f}"
    return ("+0.00" if float(text) == 0 else text).replace("-", "\u2212")


def difference(first: Sequence[RunResult], second: Sequence[RunResult], key: str) -> Difference | None:
    """Difference between two methods in a column; None if one of them has no number.

    Args:
        first: results of the first method, one for each seed.
        second: results of the second method.
        key: the column.

    """
    ours, theirs = ([result for result in results if key in result.shares] for results in (first, second))
    if not ours or not theirs:
        return None
    if min(len(ours), len(theirs)) < 2:
        return _of_runs(ours[0], theirs[0], key)
    shares = [[result.shares[key].share for result in results] for results in (ours, theirs)]
    mean = fmean(shares[0]) - fmean(shares[1])
    error = math.sqrt(sum(stdev(own) ** 2 / len(own) for own in shares))
    return Difference(mean, mean - 2 * error, mean + 2 * error, "seeds", (len(ours), len(theirs)))


def _of_runs(first: RunResult, second: RunResult, key: str) -> Difference:
    ours, theirs = (outcomes(result, key) for result in (first, second))
    if ours is not None and theirs is not None and ours[0] == theirs[0]:
        return paired(ours[1], theirs[1])
    return unpaired(first.shares[key], second.shares[key])


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
    """Difference of two shares on the same images, with the 95 % interval of Agresti and Min.

    The interval adds half an image to each of the four pairs of outcomes, so that it is not empty if all agree.
    Source: Agresti and Min, Statistics in Medicine 24, 2005, section 2.

    Args:
        first: outcomes of the first model `(N,)`.
        second: outcomes of the second model on the same images `(N,)`.
    """
    only_first, only_second, number = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    share, total = (only_first - only_second) / number, number + 2
    centre = (only_first - only_second) / total
    half = Z_95 * math.sqrt((only_first + only_second + 1) / total - centre**2) / math.sqrt(total)
    return Difference(share, max(-1.0, centre - half), min(1.0, centre + half), "paired images", (number, number))


def unpaired(first: Proportion, second: Proportion) -> Difference:
    """Difference of two independent shares, with Newcombe's 95 % interval from two Wilson intervals.

    Source: Newcombe, Statistics in Medicine 17, 1998, method 10.
    """
    share = first.share - second.share
    low = share - math.hypot(first.share - first.low, second.high - second.share)
    high = share + math.hypot(first.high - first.share, second.share - second.low)
    return Difference(share, low, high, "images", (first.count, second.count))


def outcomes(result: RunResult, key: str) -> tuple[tuple[str, tuple[int, ...]], NDArray[np.bool_]] | None:
    """Outcomes of each image in a column, with the images; None if no table has them or it is damaged.

    Returns:
        The images (hash of the data and ids) and whether each counts for the share `(N,)`; in the order of the ids.
    """
    if result.evaluated is None:
        return None
    wanted = result.shares[key]
    for kept in sorted(result.evaluated.evaluations, key=lambda one: -one.evaluation.data.count):
        try:
            found = _held(kept, key) if (kept.folder / TABLE).is_file() else None
        except EvidenceError:
            continue
        if found is not None and (int(found[1].sum()), len(found[1])) == (wanted.hits, wanted.count):
            order = np.argsort(found[0], kind="stable")
            ids = tuple(found[0][order].tolist())
            return (kept.evaluation.data.sha256 or "", ids), found[1][order]
    return None


def _held(kept: KeptEvaluation, key: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    table, suite = read_table(kept.folder), kept.evaluation.suite
    if key == CLEAN.key:
        return table.examples.id, table.correct
    if suite.mode == "every":
        name = next((one for one in table.attacks if attack_key(one) == key), None)
        return None if name is None else (table.examples.id, table.correct & ~table.broken_by(name))
    if key == "aa" and suite.name == "aa_standard":
        return table.examples.id, table.correct & ~table.worst_case.broken
    return None
