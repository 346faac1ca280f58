"""Parquet files that are read row group by row group, so that memory does not grow with their number."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustly.data.decoding import Decoding, EncodedImage, decode_images
from robustly.data.rows import Rows
from robustly.data.table_files import Columns
from robustly.data.tables import encoded_image, holds_files, image_column, table_rows

MOST_READ_AT_ONCE = 1 << 30
"""Bytes of Parquet files above which they are read as here, although the decoded images may fit into memory."""
_ROWS = 64
_BUFFER = 1 << 20


def sharded_rows(
    files: dict[str, list[Path]], columns: Columns, decoding: Decoding, named: int = 0
) -> dict[str, Rows]:
    """Parts of Parquet files, as `parquet_rows`; only labels are read at once.

    Images are read and decoded fastest in the order of their positions.

    Raises:
        ValueError: as `parquet_rows`.
    """
    contents = {part: [_opened(file) for file in group] for part, group in files.items()}
    for part, group in contents.items():
        if any(one.schema_arrow.types != group[0].schema_arrow.types for one in group):
            raise ValueError(f"{files[part][0].parent}: the {part} files have different columns")
    tables = {
        part: pa.concat_tables([_labels_only(one, file) for one, file in zip(group, files[part], strict=True)])
        for part, group in contents.items()
    }
    sources = {part: str(group[0] if len(group) == 1 else group[0].parent) for part, group in files.items()}
    found = table_rows(tables, sources, columns, decoding, named)
    shards = {
        part: _Shards(
            tuple(files[part]),
            image_column(tables[part], columns, sources[part]),
            sources[part],
            decoding,
            tuple(
                (place, group, one.metadata.row_group(group).num_rows)
                for place, one in enumerate(contents[part])
                for group in range(one.metadata.num_row_groups)
            ),
        )
        for part in files
    }
    for group in contents.values():
        for one in group:
            one.close()
    return {part: replace(rows, read=shards[part].read) for part, rows in found.items()}


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: is damaged or not a Parquet file ({error})") from error


def _labels_only(content: pq.ParquetFile, file: Path) -> pa.Table:
    """The table with its columns of numbers, and empty cells in the columns of images."""
    schema = content.schema_arrow
    kept = [one.name for one in schema if pa.types.is_integer(one.type)]
    try:
        table = content.read(columns=kept)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: is damaged or not a Parquet file ({error})") from error
    count = content.metadata.num_rows
    for one in schema:
        if holds_files(one.type):
            table = table.append_column(one, pa.nulls(count, one.type))
    return table.replace_schema_metadata(schema.metadata)


@dataclass(frozen=True, eq=False)
class _Shards:
    """Images of one part: its files, and the file, the number and the length of each row group in order."""

    files: tuple[Path, ...]
    column: str
    source: str
    decoding: Decoding
    groups: tuple[tuple[int, int, int], ...]
    open: dict[str, Any] = field(default_factory=dict)

    def read(self, index: Int64[Tensor, " m"]) -> UInt8[Tensor, "m c h w"]:
        """Images at some positions, in their order."""
        if bool((index.diff() >= 0).all()):
            return decode_images(self._cells(index.tolist()), self.decoding)
        order = index.argsort(stable=True)
        return decode_images(self._cells(index[order].tolist()), self.decoding)[order.argsort()]

    def _cells(self, rows: list[int]) -> Iterator[EncodedImage]:
        """Encoded images at positions that do not decrease."""
        ends = np.cumsum([length for _, _, length in self.groups])
        for row in rows:
            group = int(np.searchsorted(ends, row, side="right"))
            first = int(ends[group]) - self.groups[group][2]
            yield encoded_image(self._cell(group, row - first), self.source, row)

    def _cell(self, group: int, place: int) -> Any:
        """A cell of a row group, going on from the batch of the call before if it can."""
        state = self.open
        if state.get("group") != group or place < state["start"]:
            state.update(group=group, start=0, batch=(), batches=self._batches(group))
        while place >= state["start"] + len(state["batch"]):
            state["start"] += len(state["batch"])
            state["batch"] = next(state["batches"])
        return state["batch"][place - state["start"]].as_py()

    def _batches(self, group: int) -> Iterator[Any]:
        file, number, _ = self.groups[group]
        with _opened(self.files[file]) as content:
            try:
                for batch in content.iter_batches(_ROWS, row_groups=[number], columns=[self.column]):
                    yield batch.column(0)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{self.files[file]}: is damaged or not a Parquet file ({error})") from error


def total_size(files: dict[str, list[Path]]) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for group in files.values() for file in group)
