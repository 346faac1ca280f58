"""Atomic writing of files and folders: under a temporary name, then renamed."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PART = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.part")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Temporary path beside `path` that replaces it when the block ends without exception.

    The content is on the disk before the name changes. After an exception the temporary file is removed and `path`
    is unchanged. Temporary files of `path` that killed processes left are removed.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    temporary = _part_of(path)
    remove_stale_parts(path.parent, path.name)
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, spent: Path | None = None) -> Iterator[Path]:
    """Temporary folder beside `path` that replaces it when the block ends without exception.

    The new folder is complete and on the disk before the old one moves. `finish_swap` completes a replacement that
    was killed half-way. After an exception the temporary folder is removed and `path` is unchanged.

    Args:
        path: the folder, which may exist.
        spent: a folder that the new one makes superfluous; it is removed with the old one.

    Raises:
        OSError: the folder above is not writable or the disk is full.
    """
    finish_swap(path, spent)
    remove_stale_parts(path.parent, path.name)
    temporary = _part_of(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for item in (*temporary.iterdir(), temporary):
            _to_disk(item)
        temporary.replace(_new(path))  # from here on the new folder counts
        finish_swap(path, spent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish_swap(path: Path, spent: Path | None = None) -> None:
    """Complete the replacement of a folder by `whole_folder` that was killed half-way; else do nothing.

    Raises:
        OSError: the folder above is not writable.
    """
    old, new = _old(path), _new(path)
    if new.is_dir():
        if spent is not None:
            shutil.rmtree(spent, ignore_errors=True)
        if path.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
        new.replace(path)
        _to_disk(path.parent)
    if old.is_dir() and path.is_dir():
        shutil.rmtree(old, ignore_errors=True)


def is_half_swapped(path: Path) -> bool:
    """Return True if a replacement of a folder was killed half-way, so that `finish_swap` has something to do."""
    return _new(path).is_dir() or _old(path).is_dir()


def remove_stale_parts(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders that killed processes left in a folder, not those of running ones.

    Args:
        folder: the folder, which may be missing.
        name: remove only those of the file or folder of this name.
    """
    with suppress(OSError):
        for item in list(os.scandir(folder)):
            match = _PART.fullmatch(item.name)
            if match is None or match["name"] != (name or match["name"]) or _lives(int(match["process"])):
                continue
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item.path, ignore_errors=True)
            else:
                Path(item.path).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically. NaN raises an error, because JSON has no NaN."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def is_irregular(path: Path | str) -> bool:
    """Return True for what is there but no regular file: a pipe would be waited for, and a device may never end."""
    return not Path(path).is_file() and Path(path).exists()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _lives(process: int) -> bool:
    """Return True if another process of this number runs on this machine."""
    if process == os.getpid():
        return False  # of an earlier process with our number, as in a container that was started again
    if sys.platform == "win32":
        return True  # there os.kill has other meanings
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # of another user
    return True


def _to_disk(path: Path) -> None:
    """Write a file or a folder's names through to the disk; folders cannot be opened on Windows."""
    if os.name == "nt" and path.is_dir():
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
