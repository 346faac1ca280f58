"""Processes that share work: their numbers, the store that they have in common, and signs of life."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs do not export it
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from robustly.runtime import Place
from robustly.signals import without_interruption

PATIENCE = 300.0  # seconds that a store may take to answer, and a process to show its first sign of life
_PULSE = 1.0  # seconds between signs of life
_SILENCE = 60.0  # seconds without a sign of life after which a process counts as stopped
_POLL = 0.02
_FAREWELL = 5.0  # seconds that process 0 of a cluster waits for the others to leave
_CODE, _OVER = "code", "over"


class ProcessError(ConnectionError):
    """A process has stopped, works on something else, or a store does not answer."""


_LOST = ("closed by peer", "reset by peer", "remote process exited", "Broken pipe", "Timed out waiting")


def is_lost_process(error: Exception) -> bool:
    """Return True for the error of gloo or NCCL after another process has stopped."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


@dataclass(frozen=True)
class Group:
    """Processes with one store.

    Args:
        rank: number of this process; process 0 leads.
        size: number of processes.
        store: key-value store that all of them reach.
        started: the processes that this one has started.
        advice: the end of the sentence on a process that has stopped.
    """

    rank: int
    size: int
    store: Store
    started: tuple[BaseProcess, ...] = ()
    advice: str = "the same command continues from the finished parts"
    _seen: dict[int, tuple[bytes, float]] = field(default_factory=dict, repr=False, compare=False)
    _gone: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    _beating: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def wait_until(self, is_over: Callable[[], bool]) -> None:
        """Wait for something that the other processes do.

        Raises:
            ProcessError: one of them has stopped.
        """
        while not is_over():
            self.check()
            time.sleep(_POLL)

    def wait_for(self, key: str) -> bytes:
        """Wait until process 0 has set a key of the store; returns its value.

        Raises:
            ProcessError: process 0 has ended without it.
        """
        while not self.store.check([key]):
            if self.store.check([_OVER]):
                raise ProcessError("process 0 has ended")
            time.sleep(_POLL)
        value: bytes = self.store.get(key)
        return value

    def check(self) -> None:
        """Check that all processes work; called by process 0.

        Raises:
            ProcessError: one has stopped, or has refused the work.
        """
        for rank in range(1, self.size):
            if self.store.check([_refusal(rank)]):
                words = self.store.get(_refusal(rank)).decode()
                raise ProcessError(f"process {rank} of {self.size} cannot take part: {words}")
            if self._is_lost(rank):
                raise ProcessError(f"process {rank} of {self.size} {self._end_of(rank)}; {self.advice}")

    def refuse(self, words: str) -> None:
        """Say why this process cannot take part."""
        self._end_signs()
        self.store.set(_refusal(self.rank), words)

    def leave(self) -> None:
        """End the part of another process than 0, which does not need the store any more."""
        self._end_signs()
        self.store.set(f"left/{self.rank}", "")

    def _end_signs(self) -> None:
        """End the signs of life; the exit of Python would abort in the middle of one."""
        self._gone.set()
        with self._beating:
            pass

    def close(self) -> None:
        """End the work of process 0: end the processes that it has started, or let those of a cluster leave.

        Process 0 holds the store under SLURM. Those that come later would wait for it in vain.
        """
        with suppress(RuntimeError):  # the store of torchrun has ended
            self.store.set(_OVER, "")
            if not self.started and self.rank == 0:
                self._wait_for_all(("pulse", "left"), _SILENCE)
                self._wait_for_all(("left",), _FAREWELL)
        for process in self.started:
            process.join(1)
            if process.is_alive():  # it begins still, or carries out a part that is of no use any more
                process.terminate()
                process.join(5)

    def _wait_for_all(self, signs: Sequence[str], seconds: float) -> None:
        until, left = time.monotonic() + seconds, set(range(1, self.size))
        while left and time.monotonic() < until:
            keys = {one: [_refusal(one), *(f"{sign}/{one}" for sign in signs)] for one in left}
            left = {one for one in left if not any(self.store.check([key]) for key in keys[one])}
            time.sleep(_POLL)

    def _end_of(self, rank: int) -> str:
        if self.started or rank not in self._seen or self._seen[rank][0]:
            return "has stopped"
        srun = " (under SLURM, start the command with srun)" if "SLURM_NTASKS" in os.environ else ""
        return f"did not begin within {PATIENCE:.0f} s{srun}"

    def _is_lost(self, rank: int) -> bool:
        if self.started and self.started[rank - 1].exitcode is not None:
            return True
        now = time.monotonic()
        pulse = self.store.get(_pulse(rank)) if self.store.check([_pulse(rank)]) else b""
        before, since = self._seen.get(rank, (b"", now))
        if pulse != before or rank not in self._seen:
            self._seen[rank] = (pulse, now)
            return False
        return now - since > (_SILENCE if pulse else PATIENCE)


