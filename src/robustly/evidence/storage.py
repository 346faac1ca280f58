"""Evidence on disk: three files in a folder, read as numpy arrays. Nothing is unpickled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from robustly.array_files import map_arrays, write_arrays
from robustly.evidence.display import evidence_html, evidence_text
from robustly.evidence.frames import frame, is_verdict, verdict_words
from robustly.evidence.images import EvidenceImages, StoredImages, attack_names, threat_arrays
from robustly.evidence.records import EvidenceError, from_json, read_object, to_json
from robustly.evidence.schema import (
    GALLERY,
    IMAGES,
    SCHEMA,
    SUMMARY,
    TABLE,
    EvidenceTable,
    Verdict,
)
from robustly.evidence.schema_2 import columns_of_schema_2, summary_of_schema_2
from robustly.evidence.schema_3 import columns_of_schema_3, summary_of_schema_3
from robustly.evidence.schema_4 import columns_of_schema_4, summary_of_schema_4
from robustly.evidence.summary import Summary
from robustly.files import file_sha256, whole_file, write_json
from robustly.memory import SizeError, TableError, read_parquet

if TYPE_CHECKING:
    import pandas
    import pyarrow as pa

Found = TypeVar("Found")


@dataclass(frozen=True, repr=False)
class Evidence:
    """The result of an evaluation: the rows, the stored images, and the summary of both.

    Notebooks show it as a table, terminals as a few lines.
    """

    table: EvidenceTable
    images: EvidenceImages
    summary: Summary

    def __repr__(self) -> str:
        return evidence_text(type(self).__name__, self.summary)

    def _repr_html_(self) -> str:
        return evidence_html(self.summary)

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per example, with the columns of all attacks and certificates.

        Columns are named as in `evidence.parquet` ("label", "apgd_ce.broken"); verdicts of certificates are words.

        Raises:
            ImportError: pandas is not installed.
        """
        return frame(self.table)

    def save(self, path: str | Path) -> Path:
        """Write the three files of the evidence into a folder, and return the folder.

        Raises:
            EvidenceError: the path is that of a file.
            OSError: the folder is read-only or the disk is full.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise EvidenceError(f"{folder} is a file: evidence is saved to a folder")
        write_evidence(self, folder)
        return folder


@dataclass(frozen=True)
class Pictures:
    """Originals for a report and, by attack, the adversarial images of the same examples.

    Args:
        ids: ids of the examples, `(G,)`.
        originals: clean images `(G, C, H, W)`.
        adversarial: images `(C, H, W)` by attack and id.
    """

    ids: NDArray[np.int64]
    originals: NDArray[np.float32]
    adversarial: Mapping[str, Mapping[int, NDArray[np.float32]]]


def pictures_of(images: EvidenceImages) -> Pictures:
    """The originals of the gallery and their adversarial images, from evidence in memory."""
    shown, wanted = images.gallery, set(images.gallery.ids.tolist())
    adversarial = {
        name: {one: kept.images[i] for i, one in enumerate(kept.ids.tolist()) if one in wanted}
        for name, kept in images.attacks.items()
    }
    return Pictures(shown.ids, shown.images, adversarial)


def write_evidence(evidence: Evidence, folder: Path) -> None:
    """Write the three files of an evaluation; the summary comes last, with the hashes of the others.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    import pyarrow as pa  # noqa: PLC0415 (slow to import)
    import pyarrow.parquet as pq  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).unlink(missing_ok=True)  # a crash must not leave an old summary beside new files
    columns = {name: pa.array(_stored(name, values)) for name, values in evidence.table.columns().items()}
    with whole_file(folder / TABLE) as temporary:
        pq.write_table(pa.table(columns), temporary)
    write_arrays(folder / IMAGES, evidence.images.tensors())
    files = {name: file_sha256(folder / name) for name in (TABLE, IMAGES)}
    write_json(folder / SUMMARY, {**to_json(evidence.summary), "schema": SCHEMA, "files": files})


def read_evidence(folder: Path) -> Evidence:
    """Read an evaluation.

    Raises:
        EvidenceError: a file is missing, cut off, or of another schema.
    """
    for name in (SUMMARY, TABLE, IMAGES):
        if not (folder / name).is_file():
            raise EvidenceError(f"{folder / name} is missing: the evaluation is not complete")
    return Evidence(read_table(folder), read_images(folder), read_summary(folder))


def read_summary(folder: Path) -> Summary:
    """Read the summary of an evaluation.

    Raises:
        EvidenceError: it is cut off, of another schema, or a field is missing or of the wrong kind.
    """
    return from_json(Summary, read_summary_fields(folder), str(folder / SUMMARY))


def read_summary_fields(folder: Path) -> dict[str, Any]:
    """Read the fields of a summary as plain values, with the names of this schema; for audits.

    Raises:
        EvidenceError: the file is cut off or of another schema.
    """
    values, version = _opened(folder)
    return _of_file(folder / SUMMARY, lambda: _present_summary(values, version))


