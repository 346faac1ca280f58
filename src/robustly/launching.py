"""The processes of a training run: start them, wait until all are there, and compare their settings."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs do not export it
from torch.distributed.distributed_c10d import PrefixStore, Store

from robustly.processes import PATIENCE, ProcessError, code_digest, is_lost_process
from robustly.runtime import Place, place_in_cluster
from robustly.signals import STARTED_BY

LOST = "another process of this run has stopped; the same command continues after the last saved state"
_CODE = "code of robustly, or version of PyTorch,"
_POLL = 0.02
_GRACE = 30.0
"""Seconds that process 0 may work on after another process has failed; NCCL would wait for it much longer."""
_FAREWELL = 10.0

Started = Sequence["subprocess.Popen[bytes]"]


@contextmanager
def training_processes(processes: int, nodes: int, about: Mapping[str, str]) -> Iterator[None]:
    """In the block, all processes of a run are there and have the same settings, data and code.

    Without torchrun and SLURM, the first process of a machine starts the others there with its own command line.

    Args:
        processes: number of processes of each machine.
        nodes: number of machines.
        about: contents that must be the same in all processes, by their names.

    Raises:
        ProcessError: a process has stopped, does not begin, or differs from process 0.
        ValueError: torchrun or SLURM has started another number of processes.
    """
    place = place_in_cluster()
    if place is not None and place.size != processes * nodes:
        raise ValueError(
            f"{place.size} processes were started, and the settings are for {processes * nodes}: set "
            "runtime.processes to the number on each machine, and runtime.nodes to the number of machines"
        )
    if processes * nodes < 2:
        yield
        return
    before = dict(os.environ)
    started: list[subprocess.Popen[bytes]] = []
    try:
        if place is None:
            place, started = _on_this_machine(processes, nodes)
        _meet(place, {_CODE: code_digest(), **about}, started)
        over = threading.Event()
        threading.Thread(target=_watch, args=(started, over), name="watch processes", daemon=True).start()
        try:
            yield
        finally:
            over.set()
    except Exception as error:
        if is_lost_process(error):
            raise ProcessError(LOST) from error
        raise
    finally:
        _end(started, has_failed=sys.exc_info()[0] is not None)
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
            os.environ |= {name: before[name]} if name in before else {}


def _on_this_machine(processes: int, nodes: int) -> tuple[Place, list["subprocess.Popen[bytes]"]]:
    """The place of this process, and the processes that it has started, if it is the first one here."""
    is_first = "LOCAL_RANK" not in os.environ
    if is_first:
        os.environ["LOCAL_RANK"] = "0"
        os.environ["WORLD_SIZE"] = str(processes * nodes)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
        if "MASTER_PORT" not in os.environ:
            os.environ["MASTER_PORT"] = str(_two_free_ports())
    local, node = int(os.environ["LOCAL_RANK"]), int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")))
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    place = Place(node * processes + local, local, processes * nodes, address, port, port_is_taken=False)
    started = []
    for number in range(1, processes if is_first else 1):
        variables = os.environ | {"LOCAL_RANK": str(number), STARTED_BY: str(os.getpid())}
        started.append(subprocess.Popen(_own_command(), env=variables))
    return place, started


def _own_command() -> list[str]:
    """The command line of this process."""
    main = sys.modules["__main__"]
    module = getattr(main, "__spec__", None)
    if module is None:
        return [sys.executable, str(Path(sys.argv[0]).absolute()), *sys.argv[1:]]
    return [sys.executable, "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]]


def _two_free_ports() -> int:
    """The first of two ports next to each other: of the group, and of the store of `_meet`."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            with suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + 1))
                return port