def start_group(size: int, target: Callable[..., None], arguments: Sequence[Any]) -> Group:
    """Start other processes on this machine; this one is process 0.

    The cores are shared out between them, unless OMP_NUM_THREADS is set.

    Args:
        size: number of processes, this one included.
        target: function of a module that the others call with (`Place`, *arguments).
        arguments: values that can be pickled.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=PATIENCE))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    started = []
    for rank in range(1, size):
        place = Place(rank, rank, size, "127.0.0.1", store.port)
        process = get_context("spawn").Process(
            target=_joined, args=(target, place, torch.get_num_threads(), tuple(arguments)), daemon=True
        )
        with without_interruption():
            process.start()
        started.append(process)
    group = Group(0, size, PrefixStore("robustly", store), tuple(started))
    group.store.set(_CODE, code_digest())
    return group


def join_group(place: Place) -> Group:
    """Join the processes that `start_group`, torchrun or SLURM started.

    Raises:
        ProcessError: the store of process 0 does not answer, or process 0 has other code.
    """
    address = f"tcp://{place.address}:{place.port}?rank={place.rank}&world_size={place.size}"
    try:
        if place.port_is_taken:  # by `start_group` or by torchrun, whose store all processes use
            limit = timedelta(seconds=PATIENCE)
            store: Store = TCPStore(place.address, place.port, is_master=False, timeout=limit)
        else:
            store = next(rendezvous(address, timeout=timedelta(seconds=PATIENCE)))[0]
        group = Group(place.rank, place.size, PrefixStore("robustly", store))
        if place.rank:
            group.store.wait([_CODE], timedelta(seconds=PATIENCE))
        else:
            group.store.set(_CODE, code_digest())
    except (RuntimeError, ValueError, OSError) as error:
        raise ProcessError(
            f"process 0 at {place.address}:{place.port} does not answer within {PATIENCE:.0f} s "
            f"({' '.join(str(error).split())[:120]})"
        ) from None
    if place.rank:
        if group.store.get(_CODE).decode() != code_digest():
            words = "its code of robustly, or its version of PyTorch, differs from that of process 0"
            group.refuse(words)
            raise ProcessError(f"process {place.rank} of {place.size} cannot take part: {words}")
        threading.Thread(target=_beat, args=(group,), name="signs of life", daemon=True).start()
    return group


@cache
def code_digest() -> str:
    """Digest of the source files of this package and of the version of PyTorch."""
    digest = hashlib.sha256(str(torch.__version__).encode())
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()} ".encode() + file.read_bytes())
    return digest.hexdigest()


def _joined(target: Callable[..., None], place: Place, threads: int, arguments: Sequence[Any]) -> None:
    threading.Thread(target=_end_with_parent, name="end with process 0", daemon=True).start()
    torch.set_num_threads(threads)
    target(place, *arguments)


def _end_with_parent() -> None:
    """End this process once process 0 has ended, also if it was killed; files are whole at any moment."""
    first = parent_process()
    if first is not None:
        first.join()
        os._exit(1)


def _beat(group: Group) -> None:
    count = 0
    while count == 0 or not group._gone.wait(_PULSE):
        count += 1
        with group._beating:
            if group._gone.is_set():
                return
            try:
                group.store.set(_pulse(group.rank), str(count))
            except RuntimeError:  # process 0 has ended
                return


def _pulse(rank: int) -> str:
    return f"pulse/{rank}"


def _refusal(rank: int) -> str:
    return f"refusal/{rank}"
