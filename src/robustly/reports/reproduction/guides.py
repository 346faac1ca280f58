"""Accuracy of guides on the training labels, at the begin and the end of training."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from robustly.reports.run import Training
from robustly.reports.tables.paper_tables import PaperRow

COLUMN = "guide_accuracy"
ENOUGH = 0.6
"""Below this share of right labels, most of the effect of a guide is that of wrong labels."""


@dataclass(frozen=True)
class GuideRow:
    """Accuracy of the guides of a method, each a mean over its seeds.

    Args:
        name: the method.
        seeds: number of runs with this number.
        first: in the first epoch.
        last: in the last epoch.
        lowest: the lowest share of all epochs and seeds.
        below: number of epochs below 60 % of the seed with most of them.
        epochs: number of epochs of that run.
    """

    name: str
    seeds: int
    first: float
    last: float
    lowest: float
    below: int
    epochs: int

    @property
    def warning(self) -> str:
        """A warning if the guide had many wrong labels; else empty."""
        if self.last < ENOUGH:
            return "below 60 % to the end: many labels are wrong"
        if self.below:
            return f"below 60 % in {self.below} of {self.epochs} epochs"
        return ""


def guide_rows(rows: Iterable[PaperRow], trainings: Mapping[Path, Training]) -> tuple[GuideRow, ...]:
    """The methods with a guide; rows of the same runs come once.

    Args:
        rows: the methods.
        trainings: metrics by folder.
    """
    distinct: dict[tuple[Path, ...], PaperRow] = {}
    for row in rows:
        distinct.setdefault(row.runs, row)
    names = [row.name for row in distinct.values()]
    found = []
    for row in distinct.values():
        name = row.name if names.count(row.name) == 1 or not row.group else f"{row.name} ({row.group})"
        columns = [
            values[np.isfinite(values)]
            for run in row.runs
            if run in trainings and (values := trainings[run].column(COLUMN)) is not None
        ]
        if columns:
            below, epochs = max((int((one < ENOUGH).sum()), len(one)) for one in columns)
            found.append(
                GuideRow(
                    name,
                    len(columns),
                    fmean(float(one[0]) for one in columns),
                    fmean(float(one[-1]) for one in columns),
                    min(float(one.min()) for one in columns),
                    below,
                    epochs,
                )
            )
    return tuple(found)