def _meet(place: Place, about: Mapping[str, str], started: Started) -> None:
    """Wait until all processes are there, and refuse those that differ from process 0.

    It polls in Python, so that signals are handled meanwhile; joining a group waits in C++.
    """
    if not place.port_is_taken:
        place = replace(place, port=place.port + 1)  # the group takes the other one
    try:
        store = _store(place)
        (_wait_for_others if place.rank == 0 else _wait_for_first)(store, place, about, started)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ProcessError):
            raise
        raise ProcessError(
            f"process 0 at {place.address}:{place.port} does not answer ({' '.join(str(error).split())[:120]})"
        ) from None


def _store(place: Place) -> Store:
    limit, makes = timedelta(seconds=PATIENCE), place.rank == 0 and not place.port_is_taken
    if not makes:
        _wait(lambda: _listens(place), f"process 0 at {place.address}:{place.port} does not answer")
    store = TCPStore(place.address, place.port, is_master=makes, wait_for_workers=False, timeout=limit)
    start = PrefixStore(f"robustly training {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return PrefixStore(str(start.add(f"runs of {place.rank}", 1)), start)


def _listens(place: Place) -> bool:
    with suppress(OSError), socket.create_connection((place.address, place.port), timeout=1):
        return True
    return False


def _wait(is_over: Callable[[], bool], sentence: str, seconds: float = 0.0, started: Started = ()) -> None:
    """Poll.

    Raises:
        ProcessError: it takes too long, or a process has ended.
    """
    until, parent = time.monotonic() + (seconds or PATIENCE), os.environ.get(STARTED_BY)
    while not is_over():
        for number, process in enumerate(started, 1):
            if process.poll() is not None:
                raise ProcessError(f"process {number} of this machine has stopped before the training began")
        if parent is not None and os.getppid() != int(parent):
            raise ProcessError("process 0 has ended")
        if time.monotonic() > until:
            raise ProcessError(f"{sentence} within {seconds or PATIENCE:.0f} s")
        time.sleep(_POLL)


def _wait_for_others(store: Store, place: Place, about: Mapping[str, str], started: Started) -> None:
    others = range(1, place.size)
    srun = " (under SLURM, start the command with srun)" if "SLURM_NTASKS" in os.environ else ""
    for rank in others:
        _wait(
            lambda key=f"here/{rank}": store.check([key]),  # type: ignore[misc]
            f"process {rank} of {place.size} does not begin{srun}",
            started=started,
        )
    sentences = []
    for rank in others:
        found = json.loads(store.get(f"here/{rank}"))
        differ = [name for name in {**about, **found} if about.get(name) != found.get(name)]
        if differ:
            sentences.append(
                f"process {rank} of {place.size} cannot take part: its {', '.join(differ[:3])} "
                f"{'differs' if len(differ) == 1 else 'differ'} from process 0"
            )
    store.set("answer", sentences[0] if sentences else "")
    with suppress(ProcessError):  # the store ends with this process
        _wait(lambda: all(store.check([f"read/{rank}"]) for rank in others), "", _FAREWELL)
    if sentences:
        raise ProcessError(sentences[0])


def _wait_for_first(store: Store, place: Place, about: Mapping[str, str], started: Started) -> None:
    store.set(f"here/{place.rank}", json.dumps(about))
    _wait(
        lambda: store.check(["answer"]),
        "another process of this run does not begin",
        2 * PATIENCE,
        started,
    )
    answer = store.get("answer").decode()
    store.set(f"read/{place.rank}", "")
    if answer:
        raise ProcessError(answer)


def _watch(started: Started, over: threading.Event) -> None:
    """End this process if another one has failed and this one waits for it nevertheless."""
    while not over.wait(1.0):
        if any(process.poll() for process in started) and not over.wait(_GRACE):
            print(f"robustly: {LOST}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(2)


def _end(started: Started, has_failed: bool) -> None:
    """Let the started processes end; after an error, those that have not begun end at once."""
    for process in started:
        if has_failed and process.poll() is None:
            process.terminate()
    until = time.monotonic() + _FAREWELL
    for process in started if not has_failed else ():
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
