"""Locks of run and evaluation folders, and the repair of evaluations that a kill left half-way."""

import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from robustly.files import finish_swap, is_half_swapped, remove_stale_parts

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
PARTIAL = ".partial"


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock a run's folder for training; wait while another process trains or evaluates the run.

    The lock ends with the process, also if it is killed. Temporary files of killed processes are removed. There is
    no lock in a folder that does not exist yet, or where files cannot be locked (Windows, some network disks).
    """
    with _locked(folder / LOCK, f"{folder}", shared=False):
        _remove_leftovers(folder)
        yield


@contextmanager
def lock_evaluation(evaluation: Path) -> Iterator[None]:
    """Lock one evaluation of a run; wait while another process writes it or trains the run.

    Several evaluations of one run may be written at a time, each by one process. An evaluation that a kill left
    half-way is repaired.

    Args:
        evaluation: its folder, in the folder of the run; it may be missing.
    """
    run = evaluation.parent
    with ExitStack() as held:
        held.enter_context(_locked(run / LOCK, f"{run}", shared=True))
        held.enter_context(_locked(_lock_of(evaluation), f"{evaluation}", shared=False))
        if run.is_dir():
            _repair(evaluation)
        yield


def repair_evaluations(run: Path) -> None:
    """Complete or remove what killed processes left half-way among the evaluations of a run.

    Evaluations that a running process writes, and folders that cannot be written, stay as they are.
    """
    names = {item.name for item in run.iterdir()} if run.is_dir() else set()
    for name in sorted(names):
        found = name.removeprefix(".").removesuffix(".new").removesuffix(".old")
        evaluation = run / found
        if name != f".{found}" and name.startswith(".") and is_half_swapped(evaluation):
            with suppress(OSError), _locked(_lock_of(evaluation), "", shared=False, wait=False) as is_free:
                if is_free:
                    _repair(evaluation)


def partial_of(evaluation: Path) -> Path:
    """The folder of an evaluation's finished attacks, until it is complete."""
    return evaluation.with_name(f"{evaluation.name}{PARTIAL}")


def is_own_leftover(item: Path) -> bool:
    """Return True for a lock, or a temporary file of a process that was killed before the run was there."""
    return item.name.startswith(".") and item.name.endswith((LOCK, ".part"))


def _lock_of(evaluation: Path) -> Path:
    return evaluation.with_name(f".{evaluation.name}{LOCK}")


def _repair(evaluation: Path) -> None:
    partial = partial_of(evaluation)
    finish_swap(evaluation, partial)
    for folder in (evaluation, partial):
        remove_stale_parts(folder)
    remove_stale_parts(evaluation.parent, evaluation.name)


def _remove_leftovers(run: Path) -> None:
    for folder in (run, run / "checkpoints"):
        remove_stale_parts(folder)


@contextmanager
def _locked(path: Path, folder: str, *, shared: bool, wait: bool = True) -> Iterator[bool]:
    """Hold a lock; yields False without it, if another process has it and we do not wait."""
    if sys.platform == "win32" or not path.parent.is_dir():
        yield True
        return
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        has_lock = _acquired(number, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, folder if wait else None)
        if has_lock:
            _name_holder(number, f"{os.getpid()} on {socket.gethostname()}")
        yield has_lock
        if has_lock:
            _name_holder(number, "")
    finally:
        os.close(number)


def _acquired(number: int, kind: int, folder: str | None) -> bool:
    """Take a lock; without a folder to name, do not wait for it."""
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if folder is None:
            return False
        warnings.warn(f"{_holder(number)} uses {folder}: waiting until it ends", stacklevel=6)
        fcntl.flock(number, kind)
    except OSError:
        pass  # some network disks have no locks
    return True


def _name_holder(number: int, name: str) -> None:
    with suppress(OSError):  # the name is a courtesy; the lock holds without it
        os.ftruncate(number, 0)
        os.pwrite(number, name.encode(), 0)


def _holder(number: int) -> str:
    text = os.pread(number, 200, 0).decode("utf-8", "replace")
    return f"another process ({text})" if text else "another process"
