"""Limits on the size of decoded data, which a small file may hold, and work that does not fit into the memory."""

import gc
import math
import os
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


class Sliceable(Protocol):
    """A sequence of rows, such as an array or a tensor."""

    def __len__(self) -> int: ...
    def __getitem__(self, places: slice, /) -> Self: ...


Rows = TypeVar("Rows", bound=Sliceable)
Found = TypeVar("Found")
MOST_PIXELS = 50_000_000
"""Most pixels of one image."""
VARIABLE = "ROBUSTLY_LARGEST_DATA_GIB"
_USUAL_GIB = 16.0
_ROWS = 1024
_NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA out of memory",  # within a scripted network
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class SizeError(ValueError):
    """Data that is larger, once decoded, than the limit; the message names the limit."""


class TableError(ValueError):
    """A Parquet file that is damaged, or a file of another format."""


def most_bytes() -> int:
    """Most bytes of one data set or archive once decoded: 16 GiB, or as the variable `VARIABLE` sets.

    Raises:
        SizeError: the variable is not a positive number.
    """
    given = os.environ.get(VARIABLE)
    try:
        size = _USUAL_GIB if given is None else float(given)
    except ValueError:
        size = math.nan
    if not 0 < size < 2**20:
        raise SizeError(f"the variable {VARIABLE} should be a number of GiB such as 64, but is {given!r}")
    return int(size * 2**30)


def free_bytes() -> float:
    """Bytes of memory that this process can still fill: those of the machine, and of its control group.

    Infinite where the system does not state them.
    """
    found = math.inf
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # there is no limit, or it is "max"
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found = min(found, float(limit - int((group / "memory.current").read_text(encoding="ascii"))))
    return max(found, 0.0)


def check_bytes(size: int, where: str) -> None:
    """Refuse data that would fill more than `most_bytes`.

    Args:
        size: bytes of the decoded data.
        where: name of the file, for the message.

    Raises:
        SizeError: the data is larger.
    """
    limit = most_bytes()
    if size > limit:
        needed, allowed = f"{size / 2**30:.3g} GiB", f"{limit / 2**30:g} GiB"
        raise SizeError(
            f"{where}: needs {needed} of memory, more than the limit of {allowed}; set the variable {VARIABLE} to "
            "raise it"
        )


def check_pixels(width: int, height: int) -> None:
    """Refuse an image of more than `MOST_PIXELS`, before it is decoded.

    Raises:
        SizeError: the image is larger.
    """
    if width * height > MOST_PIXELS:
        raise SizeError(f"it has {width} x {height} pixels, more than the limit of {MOST_PIXELS:,}")


def check_archive(file: Path) -> None:
    """Refuse a ZIP archive whose members are larger than the limit once decompressed.

    Files that are not ZIP archives pass. A reader of the archive stops at the sizes that are checked here.

    Raises:
        SizeError: the members are larger.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return
    check_bytes(size, str(file))


def read_parquet(file: Path) -> "pa.Table":
    """Read a Parquet file part by part, within the limit of `most_bytes`.

    A repeated value takes a few bytes in the file, and its full size in memory.

    Raises:
        SizeError: the table is larger.
        TableError: the file is damaged.
        OSError: the file cannot be read.
    """
    import pyarrow as pa  # noqa: PLC0415 (slow to import)
    import pyarrow.parquet as pq  # noqa: PLC0415

    batches, size = [], 0
    try:
        with pq.ParquetFile(file) as content:
            check_bytes(content.metadata.num_rows * content.metadata.num_columns // 8, str(file))
            for batch in content.iter_batches(batch_size=_ROWS):
                size += batch.nbytes
                check_bytes(size, str(file))
                batches.append(batch)
            return pa.Table.from_batches(batches, schema=content.schema_arrow)
    except pa.ArrowException as error:
        raise TableError(str(error)) from error


def check_npz(file: Path) -> None:
    """Refuse an archive of arrays that are larger than the limit, or whose headers state more than they hold.

    Raises:
        SizeError: the arrays are larger.
        ValueError: the headers and the sizes of an archive differ.
    """
    check_archive(file)
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                with archive.open(member) as stream:
                    _check_header(cast("BinaryIO", stream), member.file_size, f"{file} ({member.filename})")


def check_npy(file: Path) -> None:
    """Refuse an array file whose header states another size than the file has.

    Raises:
        ValueError: the sizes differ, or the file is not an array of plain values.
    """
    with file.open("rb") as stream:
        _check_header(stream, file.stat().st_size, str(file))


def _check_header(stream: BinaryIO, size: int, where: str) -> None:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    stated = math.prod(shape) * dtype.itemsize
    held = size - stream.tell()
    if not dtype.hasobject and stated != held:
        raise ValueError(f"{where}: its header states {stated} bytes of values, but {held} follow")


def is_out_of_memory(error: Exception) -> bool:
    """Return True for an error of too little memory; some of them are plain errors of PyTorch's run time."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))


def free_memory() -> None:
    """Return the memory of failed work to a GPU, where one is in use; that of the CPU is free already."""
    torch = sys.modules.get("torch")  # loading it takes seconds
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def in_halves(work: Callable[[Rows], Found], rows: Rows) -> list[Found]:
    """Results of `work` on some rows: on both halves of them where the memory does not suffice, and so on.

    Args:
        work: does nothing but to return its result, or does the rest at its end, so that it can be repeated.
        rows: at least one row; an array or a tensor.

    Raises:
        Exception: an error of `work`; that of too little memory for a single row only.
    """
    found = _result(work, rows)
    if found:
        return found
    free_memory()
    half = len(rows) // 2
    return in_halves(work, rows[:half]) + in_halves(work, rows[half:])


def _result(work: Callable[[Rows], Found], rows: Rows) -> list[Found]:
    """The result, or nothing if there is too little memory; the error and its traceback are gone then."""
    try:
        return [work(rows)]
    except Exception as error:
        if len(rows) <= 1 or not is_out_of_memory(error):
            raise
        return []