def read_table(folder: Path) -> EvidenceTable:
    """Read the rows of an evaluation.

    Raises:
        EvidenceError: the file is cut off, of another schema, or lacks a column.
    """
    values, version = _opened(folder)
    file = folder / TABLE
    try:
        stored = read_parquet(file)
    except SizeError as error:
        raise EvidenceError(str(error)) from None
    except (TableError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise EvidenceError(f"{file} is damaged (cut off while it was written?): {reason}") from error
    columns = {name: _column(file, name, stored[name]) for name in stored.column_names}
    if version == 2:
        columns = _of_file(folder / SUMMARY, lambda: columns_of_schema_2(columns, values))
    if version <= 3:
        columns = columns_of_schema_3(columns)
    if version <= 4:
        columns = columns_of_schema_4(columns)
    return _of_file(file, lambda: EvidenceTable.from_columns(columns))


def read_images(folder: Path) -> EvidenceImages:
    """Read all stored tensors of an evaluation; images stay on the disk until they are used.

    Raises:
        EvidenceError: the file is cut off, or tensors are missing or do not fit together.
    """
    file = folder / IMAGES
    try:
        tensors = map_arrays(file).arrays
    except (SafetensorError, OSError) as error:
        raise EvidenceError(f"{file} is damaged (cut off while it was written?): {error}") from error
    return _of_file(file, lambda: EvidenceImages.from_tensors(tensors))


def read_threat_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays that belong to the threat, such as a mask, and no images, because the file may be large.

    Raises:
        EvidenceError: the file is cut off.
    """
    file = folder / IMAGES
    try:
        with safe_open(file, framework="np") as tensors:
            return threat_arrays(tensors.keys(), tensors.get_tensor)
    except (SafetensorError, OSError) as error:
        raise EvidenceError(f"{file} is damaged (cut off while it was written?): {error}") from error


def read_pictures(folder: Path) -> Pictures:
    """Read the originals of the gallery and their adversarial images only, because the file may be large.

    Raises:
        EvidenceError: the file is cut off, or tensors are missing or do not fit together.
    """
    file = folder / IMAGES
    try:
        with safe_open(file, framework="np") as tensors:
            names = set(tensors.keys())
            if not {f"{GALLERY}.ids", f"{GALLERY}.images"} <= names:
                raise EvidenceError(f"{file} lacks {GALLERY}.ids or {GALLERY}.images")
            gallery = StoredImages(tensors.get_tensor(f"{GALLERY}.ids"), tensors.get_tensor(f"{GALLERY}.images"))
            if gallery.images.ndim != 4 or len(gallery.ids) != len(gallery.images):
                raise EvidenceError(
                    f"{file}: {GALLERY}.images should be (G, C, H, W), one image for each of {GALLERY}.ids"
                )
            adversarial = {name: _chosen(file, tensors, name, gallery) for name in attack_names(names)}
    except (SafetensorError, OSError) as error:
        raise EvidenceError(f"{file} is damaged (cut off while it was written?): {error}") from error
    return Pictures(gallery.ids, gallery.images, adversarial)


def _chosen(file: Path, tensors: Any, name: str, gallery: StoredImages) -> dict[int, NDArray[np.float32]]:
    """The images of an attack, by id, whose originals are in the gallery."""
    own, images = tensors.get_tensor(f"{name}.ids"), tensors.get_slice(f"{name}.images")
    if images.get_shape() != [len(own), *gallery.images.shape[1:]]:
        raise EvidenceError(f"{file}: {name}.images does not fit {name}.ids or the originals")
    places = np.flatnonzero(np.isin(own, gallery.ids)).tolist()
    return {int(own[i]): images[i : i + 1][0] for i in places}


def _opened(folder: Path) -> tuple[dict[str, Any], int]:
    """The fields of a summary as written, and the version of their schema."""
    values = read_object(folder / SUMMARY)
    version = values.get("schema")
    if version not in (SCHEMA, 5, 4, 3, 2):
        raise EvidenceError(
            f"{folder / SUMMARY} is written in schema {str(version)[:20]}, but this version reads schema {SCHEMA} "
            "and 5 and, with the older meaning of their columns, 4, 3 and 2: evaluate again, or use the robustly "
            "that wrote it"
        )
    return values, int(version)


def _present_summary(values: dict[str, Any], version: int) -> dict[str, Any]:
    """The fields of a summary of any version, with the names of this schema."""
    if version == 2:
        values = summary_of_schema_2(values)
    if version <= 3:
        values = summary_of_schema_3(values)
    return summary_of_schema_4(values) if version <= 4 else values


def _of_file(file: Path, read: Callable[[], Found]) -> Found:
    """Call a reader; its errors get the name of the file."""
    try:
        return read()
    except EvidenceError as error:
        raise EvidenceError(f"{file}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"{file} lacks a field or has one of the wrong kind: {error}") from error


def _stored(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Values of a column as they are stored: verdicts of certificates in words."""
    return np.asarray(verdict_words(values)) if is_verdict(name) else values


def _column(file: Path, name: str, values: "pa.ChunkedArray[Any]") -> NDArray[Any]:
    if values.null_count:
        raise EvidenceError(f"{file}: the column {name} has missing values")
    if is_verdict(name):
        codes: dict[object, int] = {one.word: int(one) for one in Verdict}
        words = values.to_pylist()
        unknown = sorted({str(word)[:20] for word in words if word not in codes})
        if unknown:
            raise EvidenceError(f"{file}: the column {name} has the verdict {unknown[0]!r}")
        return np.array([codes[word] for word in words], dtype=np.int8)
    found = np.array(values.to_numpy())
    return found.astype(np.str_) if found.dtype.kind == "O" else found
