"""Decoded images in a file of the cache, mapped into memory, for data sets larger than memory.

The images of one split are decoded once, in order, into a file of 8-bit pixels. Reading an example is then one
access to the file, so order, augmentation, batches and resumption are those of images in memory. A shuffle buffer
would give another order, and would have to be saved in every checkpoint. Parquet files themselves give no access to
single rows.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.lib.format import open_memmap
from torch import Tensor

from robustly.data.rows import Rows
from robustly.files import whole_file
from robustly.memory import free_bytes, most_bytes

CACHE = "ROBUSTLY_CACHE"
"""Variable with the folder of cached files."""
_FORMAT = "robustly-stored-images-1"
_CHUNK_BYTES = 1 << 22
_MOST_IN_CHUNK = 1024
_SHARE = 0.5  # of the free memory, for one split
_ALWAYS = 1 << 26  # bytes that are kept in memory in any case


def cache_folder() -> Path:
    """Folder of cached files: that of `CACHE`, or `robustly` in the user's cache."""
    given = os.environ.get(CACHE)
    if given:
        return Path(given).expanduser()
    usual = os.environ.get("XDG_CACHE_HOME")
    return (Path(usual) if usual else Path.home() / ".cache") / "robustly"


def files_digest(files: Sequence[Path]) -> str:
    """SHA-256, in hexadecimal, of the paths, sizes and times of change of files, in their order.

    Raises:
        OSError: a file does not exist.
    """
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file.resolve()}\x1f{state.st_size}\x1f{state.st_mtime_ns}\x1e".encode())
    return digest.hexdigest()


def is_too_large(rows: Rows, positions: Int64[Tensor, " m"]) -> bool:
    """True if the decoded images at some positions would fill more than half of the free memory, or the limit.

    The limit is that of `robustly.memory`.
    """
    if len(positions) == 0 or rows.fingerprint is None:
        return False
    needed = rows.read(positions[:1]).numel() * len(positions)
    return needed > max(_ALWAYS, min(most_bytes(), _SHARE * free_bytes()))


def stored_images(rows: Rows, positions: Int64[Tensor, " m"], name: str) -> UInt8[Tensor, "m c h w"]:
    """Images at some positions, mapped from a file of the cache, which is written if it is not there.

    The tensor must not be written to. Its pages are part of the system's file cache, which needs no memory that
    other programs use.

    Args:
        rows: rows of files, with a fingerprint.
        positions: at least one position.
        name: of the split, which begins the name of the file.

    Raises:
        ValueError: an image cannot be decoded, images have different shapes, or the disk of the cache is too
            small.
    """
    assert rows.fingerprint is not None, "only rows of files are kept on the disk"
    digest = hashlib.sha256(f"{_FORMAT}\x1f{rows.fingerprint()}\x1f".encode())
    digest.update(positions.numpy().astype("<i8").tobytes())
    plain = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name).strip("-")[:40]
    folder = cache_folder() / "images"
    file = folder / f"{plain}-{digest.hexdigest()[:24]}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(file.with_suffix(".lock")):
            if not _is_whole(file, len(positions)):
                with whole_file(file) as temporary:
                    _write(rows, positions, temporary)
    except OSError as error:
        raise ValueError(
            f"{name}: its decoded images cannot be kept in {folder} ({error}): set the variable {CACHE} to a "
            "folder on another disk, or data.in_memory to true"
        ) from error
    return _mapped(file)


def _is_whole(file: Path, count: int) -> bool:
    """True for an array file of `count` images that has the size which its header states."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.dtype == np.uint8 and found.ndim == 4 and len(found) == count


def _mapped(file: Path) -> UInt8[Tensor, "m c h w"]:
    pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nothing writes to the pixels of a data set
        return torch.from_numpy(pixels)


def _write(rows: Rows, positions: Int64[Tensor, " m"], file: Path) -> None:
    """Decode images in the order of the source, and write each to its place."""
    order = positions.argsort(stable=True)
    first = rows.read(positions[order[:1]])
    needed, free = first.numel() * len(positions), shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(f"they need {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free")
    step = max(1, min(_MOST_IN_CHUNK, _CHUNK_BYTES // first.numel()))
    written = open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(positions), *first.shape[1:]))
    if hasattr(os, "posix_fallocate"):  # a write to a page of a full disk would end the process
        with file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
    for chunk in torch.split(order, step):
        images = rows.read(positions[chunk])
        if images.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{rows.source}: images are of the shapes {tuple(first.shape[1:])} and {tuple(images.shape[1:])} "
                "(channels, height, width): set image_size to resize all images, or channels to 1 or 3"
            )
        written[chunk.numpy()] = images.numpy()
    written.flush()


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Let one process at a time write a file, where the system has locks of files."""
    try:
        import fcntl  # noqa: PLC0415 (not on Windows)
    except ModuleNotFoundError:
        yield
        return
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def fingerprint(path: Path, **settings: str | int | None) -> str:
    """Hash of a file, or of all files of a folder, and of the settings with which they are read."""
    from PIL import __version__ as pillow  # noqa: PLC0415 (slow to import); decoders differ between versions

    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    text = json.dumps([files_digest(files), settings, pillow], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
