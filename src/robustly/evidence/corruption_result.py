"""`corruptions.json`: accuracy under common corruptions, by corruption and severity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from robustly.evidence.records import EvidenceError, ShareKeys, ShareObject, from_json, read_object, to_json
from robustly.files import write_json
from robustly.statistics import Proportion, student_t_95, wilson_interval

CORRUPTIONS, SCHEMA = "corruptions.json", 1
STANDARD_COUNT = 15
SetName = Literal["C-proc", "files", "MNIST-C"]
"""The corrupted images: computed as in CIFAR-10-C and ImageNet-C, files of the user, or computed as in MNIST-C."""
SEVERITIES: dict[SetName, tuple[int, ...]] = {"C-proc": (1, 2, 3, 4, 5), "files": (1, 2, 3, 4, 5), "MNIST-C": (1,)}
"""Severities of each corruption of a set. MNIST-C fixes one for each of its corruptions."""


@dataclass(frozen=True)
class MeanAccuracy:
    """A mean of accuracies over corruptions or severities, on the same images.

    Args:
        accuracy: the mean, in [0, 1].
        interval: 95 % interval over the images, in [0, 1].
    """

    accuracy: float
    interval: tuple[float, float]

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.interval[1]


@dataclass(frozen=True)
class CorruptionCell:
    """Accuracy under one corruption at one severity, with the hash of the corrupted images."""

    severity: int
    accuracy: Annotated[Proportion, ShareKeys("correct")]
    images_sha256: str


@dataclass(frozen=True)
class CorruptionRow:
    """Accuracies under one corruption.

    Args:
        name: the corruption.
        family: noise, blur, weather or digital; for MNIST-C also geometry and strokes.
        procedural: whether its images differ from those of the released generator.
        extra: whether it is one of the four further corruptions, which do not count in means.
        cells: the severities that were evaluated, ascending.
        mean: mean over these severities.
    """

    name: str
    family: str
    procedural: bool
    extra: bool
    cells: tuple[CorruptionCell, ...]
    mean: MeanAccuracy

    @property
    def title(self) -> str:
        """Name in tables."""
        return self.name.replace("_", " ") + (" (procedural)" if self.procedural else "")

    @property
    def errors(self) -> tuple[float, ...]:
        """Error rates by severity, in [0, 1]."""
        return tuple(1 - cell.accuracy.share for cell in self.cells)


@dataclass(frozen=True)
class CorruptedModel:
    """The network that was evaluated."""

    name: str
    weights_sha256: str


@dataclass(frozen=True)
class CorruptedData:
    """The clean test images.

    Args:
        source: source of the data.
        count: number of images.
        sha256: hash of images, labels and ids.
    """

    source: str
    count: int
    sha256: str


@dataclass(frozen=True)
class CorruptedImages:
    """The corrupted images.

    Args:
        set: "C-proc" or "MNIST-C" for those that robustly computes, "files" for those of a folder.
        source: the folder; None for computed images.
        sha256: hash of the names and sizes of its files, or of the clean images.
        constants: table of constants, "cifar", "imagenet" or "mnist"; None for files.
        seed: seed of their random numbers; None for files.
    """

    set: SetName
    source: str | None
    sha256: str
    constants: str | None
    seed: int | None

    @property
    def severities(self) -> tuple[int, ...]:
        """Severities of each corruption."""
        return SEVERITIES[self.set]

    @property
    def words(self) -> str:
        """The set in a sentence."""
        if self.set == "files":
            return f"The images are the files of {self.source}."
        if self.set == "MNIST-C":
            return (
                f"The images are computed (set MNIST-C, one severity for each corruption, seed {self.seed}). "
                "Procedural corruptions differ from the released files: do not compare them."
            )
        sizes = {"cifar": "CIFAR-C (32 x 32)", "imagenet": "ImageNet-C (224 x 224)"}
        return (
            f"The images are computed (set C-proc, constants of {sizes.get(str(self.constants), self.constants)}, "
            f"seed {self.seed}). Procedural corruptions differ from the released files: do not compare them."
        )


@dataclass(frozen=True)
class CorruptionReference:
    """Corruption errors relative to another model.

    Args:
        name: name of the reference's run.
        weights_sha256: hash of its weights.
        mce: mean over the corruptions of the ratio of summed errors (Hendrycks and Dietterich, ICLR 2019); None
            where the reference makes no error under a corruption.
        relative_mce: the same with the clean error subtracted in both; None where that of the reference is not
            positive under a corruption.
    """

    name: str
    weights_sha256: str
    mce: float | None
    relative_mce: float | None


@dataclass(frozen=True)
class CorruptionResult:
    """The content of `corruptions.json`.

    Args:
        schema: version of the format.
        created: time of the evaluation, in ISO format.
        model: the network.
        data: the clean images.
        images: the corrupted images.
        clean: accuracy on the clean images.
        rows: one entry for each corruption, in the order of the paper.
        mean: mean corruption accuracy over 15 corruptions and their severities; None if some are missing.
        reference: errors relative to another model; None without one.
    """

    schema: int
    created: str
    model: CorruptedModel
    data: CorruptedData
    images: CorruptedImages
    clean: Annotated[Proportion, ShareObject("correct")]
    rows: tuple[CorruptionRow, ...]
    mean: MeanAccuracy | None = None
    reference: CorruptionReference | None = None

    @property
    def worst(self) -> CorruptionRow | None:
        """The corruption with the lowest mean accuracy; None without one."""
        return min(self.rows, key=lambda row: row.mean.accuracy, default=None)

    @property
    def counted(self) -> tuple[CorruptionRow, ...]:
        """The rows of the 15 corruptions, those with all severities."""
        return counted_rows(self.rows, self.images.severities)

    @property
    def mean_words(self) -> str:
        """The cells of the mean: "15 x 5", or "15" where each corruption has one severity."""
        count = len(self.images.severities)
        return f"{STANDARD_COUNT} x {count}" if count > 1 else str(STANDARD_COUNT)


def counted_rows(rows: Sequence[CorruptionRow], severities: Sequence[int]) -> tuple[CorruptionRow, ...]:
    """The rows that count in means: those of the 15 corruptions that have all severities of their set."""
    wanted = list(severities)
    return tuple(row for row in rows if not row.extra and [cell.severity for cell in row.cells] == wanted)


def mean_accuracy(shares: Sequence[float]) -> MeanAccuracy:
    """Mean of per-image accuracies with its 95 % interval over images.

    The corruptions of one image are not independent, so that their number does not narrow the interval. It is that
    of Student's t, or Wilson's where all images have the same accuracy.

    Args:
        shares: for each image the share of corruptions under which it is classified correctly; at least one image.
    """
    count = len(shares)
    mean = math.fsum(shares) / count
    deviation = math.sqrt(math.fsum((share - mean) ** 2 for share in shares) / max(count - 1, 1))
    if count < 2 or deviation < 1e-12:
        return MeanAccuracy(mean, wilson_interval(round(mean * count), count))
    half = student_t_95(count - 1) * deviation / math.sqrt(count)
    return MeanAccuracy(mean, (max(0.0, mean - half), min(1.0, mean + half)))


def compared(result: CorruptionResult, reference: CorruptionResult, name: str) -> CorruptionReference:
    """Mean corruption error and relative mean corruption error against a reference model.

    Args:
        result: the result of a model.
        reference: the result of the reference on the same images.
        name: name of the reference.

    Raises:
        EvidenceError: the reference was evaluated on other images, or lacks a corruption, or there is none.
    """
    ours, theirs = result.images, reference.images
    if (ours, result.data) != (theirs, reference.data):
        raise EvidenceError(
            f"the reference {name} was evaluated on other images ({reference.data.count} of "
            f"{reference.data.source}, set {theirs.set}) than this run ({result.data.count} of "
            f"{result.data.source}, set {ours.set}): evaluate it again with the same settings"
        )
    rows = {row.name: row for row in reference.counted}
    lacking = [row.name for row in result.counted if row.name not in rows]
    if lacking or not result.counted:
        missing = ", ".join(lacking) or "every corruption at all severities"
        raise EvidenceError(f"there is no mean corruption error against {name}: {missing} is missing")
    pairs = [(row, rows[row.name]) for row in result.counted]
    clean, clean_reference = 1 - result.clean.share, 1 - reference.clean.share
    return CorruptionReference(
        name,
        reference.model.weights_sha256,
        _mean_ratio([(math.fsum(one.errors), math.fsum(other.errors)) for one, other in pairs]),
        _mean_ratio(
            [
                (math.fsum(e - clean for e in one.errors), math.fsum(e - clean_reference for e in other.errors))
                for one, other in pairs
            ]
        ),
    )


def _mean_ratio(pairs: Sequence[tuple[float, float]]) -> float | None:
    if any(below <= 1e-12 for _, below in pairs):
        return None
    return math.fsum(above / below for above, below in pairs) / len(pairs)


def write_corruptions(folder: Path, result: CorruptionResult) -> None:
    """Write the result into a run folder."""
    write_json(folder / CORRUPTIONS, to_json(result))


def read_corruptions(file: Path) -> CorruptionResult:
    """Read a result.

    Raises:
        EvidenceError: the file has another schema, or a field is missing or of the wrong kind.
    """
    values = read_object(file)
    if values.get("schema") != SCHEMA:
        raise EvidenceError(
            f"{file} is written in schema {str(values.get('schema'))[:20]}, but this robustly reads schema "
            f"{SCHEMA}: run robustly corruptions again."
        )
    return from_json(CorruptionResult, values, str(file))
