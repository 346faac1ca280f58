"""Arrow tables of encoded images: Parquet files, and data sets of the Hugging Face hub."""

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from robustly.data.decoding import Decoding, EncodedImage, decode_images
from robustly.data.images import class_numbers
from robustly.data.rows import Rows
from robustly.documents import parse_json
from robustly.memory import TableError, read_parquet

_USUAL_IMAGES = ("image", "img")
_USUAL_LABELS = ("label", "labels", "fine_label")
_PART_FILE = re.compile(r"(train|test|validation|valid|val)(-\d+-of-\d+)?\.parquet")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; None finds them by their types."""

    image: str | None = None
    label: str | None = None


def parquet_files(path: Path) -> dict[str, list[Path]]:
    """Parquet files of each part.

    A file is one part, "all". A folder, or its subfolder `data`, may hold `train.parquet`, `test.parquet`,
    `train-00000-of-00002.parquet`, ...; without such files the result is empty.
    """
    if path.is_file():
        return {"all": [path]}
    for folder in (path, path / "data"):
        parts: dict[str, list[Path]] = {}
        for file in sorted(folder.glob("*.parquet")):
            match = _PART_FILE.fullmatch(file.name)
            if match:
                parts.setdefault(match[1], []).append(file)
        if parts:
            return parts
    return {}


def parquet_rows(files: dict[str, list[Path]], columns: Columns, decoding: Decoding) -> dict[str, Rows]:
    """Parts of Parquet files with encoded images (a binary column, or a struct with `bytes`) and labels.

    Raises:
        ValueError: naming the file, if one is damaged, a column is missing or has the wrong type, or a value
            is missing.
    """
    tables = {part: [_read_parquet(file) for file in group] for part, group in files.items()}
    for part, group in tables.items():
        if any(table.schema.types != group[0].schema.types for table in group):
            raise ValueError(f"{files[part][0].parent}: the {part} files have different columns")
    joined = {part: pa.concat_tables(group) for part, group in tables.items()}
    names = {part: str(group[0] if len(group) == 1 else group[0].parent) for part, group in files.items()}
    return _table_rows(joined, names, columns, decoding)


def hub_rows(name: str, config: str | None, columns: Columns, decoding: Decoding) -> dict[str, Rows]:
    """Splits of a data set of the Hugging Face hub, downloaded once and cached by `datasets`.

    Args:
        name: such as `uoft-cs/cifar10`.
        config: the data set's configuration, such as `cropped_digits`, or None for its default.
        columns: names of columns.
        decoding: settings of decoding.

    Raises:
        ValueError: if `datasets` is not installed, the data set cannot be loaded, or its columns do not fit.
    """
    try:
        datasets: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ValueError(f"the source hf:{name} needs the package datasets: pip install 'robustly[hf]'") from error
    # networks and loaders raise many kinds of errors
    try:
        loaded = datasets.load_dataset(name, config)
        tables: dict[str, pa.Table] = {part: split.with_format("arrow")[:] for part, split in loaded.items()}
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"the data set hf:{name} cannot be loaded ({type(error).__name__}: {reason})") from error
    typed = {
        # the formatted tables lack the features, among them the class names
        part: table.replace_schema_metadata(loaded[part].features.arrow_schema.metadata)
        for part, table in tables.items()
    }
    return _table_rows(typed, {part: f"hf:{name} ({part})" for part in typed}, columns, decoding)


def _read_parquet(file: Path) -> pa.Table:
    try:
        return read_parquet(file)
    except (TableError, OSError) as error:
        raise ValueError(f"{file}: is damaged or not a Parquet file ({error})") from error


def _table_rows(
    tables: dict[str, pa.Table], names: dict[str, str], columns: Columns, decoding: Decoding
) -> dict[str, Rows]:
    chosen = {part: _chosen_columns(table, columns, names[part]) for part, table in tables.items()}
    labels = {part: _labels(table, chosen[part][1], names[part]) for part, table in tables.items()}
    named = {part: _class_names(table, chosen[part][1]) for part, table in tables.items()}
    needs_numbers = not all(named.values()) and any(len(values) for values in labels.values())
    numbered = class_numbers(list(labels.values()), next(iter(names.values()))) if needs_numbers else ()
    return {
        part: _encoded_rows(
            table.column(chosen[part][0]), labels[part], named[part] or numbered, names[part], decoding
        )
        for part, table in tables.items()
    }


def _encoded_rows(
    column: "pa.ChunkedArray[Any]",
    labels: Int64[Tensor, " n"],
    classes: tuple[str, ...],
    name: str,
    decoding: Decoding,
) -> Rows:
    def read(index: Tensor) -> Tensor:
        return decode_images((_encoded(column[row].as_py(), name, row) for row in index.tolist()), decoding)

    return Rows(labels, classes, name, read)


def _encoded(cell: Any, name: str, row: int) -> EncodedImage:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None and isinstance(cell, dict) and cell.get("path") and name.startswith("hf:"):
        content = Path(cell["path"])  # the hub's loader of image folders keeps paths instead of bytes
    if content is None:
        raise ValueError(f"{name} row {row}: holds no image")
    return EncodedImage(content, f"{name} row {row}")


def _chosen_columns(table: pa.Table, columns: Columns, name: str) -> tuple[str, str]:
    images = [field.name for field in table.schema if _holds_files(field.type)]
    labels = [field.name for field in table.schema if pa.types.is_integer(field.type)]
    return (
        _chosen(table, _Role("image", "encoded images (bytes)", _USUAL_IMAGES), columns.image, images, name),
        _chosen(table, _Role("label", "integers 0..K-1", _USUAL_LABELS), columns.label, labels, name),
    )


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@dataclass(frozen=True)
class _Role:
    """Name of a role, required content of its column, and usual names of the column."""

    name: str
    required: str
    usual: tuple[str, ...]


def _chosen(table: pa.Table, role: _Role, given: str | None, fitting: Sequence[str], name: str) -> str:
    role_name, required, usual = role.name, role.required, role.usual
    present = ", ".join(f"{field.name} ({field.type})" for field in table.schema)
    if given is not None:
        if given not in table.column_names:
            raise ValueError(f"{name}: has no column {given!r} ({role_name}_column): its columns are {present}")
        if given not in fitting:
            raise ValueError(
                f"{name}: the column {given!r} ({role_name}_column) holds {table.schema.field(given).type}: "
                f"it must hold {required}"
            )
        return given
    found = [column for column in usual if column in fitting] or list(fitting)
    if not found:
        raise ValueError(f"{name}: has no column of {required}: its columns are {present}")
    if len(found) > 1 and found[0] not in usual:
        raise ValueError(
            f"{name}: the columns {', '.join(found)} could all be the {role_name}s: set {role_name}_column"
        )
    return found[0]


def _labels(table: pa.Table, column: str, name: str) -> Int64[Tensor, " n"]:
    values = table.column(column)
    if values.null_count:
        raise ValueError(f"{name}: the column {column!r} lacks {values.null_count} labels")
    numbers = values.to_numpy()
    if numbers.dtype == np.uint64 and numbers.size and numbers.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"{name}: the column {column!r} holds the label {numbers.max()}: labels are integers 0..K-1"
        )
    return torch.from_numpy(numbers.astype(np.int64))


def _class_names(table: pa.Table, column: str) -> tuple[str, ...]:
    """Class names that Hugging Face writes into the schema; empty without them."""
    try:
        features = parse_json((table.schema.metadata or {})[b"huggingface"].decode(), column)["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
