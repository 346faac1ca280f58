"""`corruptions.safetensors`: predicted classes of every image, from which the numbers can be checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from robustly.array_files import read_arrays, write_arrays
from robustly.documents import parse_json
from robustly.evidence.corruption_result import (
    STANDARD_COUNT,
    CorruptionCell,
    CorruptionRow,
    MeanAccuracy,
    counted_rows,
    mean_accuracy,
)
from robustly.evidence.records import EvidenceError
from robustly.statistics import Proportion

PREDICTIONS = "corruptions.safetensors"
Cell = tuple[str, int]
"""A corruption and a severity."""
Classes = NDArray[np.int32]


@dataclass(frozen=True)
class CorruptionKind:
    """Properties of a corruption that tables show; see `CorruptionRow`."""

    name: str
    family: str
    procedural: bool
    extra: bool


@dataclass(frozen=True, eq=False)
class CorruptionPredictions:
    """Predicted classes; -1 where the logits are not finite.

    Args:
        identity: everything that they depend on, as JSON text.
        clean_labels: classes of the clean images, `(M,)`.
        clean: predictions on these, `(M,)`.
        ids: ids of the corrupted images, `(N,)`.
        labels: their classes, `(N,)`.
        cells: predictions `(N,)` by corruption and severity.
        hashes: hash of the corrupted images by corruption and severity.
    """

    identity: str
    clean_labels: Classes
    clean: Classes
    ids: NDArray[np.int64]
    labels: Classes
    cells: Mapping[Cell, Classes] = field(default_factory=dict)
    hashes: Mapping[Cell, str] = field(default_factory=dict)

    def with_cell(self, cell: Cell, predicted: Classes, digest: str) -> "CorruptionPredictions":
        """The same predictions and those of one more cell."""
        return replace(self, cells={**self.cells, cell: predicted}, hashes={**self.hashes, cell: digest})

    @property
    def clean_accuracy(self) -> Proportion:
        """Accuracy on the clean images."""
        return Proportion(int((self.clean == self.clean_labels).sum()), len(self.clean))


def rows_of(found: CorruptionPredictions, kinds: Sequence[CorruptionKind]) -> tuple[CorruptionRow, ...]:
    """One row for each corruption with predictions, in the order of `kinds`.

    The mean of a single severity is its accuracy, with Wilson's interval.
    """
    rows = []
    for kind in kinds:
        severities = sorted(severity for name, severity in found.cells if name == kind.name)
        if not severities:
            continue
        right = [found.cells[kind.name, severity] == found.labels for severity in severities]
        cells = tuple(
            CorruptionCell(severity, Proportion(int(one.sum()), len(one)), found.hashes[kind.name, severity])
            for severity, one in zip(severities, right, strict=True)
        )
        only = cells[0].accuracy
        mean = (
            MeanAccuracy(only.share, (only.low, only.high))
            if len(cells) == 1
            else mean_accuracy(np.mean(right, axis=0).tolist())
        )
        rows.append(CorruptionRow(kind.name, kind.family, kind.procedural, kind.extra, cells, mean))
    return tuple(rows)


def mean_of(
    found: CorruptionPredictions, rows: Sequence[CorruptionRow], severities: Sequence[int]
) -> MeanAccuracy | None:
    """Mean corruption accuracy over the 15 corruptions and their severities; None if some are missing.

    Args:
        found: the predictions.
        rows: their rows.
        severities: those of each corruption of the set.
    """
    counted = counted_rows(rows, severities)
    if len(counted) != STANDARD_COUNT:
        return None
    right = [found.cells[row.name, cell.severity] == found.labels for row in counted for cell in row.cells]
    return mean_accuracy(np.mean(right, axis=0).tolist())


def write_predictions(folder: Path, found: CorruptionPredictions) -> None:
    """Write the predictions into a run folder, atomically."""
    arrays = {name: getattr(found, name) for name in ("clean_labels", "clean", "ids", "labels")}
    arrays |= {f"{name}/{severity}": array for (name, severity), array in found.cells.items()}
    hashes = {f"hash {name}/{severity}": digest for (name, severity), digest in found.hashes.items()}
    write_arrays(folder / PREDICTIONS, arrays, {"identity": found.identity, **hashes})


def read_predictions(folder: Path) -> CorruptionPredictions | None:
    """Read the predictions of a run folder; None without a file.

    Raises:
        EvidenceError: the file is damaged, or arrays have other lengths than they should.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    try:
        stored = read_arrays(path)
        about, arrays = stored.about, stored.arrays
        fixed = {name: arrays.pop(name) for name in ("clean_labels", "clean", "ids", "labels")}
        cells = {_cell(key): array for key, array in arrays.items()}
        hashes = {cell: about[f"hash {cell[0]}/{cell[1]}"] for cell in cells}
        parse_json(about["identity"], "identity")
        found = CorruptionPredictions(about["identity"], **fixed, cells=cells, hashes=hashes)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EvidenceError(
            f"{path} is damaged ({error}): remove it and run robustly corruptions again."
        ) from error
    one_length = all(array.shape == found.labels.shape for array in (found.ids, *cells.values()))
    if not one_length or found.clean.shape != found.clean_labels.shape or found.labels.ndim != 1:
        raise EvidenceError(
            f"{path} has arrays of different lengths: remove it and run robustly corruptions again."
        )
    return found


def _cell(key: str) -> Cell:
    name, _, severity = key.partition("/")
    return name, int(severity)
