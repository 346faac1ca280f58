"""Arrow tables of encoded images: Parquet files, and data sets of the Hugging Face hub."""

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
from robustly.data.rows import MISSING, Rows
from robustly.data.table_files import Columns
from robustly.documents import parse_json
from robustly.memory import TableError, read_parquet

_USUAL_IMAGES = ("image", "img")
_USUAL_LABELS = ("label", "labels", "fine_label")


def parquet_rows(
    files: dict[str, list[Path]], columns: Columns, decoding: Decoding, named: int = 0
) -> dict[str, Rows]:
    """Parts of Parquet files with encoded images (a binary column, or a struct with `bytes`) and labels.

    Args:
        files: files of each part.
        columns: names of columns.
        decoding: settings of decoding.
        named: number of classes that are named elsewhere.

    Raises:
        ValueError: naming the file, if one is damaged, a column is missing or has the wrong type, or a value
            is missing.
    """
    tables = {part: [_read_parquet(file) for file in group] for part, group in files.items()}
    for part, group in tables.items():
        if any(table.schema.types != group[0].schema.types for table in group):
            raise ValueError(f"{files[part][0].parent}: the {part} files have different columns")
    joined = {part: pa.concat_tables(group) for part, group in tables.items()}
    sources = {part: str(group[0] if len(group) == 1 else group[0].parent) for part, group in files.items()}
    return table_rows(joined, sources, columns, decoding, named)


def _read_parquet(file: Path) -> pa.Table:
    try:
        return read_parquet(file)
    except (TableError, OSError) as error:
        raise ValueError(f"{file}: is damaged or not a Parquet file ({error})") from error


def table_rows(
    tables: dict[str, pa.Table],
    sources: dict[str, str],
    columns: Columns,
    decoding: Decoding,
    named: int = 0,
    with_paths: bool = False,
) -> dict[str, Rows]:
    """Parts of tables with encoded images and labels.

    Rows of a part whose label column is missing or null have no labels, as long as another part has them.

    Args:
        tables: the table of each part; its schema may hold the class names of `datasets`.
        sources: name of each part, for error messages.
        columns: names of columns.
        decoding: settings of decoding.
        named: number of classes that are named elsewhere.
        with_paths: True reads the images of cells that hold a path instead of bytes.

    Raises:
        ValueError: naming the part, if a column is missing or has the wrong type.
    """
    images = {part: image_column(table, columns, sources[part]) for part, table in tables.items()}
    label_columns = _label_columns(tables, columns, sources)
    labels = {
        part: _labels(table, label_columns[part], sources[part])
        if part in label_columns
        else torch.full((len(table),), MISSING)
        for part, table in tables.items()
    }
    names = {part: _class_names(tables[part], column) for part, column in label_columns.items()}
    needs_numbers = not all(names.values()) and any(len(values) for values in labels.values())
    numbered = class_numbers(list(labels.values()), next(iter(sources.values())), named) if needs_numbers else ()
    others = next(iter(names.values())) or numbered
    return {
        part: _encoded_rows(
            table.column(images[part]),
            labels[part],
            names.get(part, others) or numbered,
            sources[part],
            decoding,
            with_paths,
        )
        for part, table in tables.items()
    }


def _label_columns(tables: dict[str, pa.Table], columns: Columns, sources: dict[str, str]) -> dict[str, str]:
    """Label columns of the parts that have one, at least one."""
    found: dict[str, str] = {}
    first: ValueError | None = None
    for part, table in tables.items():
        try:
            found[part] = _label_column(table, columns, sources[part])
        except ValueError as error:
            first = first or error
    if first is not None and not found:
        raise first
    return found


def _encoded_rows(
    column: "pa.ChunkedArray[Any]",
    labels: Int64[Tensor, " n"],
    classes: tuple[str, ...],
    source: str,
    decoding: Decoding,
    with_paths: bool,
) -> Rows:
    def read(index: Tensor) -> Tensor:
        return decode_images(
            (encoded_image(column[row].as_py(), source, row, with_paths) for row in index.tolist()), decoding
        )

    return Rows(labels, classes, source, read)


def encoded_image(cell: Any, source: str, row: int, with_paths: bool = False) -> EncodedImage:
    """The image of a cell of a table.

    Raises:
        ValueError: the cell is empty.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None and isinstance(cell, dict) and cell.get("path") and with_paths:
        content = Path(cell["path"])
    if content is None:
        raise ValueError(f"{source} row {row}: holds no image")
    return EncodedImage(content, f"{source} row {row}")


def image_column(table: pa.Table, columns: Columns, source: str) -> str:
    """Name of the column of encoded images.

    Raises:
        ValueError: there is none, it is not clear which one it is, or the named one is missing or of another type.
    """
    fitting = [field.name for field in table.schema if holds_files(field.type)]
    return _chosen(table, _Role("image", "encoded images (bytes)", _USUAL_IMAGES), columns.image, fitting, source)


def _label_column(table: pa.Table, columns: Columns, source: str) -> str:
    integers = [field.name for field in table.schema if pa.types.is_integer(field.type)]
    with_names = [name for name in integers if _class_names(table, name)]
    is_clear = len(with_names) == 1 and columns.label is None and not set(_USUAL_LABELS) & set(integers)
    fitting = with_names if is_clear else integers
    return _chosen(table, _Role("label", "integers 0..K-1", _USUAL_LABELS), columns.label, fitting, source)


def holds_files(kind: pa.DataType) -> bool:
    """True for a column of bytes, or of structures with the field `bytes`."""
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
        values = values.cast(pa.int64()).fill_null(pa.scalar(MISSING, pa.int64()))
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
