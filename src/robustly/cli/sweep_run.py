"""Carry out cells of a sweep here or on a Ray cluster.

Each cell has its own processes, so that a crash or a lack of memory stops one run only.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress

from robustly.experiments.run_folder import open_run
from robustly.experiments.sweeps import Cell
from robustly.ray_cluster import RETRIES, check_room
from robustly.ray_connection import connected

LOG = "output.log"
PATIENCE = 15.0

Environment = Mapping[str, str]
CarryOut = Callable[[Cell, threading.Event, Environment], str]
"""Takes a cell, an event that stops it, and environment variables. Returns the error message, empty on success."""


def carry_out_all(
    cells: Sequence[Cell], one: CarryOut, places: Sequence[Environment], progress: Callable[[Cell, str], None]
) -> None:
    """Carry out cells, as many at a time as there are places.

    An exception in the main thread, as on Ctrl-C, SIGTERM and SIGHUP, stops all cells.

    Args:
        cells: the cells.
        one: carries out one cell.
        places: environment variables for a cell at each place.
        progress: called with each cell that ended and its error message.
    """
    stop = threading.Event()
    free: queue.SimpleQueue[Environment] = queue.SimpleQueue()
    for place in places:
        free.put(place)

    def at_a_place(cell: Cell) -> str:
        place = free.get()
        try:
            return one(cell, stop, place)
        finally:
            free.put(place)

    # a background job ignores SIGINT and its children inherit that, but SIGINT must stop them
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pool = ThreadPoolExecutor(len(places))
    try:
        futures = {pool.submit(at_a_place, cell): cell for cell in cells}
        for future in as_completed(futures):
            error = future.exception()
            progress(futures[future], future.result() if error is None else " ".join(str(error).split())[:300])
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGINT, before)


def carry_out(cell: Cell, stop: threading.Event, environment: Environment) -> str:
    """Run the commands of a cell as child processes, with their output in the run's folder.

    Args:
        cell: the cell; its folder holds its settings.
        stop: when set, the child is interrupted; files that it has saved are kept.
        environment: variables of the children, added to those of this process.

    Returns:
        The error message; empty on success, or if it was stopped.
    """
    # sums differ in their last bits with the number of threads
    variables = {**os.environ, "COLUMNS": "120", **environment, "OMP_NUM_THREADS": str(cell.threads)}
    variables["PYTHONSAFEPATH"] = "1"  # -P for the processes that it starts in turn
    for words in cell.commands:
        with (cell.folder / LOG).open("ab") as log:
            log.write(f"\n$ robustly {' '.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "robustly", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=cell.started_in,
                process_group=0,  # Ctrl-C in a terminal signals this process only, which stops each child once
            )
            try:
                while process.poll() is None and not stop.wait(0.1):
                    pass
            finally:
                for number in (signal.SIGINT, signal.SIGKILL):  # SIGINT first, so that it can clean up
                    if process.poll() is None:
                        os.killpg(process.pid, number)
                        with suppress(subprocess.TimeoutExpired):
                            process.wait(PATIENCE)
        if stop.is_set():
            return ""
        if process.returncode:
            return _reason((cell.folder / LOG).read_text(encoding="utf-8", errors="replace"), process.returncode)
    return ""


def _reason(log: str, code: int) -> str:
    """Error message of a failed process: the signal that ended it, its message, or its last line."""
    if code < 0:
        hint = ": was there too little memory?" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{hint}"
    lines = [line.strip() for line in log.rpartition("\n$ robustly ")[2].splitlines()[1:] if line.strip()]
    errors = [line.removeprefix("robustly: ") for line in lines if line.startswith("robustly: ")]
    return [f"exit code {code}: {' '.join(lines[-1:]) or 'no output'}", *errors][-1]


@contextmanager
def on_ray(address: str, threads: int) -> Iterator[CarryOut]:
    """Connect to a Ray cluster; yields a function that carries out a cell there.

    All nodes have the sweep's folder under the same path. A cell takes as many CPUs as it has threads, and a GPU
    if its device is "auto" or "cuda" and the cluster has one. If its node or worker fails, it is started again on
    another, from its last checkpoint.

    Args:
        address: address of the cluster; "auto" is the cluster of this machine, "local" starts one here.
        threads: largest number of threads of a cell.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be reached or has no node for a cell.
    """
    with connected(address, "--ray") as ray:
        has_gpus, task = check_room(ray, threads), ray.remote(_on_node)

        def one(cell: Cell, stop: threading.Event, environment: Environment) -> str:
            gpus = int(has_gpus and open_run(cell.folder).runtime.device in ("auto", "cuda"))
            place = task.options(max_retries=RETRIES, num_cpus=cell.threads, num_gpus=gpus)
            reference = place.remote(cell, environment)
            while not ray.wait([reference], timeout=0.5)[0]:
                if stop.is_set():
                    ray.cancel(reference)
                    ray.wait([reference], timeout=2 * PATIENCE)
                    return ""
            return str(ray.get(reference))

        yield one


def _on_node(cell: Cell, environment: Environment) -> str:
    """Carry out a cell as a Ray task. Cancelling it raises KeyboardInterrupt, which stops its children."""
    # Ray blocks SIGINT, and children inherit that
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        return carry_out(cell, threading.Event(), environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
