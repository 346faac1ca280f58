"""Costs of confusions under attack: their summary and their files.

`costs.parquet` has one row for each example whose class has costs and each costly class j of it;
`costs.safetensors` has the adversarial images that the targeted attack found; `costs.json` states the matrix and
the numbers. The files lie beside the evidence of the evaluation that they extend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from robustly.array_files import map_arrays, write_arrays
from robustly.cost_matrix import CostError, CostMatrix
from robustly.evidence.cost_pairs import CostNumbers, CostPairs
from robustly.evidence.images import EightBitImages, StoredImages
from robustly.evidence.records import EvidenceError, from_json, read_object, to_json
from robustly.evidence.schema import SUMMARY, Column, Whole, column_fields
from robustly.files import file_sha256, whole_file, write_json
from robustly.memory import SizeError, TableError, read_parquet

SCHEMA, WITHOUT_8_BIT = 2, 1
"""Version of the format, and the earlier one, which has no images of 8 bits."""
COSTS, PAIRS, PAIR_IMAGES = "costs.json", "costs.parquet", "costs.safetensors"


@dataclass(frozen=True)
class CostSummary:
    """The content of `costs.json`.

    Args:
        text: the costs as their user wrote them.
        sha256: digest of the matrix.
        matrix: its rows.
        attack: settings of the targeted attack.
        numbers: the numbers.
        evaluation: SHA-256 of the summary of the evaluation.
        files: SHA-256 of the other two files; filled in on writing.
        schema: version of the format.
    """

    text: str
    sha256: str
    matrix: tuple[tuple[float, ...], ...]
    attack: Mapping[str, object]
    numbers: CostNumbers
    evaluation: str
    files: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def costs(self) -> CostMatrix:
        """The cost matrix.

        Raises:
            EvidenceError: the rows are not a cost matrix, or not the one of the digest.
        """
        try:
            found = CostMatrix(self.matrix, self.text)
        except CostError as error:
            raise EvidenceError(f"{COSTS}: {error}") from None
        if found.digest != self.sha256:
            raise EvidenceError(f"{COSTS}: the matrix hashes to {found.digest}, not to {self.sha256[:64]}")
        return found


@dataclass(frozen=True)
class CostEvidence:
    """The costs of an evaluation: rows, images of the targeted attack, and their summary.

    Args:
        pairs: the rows.
        images: adversarial images; `targets` are their classes.
        targets: predicted class of each image, `(M,)`.
        summary: the summary.
        saved: images of 8 bits that reach costly classes; None in schema 1.
        saved_targets: their classes, `(S,)`; None in schema 1.
    """

    pairs: CostPairs
    images: StoredImages
    targets: Whole
    summary: CostSummary
    saved: EightBitImages | None = None
    saved_targets: Whole | None = None


def write_costs(evidence: CostEvidence, folder: Path) -> None:
    """Write the three files beside the evidence of an evaluation; the summary comes last.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    import pyarrow as pa  # noqa: PLC0415 (slow to import)
    import pyarrow.parquet as pq  # noqa: PLC0415

    (folder / COSTS).unlink(missing_ok=True)  # a crash must not leave an old summary beside new files
    columns = {name: pa.array(getattr(evidence.pairs, name)) for name in column_fields(CostPairs)}
    with whole_file(folder / PAIRS) as temporary:
        pq.write_table(pa.table(columns), temporary)
    tensors: dict[str, NDArray[Any]] = {
        "ids": evidence.images.ids,
        "targets": evidence.targets,
        "images": evidence.images.images,
    }
    tensors |= {} if evidence.images.theta is None else {"theta": evidence.images.theta}
    if evidence.saved is not None and evidence.saved_targets is not None:
        own = evidence.saved
        tensors |= {"8bit.ids": own.ids, "8bit.targets": evidence.saved_targets, "8bit.images": own.levels}
        tensors |= {} if own.theta is None else {"8bit.theta": own.theta}
    write_arrays(folder / PAIR_IMAGES, tensors)
    files = {name: file_sha256(folder / name) for name in (PAIRS, PAIR_IMAGES)}
    write_json(folder / COSTS, to_json(replace(evidence.summary, files=files)))


