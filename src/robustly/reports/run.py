"""The content of a run folder, as reports use it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.storage import Pictures
from robustly.reports.analysis import Analysis


class ReportError(ValueError):
    """A run folder that cannot be reported; the message is one sentence for its owner."""


@dataclass(frozen=True)
class Status:
    """The state that training was left in, from `status.json`."""

    state: str | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Training:
    """`metrics.csv` as columns of equal length (NaN where a cell is empty) and `status.json`."""

    columns: Mapping[str, NDArray[np.float64]]
    status: Status = Status()

    def column(self, name: str) -> NDArray[np.float64] | None:
        """A column that holds at least one number, else None."""
        values = self.columns.get(name)
        return None if values is None or not np.isfinite(values).any() else values


@dataclass(frozen=True)
class RunEvidence:
    """All parts of a run folder; a part without a file is None.

    Args:
        path: the folder.
        name: name of the run.
        config: its settings.
        training: its training metrics.
        evaluation: the summary of its evaluation.
        table: the rows of it.
        pictures: some of its images.
        notes: where the files contradict each other.
        analysis: gradients, loss surfaces, the union of threats.
    """

    path: Path
    name: str
    config: Mapping[str, object] | None
    training: Training | None
    evaluation: Summary | None
    table: EvidenceTable | None
    pictures: Pictures | None
    notes: tuple[str, ...] = ()
    analysis: Analysis | None = None
