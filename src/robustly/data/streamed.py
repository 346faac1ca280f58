"""Streams of Hugging Face, copied once as Parquet shards into the cache, in bounded memory.

A stream gives no access to single rows, and a shuffle buffer would give an order that depends on its size. The
files of images are therefore kept as they are, in the order of the stream, and read like all Parquet shards. A copy
that was interrupted is continued behind its last shard.
"""

import hashlib
import importlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robustly.data.decoding import Decoding
from robustly.data.hugging_face import package
from robustly.data.parquet_shards import sharded_rows
from robustly.data.rows import Rows
from robustly.data.stored import CACHE, alone, cache_folder
from robustly.data.table_files import Columns
from robustly.data.tables import holds_files, table_rows
from robustly.documents import read_json
from robustly.files import whole_file, write_text
from robustly.output_text import typed_line

SHARD_ROWS = 10_000
SHARD_BYTES = 1 << 27
"""Most rows and, about, most bytes of a shard, which is in memory until it is written."""
_ROWS_AT_ONCE = 64
_FORMAT = "robustly-stream-1"


def streamed_rows(
    name: str, config: str | None, wanted: Collection[str], columns: Columns, decoding: Decoding, named: int = 0
) -> tuple[dict[str, Rows], Path]:
    """Parts of a data set of the Hugging Face hub, copied while it is streamed; and the folder of the copy.

    Args:
        name: such as `uoft-cs/cifar10`, or a folder.
        config: the data set's configuration, or None for its default.
        wanted: parts to copy; all if empty.
        columns: names of columns.
        decoding: settings of decoding.
        named: number of classes that are named elsewhere.

    Raises:
        ValueError: `datasets` is not installed, the stream cannot be read, has no labels or other columns than the
            settings name, continues in another order than before, or the disk of the cache is full.
    """
    source = f"hf-stream:{name}"
    streams, mark = _streams(name, config, source)
    missing = sorted(set(wanted) - set(streams))
    if missing:
        raise ValueError(f"{source}: has no part {missing[0]!r}: its parts are {', '.join(streams)}")
    streams = {part: stream for part, stream in streams.items() if part in wanted or not wanted}
    _check_columns(streams, source, columns, decoding, named)
    folder = cache_folder() / "streams" / f"{Path(name).name[:40]}-{mark[:24]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_suffix(".lock")):
            files = {part: _copied(stream, folder, part, source) for part, stream in streams.items()}
    except OSError as error:
        raise ValueError(
            f"{source}: its copy cannot be kept in {folder} ({error}): set the variable {CACHE} to a folder on "
            "another disk; what has been copied stays"
        ) from error
    return sharded_rows(files, columns, decoding, named), folder


def _streams(name: str, config: str | None, source: str) -> tuple[dict[str, Any], str]:
    """The stream of each part with its images as files, and a hash of the data set's version and settings."""
    datasets = package(source)
    # networks and loaders raise many kinds of errors
    try:
        builder = datasets.load_dataset_builder(name, config)
        found = builder.as_streaming_dataset()
        streams = {
            str(part): _with_files(stream if stream.features else stream._resolve_features(), datasets)
            for part, stream in found.items()
        }
    except Exception as error:
        raise ValueError(f"the data set {source} cannot be streamed ({typed_line(error)})") from error
    parts = builder.config.data_files or {}
    files = {
        str(part): [*map(str, group), str(getattr(group, "origin_metadata", ""))] for part, group in parts.items()
    }
    text = json.dumps([_FORMAT, name, config, builder.config_id, builder.hash, files], sort_keys=True)
    return streams, hashlib.sha256(text.encode()).hexdigest()


def _with_files(stream: Any, datasets: Any) -> Any:
    """A stream of the columns of images, as files, and of whole numbers."""
    images = [name for name, feature in stream.features.items() if isinstance(feature, datasets.Image)]
    for name in images:
        stream = stream.cast_column(name, datasets.Image(decode=False))
    kept = [
        one.name for one in stream.features.arrow_schema if holds_files(one.type) or pa.types.is_integer(one.type)
    ]
    return stream.select_columns(kept)


def _check_columns(streams: dict[str, Any], source: str, columns: Columns, decoding: Decoding, named: int) -> None:
    """Refuse columns that do not fit before anything is copied."""
    tables = {part: stream.features.arrow_schema.empty_table() for part, stream in streams.items()}
    table_rows(tables, {part: f"{source} ({part})" for part in tables}, columns, decoding, named)


def _copied(stream: Any, folder: Path, part: str, source: str) -> list[Path]:
    """The shards of a part, of which those that are missing are written."""
    whole = folder / f"{part}.json"
    if whole.is_file():
        files = [folder / Path(str(name)).name for name in read_json(whole)]
        if all(file.is_file() for file in files):
            return files
    files = []
    while (file := _shard(folder, part, len(files))).is_file():
        files.append(file)
    schema = stream.features.arrow_schema
    for table in _tables(_rest(stream, files, f"{source} ({part})"), schema):
        file = _shard(folder, part, len(files))
        with whole_file(file) as temporary:
            pq.write_table(table, temporary, row_group_size=1000, compression="none")
        files.append(file)
    if not files:
        raise ValueError(f"{source} ({part}): is empty, there is no example in it")
    write_text(whole, json.dumps([file.name for file in files]))
    return files


def _shard(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}-{number:05}.parquet"


def _rest(stream: Any, files: list[Path], source: str) -> Iterator[dict[str, list[Any]]]:
    """The rows behind those that are copied, some at once.

    Raises:
        ValueError: the last row that is copied is not in its place any more, or the stream cannot be read.
    """
    counts = [pq.read_metadata(file).num_rows for file in files]
    rows = sum(counts)
    batches = _read(stream.skip(rows - 1) if rows else stream, source)
    if rows:
        first = next(batches, {})
        last = pq.read_table(files[-1]).slice(counts[-1] - 1).to_pydict()
        if {name: cells[:1] for name, cells in first.items()} != last:
            raise ValueError(
                f"{source}: its order has changed since {rows} rows were copied: remove {files[0].parent} to copy "
                "it again, or save the data as Parquet files in a fixed order"
            )
        yield {name: cells[1:] for name, cells in first.items()}
    yield from batches


def _read(stream: Any, source: str) -> Iterator[dict[str, list[Any]]]:
    """Rows of a stream with the bytes of their images; errors in one sentence."""
    try:
        for batch in stream.iter(_ROWS_AT_ONCE):
            yield {name: [_with_bytes(cell) for cell in cells] for name, cells in batch.items()}
    except Exception as error:  # networks and loaders raise many kinds
        raise ValueError(
            f"{source}: the stream ended early ({typed_line(error)}): start again, what has been copied stays"
        ) from error


def _tables(batches: Iterator[dict[str, list[Any]]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of the size of a shard."""
    held: list[pa.Table] = []
    for batch in batches:
        held.append(pa.Table.from_pydict(batch, schema=schema))
        if sum(map(len, held)) >= SHARD_ROWS or sum(one.nbytes for one in held) >= SHARD_BYTES:
            yield pa.concat_tables(held)
            held = []
    if sum(map(len, held)):
        yield pa.concat_tables(held)


def _with_bytes(cell: Any) -> Any:
    """A cell whose image is named by its path, with the bytes of that file."""
    if not isinstance(cell, dict) or cell.get("bytes") is not None or not cell.get("path"):
        return cell
    fsspec: Any = importlib.import_module("fsspec")  # datasets needs it, too
    with fsspec.open(cell["path"], "rb") as handle:
        return {**cell, "bytes": handle.read()}