def read_cost_summary(folder: Path) -> CostSummary | None:
    """The costs of an evaluation; None without them, or if the evaluation was made anew since.

    Raises:
        EvidenceError: the file is damaged or of another schema.
    """
    file = folder / COSTS
    if not file.is_file():
        return None
    values = read_object(file)
    if values.get("schema") not in (WITHOUT_8_BIT, SCHEMA):
        raise EvidenceError(
            f"{file} is written in schema {str(values.get('schema'))[:20]}, but this robustly reads schemas "
            f"{WITHOUT_8_BIT} and {SCHEMA}: evaluate the costs again"
        )
    found = from_json(CostSummary, values, str(file))
    if (found.numbers.eight_bit is None) is (found.schema == SCHEMA):
        raise EvidenceError(f"{file}: numbers of 8-bit files belong to schema {SCHEMA} and to no other")
    return found if found.evaluation == file_sha256(folder / SUMMARY) else None


def digest_of_costs(folder: Path) -> str:
    """SHA-256 of the summary of the costs in a folder of an evaluation; empty without costs."""
    file = folder / COSTS
    return file_sha256(file) if file.is_file() else ""


def read_costs_of(folder: Path, summary: CostSummary) -> CostEvidence:
    """The rows and images of the costs of an evaluation.

    Args:
        folder: folder of the evaluation.
        summary: its summary of the costs.

    Raises:
        EvidenceError: a file is damaged or lacks a part.
    """
    file = folder / PAIRS
    try:
        table = read_parquet(file)
        columns = {name: np.array(table[name].to_numpy()) for name in table.column_names}
    except (SizeError, TableError, OSError) as error:
        raise EvidenceError(f"{file} is damaged: {' '.join(str(error).split())[:160]}") from error
    if summary.schema == WITHOUT_8_BIT:
        columns = {"passes_8bit": np.zeros(table.num_rows, dtype=np.int64), **columns}
    if set(columns) != set(column_fields(CostPairs)):
        raise EvidenceError(f"{file} should have the columns {', '.join(column_fields(CostPairs))}")
    pairs = CostPairs(**{name: _typed(file, name, one, columns[name]) for name, one in _columns()})
    file = folder / PAIR_IMAGES
    try:
        tensors = map_arrays(file).arrays
    except (SafetensorError, OSError) as error:
        raise EvidenceError(f"{file} is damaged: {error}") from error
    saved = {name.removeprefix("8bit."): one for name, one in tensors.items() if name.startswith("8bit.")}
    own = {name: one for name, one in tensors.items() if not name.startswith("8bit.")}
    _check_images(file, own, np.float32)
    images = StoredImages(own["ids"], own["images"], own.get("theta"))
    if summary.schema == WITHOUT_8_BIT and not saved:
        return CostEvidence(pairs, images, own["targets"], summary)
    _check_images(file, saved, np.uint8)
    levels = EightBitImages(saved["ids"], saved["images"], saved.get("theta"))
    return CostEvidence(pairs, images, own["targets"], summary, levels, saved["targets"])


def _check_images(file: Path, tensors: Mapping[str, NDArray[Any]], pixels: type[np.generic]) -> None:
    """Refuse tensors of other names, types or lengths than images with their ids and classes have."""
    kinds = {"ids": np.int64, "targets": np.int64, "images": pixels, "theta": np.float32}
    wrong = set(tensors) - set(kinds) or set(kinds) - set(tensors) - {"theta"}
    if wrong or any(one.dtype != kinds[name] for name, one in tensors.items()):
        raise EvidenceError(f"{file} should have ids, targets, images and perhaps theta, of their types")
    if len({len(one) for one in tensors.values()}) > 1:
        raise EvidenceError(f"{file}: its tensors are not of one length")


def _columns() -> Sequence[tuple[str, Column]]:
    return list(column_fields(CostPairs).items())


def _typed(file: Path, name: str, column: Column, values: NDArray[Any]) -> NDArray[Any]:
    if column.kind == "text":
        return np.array([str(one) for one in values], dtype=np.str_)
    if values.dtype != column.dtype:
        raise EvidenceError(f"{file}: the column {name} should be {column.dtype}, but is {values.dtype}")
    return values
