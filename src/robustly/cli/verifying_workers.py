"""Processes that decide instances, one after another each; a killed process costs one instance."""

import math
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from robustly.certification.answers import Answer
from robustly.signals import without_interruption

GRACE = 5.0
"""Seconds after its time limit at which a process is killed."""

Decide = Callable[[Path, Path, float], Answer]
"""Takes a network, a property and the value of `time.monotonic()` at which the answer is due."""


@dataclass(frozen=True)
class Job:
    """An instance to decide in a number of seconds."""

    number: int
    network: Path
    property_: Path
    timeout: float


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job | None = None
    began: float = math.inf  # until it has loaded its packages

    def seconds(self) -> float:
        return max(0.0, time.monotonic() - self.began)


def decided(
    jobs: Sequence[Job], processes: int, decide: Decide, on_start: Callable[[Job], None]
) -> Iterator[tuple[Job, Answer]]:
    """Yield the answer to each job as soon as it is there.

    Args:
        jobs: the jobs, in order.
        processes: number of processes.
        decide: a function of a module, for the processes to import.
        on_start: called when a job begins.
    """
    waiting = deque(jobs)
    workers = [_started(decide, processes) for _ in range(min(processes, len(jobs)))]
    try:
        busy = 0
        while waiting or busy:
            for worker in workers:
                if worker.job is None and waiting:
                    worker.job, worker.began = waiting.popleft(), math.inf
                    busy += 1
                    with suppress(OSError):  # a dead process is found below
                        worker.connection.send(worker.job)
                    on_start(worker.job)
            wait([worker.connection for worker in workers if worker.job is not None], timeout=0.5)
            for place, worker in enumerate(workers):
                job, found = worker.job, _answer(worker)
                if job is None or found is None:
                    continue
                if not worker.process.is_alive() or found.word == "":
                    _end(worker)
                    workers[place] = _started(decide, processes) if waiting else worker
                    found = found if found.word else Answer("timeout", _OVERDUE, worker.seconds())
                worker.job = None
                busy -= 1
                yield job, found
    finally:
        for worker in workers:
            _end(worker)


_OVERDUE = f"it did not stop within {GRACE:g} s after its time limit, and was killed"


def _answer(worker: _Worker) -> Answer | None:
    """The answer of a process; one without a word if it is overdue; None if it works."""
    if worker.job is None:
        return None
    try:
        if worker.connection.poll():
            found = worker.connection.recv()
            if isinstance(found, float):  # it has loaded its packages and begins
                worker.began = found
                return None
            return found if isinstance(found, Answer) else None
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        killed = code == -getattr(signal, "SIGKILL", 9)
        why = "was killed, probably for lack of memory" if killed else f"ended with the code {code}"
        return Answer("unknown", f"its process {why}", worker.seconds())
    overdue = worker.seconds() > worker.job.timeout + GRACE
    return Answer("") if overdue else None


def _started(decide: Decide, processes: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=_work, args=(other, decide, processes), daemon=True)
    with without_interruption():
        process.start()
    other.close()
    return _Worker(process, own)


def _end(worker: _Worker) -> None:
    worker.connection.close()
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()


def _work(connection: Connection, decide: Decide, processes: int) -> None:
    """Decide jobs until the other side closes; Ctrl-C is for the process that prints."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "OMP_NUM_THREADS" not in os.environ:
        import torch  # noqa: PLC0415

        from robustly.runtime import cores  # noqa: PLC0415

        torch.set_num_threads(max(1, cores() // processes))
    with suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            began = time.monotonic()
            connection.send(began)
            try:
                found = decide(job.network, job.property_, began + job.timeout)
            except Exception as error:  # a fault of one instance ends no list
                found = Answer("error", f"a fault of robustly: {type(error).__name__}: {str(error)[:200]}")
            connection.send(found)
