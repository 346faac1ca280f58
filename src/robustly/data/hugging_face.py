"""Data sets of Hugging Face: of the hub, in memory, and folders of `save_to_disk`."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from robustly.data.decoding import Decoding
from robustly.data.rows import Rows
from robustly.data.table_files import Columns
from robustly.data.tables import table_rows
from robustly.documents import read_json
from robustly.memory import check_bytes
from robustly.output_text import typed_line


def hub_rows(
    name: str, config: str | None, columns: Columns, decoding: Decoding, named: int = 0
) -> dict[str, Rows]:
    """Splits of a data set of the Hugging Face hub, downloaded once and cached by `datasets`.

    Args:
        name: such as `uoft-cs/cifar10`.
        config: the data set's configuration, such as `cropped_digits`, or None for its default.
        columns: names of columns.
        decoding: settings of decoding.
        named: number of classes that are named elsewhere.

    Raises:
        ValueError: if `datasets` is not installed, the data set cannot be loaded, or its columns do not fit.
    """
    datasets = package(f"hf:{name}")
    # networks and loaders raise many kinds of errors
    try:
        splits = datasets.load_dataset(name, config)
        tables = _arrow_tables(splits)
    except Exception as error:
        raise ValueError(f"the data set hf:{name} cannot be loaded ({typed_line(error)})") from error
    sources = {part: f"hf:{name} ({part})" for part in tables}
    found = table_rows(tables, sources, columns, decoding, named, with_paths=True)
    marks = {part: getattr(splits[part], "_fingerprint", None) for part in found}  # the hash of `datasets`
    return {
        part: replace(
            rows, fingerprint=partial(str.join, " ", (str(marks[part]), part, str(columns), str(decoding)))
        )
        if marks[part]
        else rows
        for part, rows in found.items()
    }


def package(source: str) -> Any:
    """The package `datasets`, which is imported for sources that need it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ValueError(f"the source {source} needs the package datasets: pip install 'robustly[hf]'") from error


def data_set_rows(
    splits: Mapping[str, Any], source: str, columns: Columns, decoding: Decoding, named: int = 0
) -> dict[str, Rows]:
    """Splits that `datasets` holds, such as those of a `DatasetDict`.

    Args:
        splits: a `datasets.Dataset` for each part.
        source: name of the data, for error messages.
        columns: names of columns.
        decoding: settings of decoding.
        named: number of classes that are named elsewhere.

    Raises:
        ValueError: if the columns do not fit.
    """
    tables = _arrow_tables(splits)
    sources = {part: source if len(tables) == 1 else f"{source} ({part})" for part in tables}
    return table_rows(tables, sources, columns, decoding, named, with_paths=True)


def saved_rows(folder: Path, columns: Columns, decoding: Decoding, named: int = 0) -> dict[str, Rows]:
    """Parts of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; `datasets` is not needed.

    The Arrow files are mapped into memory, so that only the rows in use are read.

    Args:
        folder: the folder.
        columns: names of columns.
        decoding: settings of decoding.
        named: number of classes that are named elsewhere.

    Raises:
        ValueError: naming the file, if one is missing or damaged, or the columns do not fit.
    """
    listed = folder / "dataset_dict.json"
    if not listed.is_file():
        return table_rows({"all": _saved_table(folder)}, {"all": str(folder)}, columns, decoding, named)
    content = read_json(listed)
    parts = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{listed}: lists no splits")
    tables = {part: _saved_table(folder / Path(part).name) for part in parts}
    return table_rows(tables, {part: f"{folder} ({part})" for part in parts}, columns, decoding, named)


def _saved_table(folder: Path) -> pa.Table:
    state = read_json(folder / "state.json")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "filename" in one for one in listed):
        raise ValueError(f"{folder / 'state.json'}: lists no data files")
    if state.get("_indices_files"):
        raise ValueError(f"{folder}: holds a selection of an old version of datasets: save it with a newer one")
    if not listed:
        raise ValueError(f"{folder}: is empty, there is no example in it")
    tables = [_mapped(folder / Path(str(one["filename"])).name) for one in listed]
    if any(table.schema.types != tables[0].schema.types for table in tables):
        raise ValueError(f"{folder}: its data files have different columns")
    return pa.concat_tables(tables)


def _mapped(file: Path) -> pa.Table:
    try:
        with pa.memory_map(str(file)) as content:
            batches, size = [], 0
            with pa.ipc.open_stream(content) as stream:
                for batch in stream:
                    size += batch.nbytes
                    check_bytes(max(0, size - file.stat().st_size), str(file))  # more only if it is compressed
                    batch.validate(full=True)
                    batches.append(batch)
                return pa.Table.from_batches(batches, schema=stream.schema)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: is missing, damaged or not an Arrow file of datasets ({error})") from error


def _arrow_tables(splits: Mapping[str, Any]) -> dict[str, pa.Table]:
    """The table of each `datasets.Dataset`, with its features, which formatted tables lack."""
    tables: dict[str, pa.Table] = {part: split.with_format("arrow")[:] for part, split in splits.items()}
    return {
        part: table.replace_schema_metadata(splits[part].features.arrow_schema.metadata)
        for part, table in tables.items()
    }
