"""Parts of an evaluation, carried out by one process or shared among several.

Process 0 runs the evaluation; the others carry out parts of its tasks. A shared counter hands the parts out one by
one, so that hard images keep no process waiting. Each process writes the results of its parts to files, from which
process 0 continues. A stopped evaluation continues from these files. The parts are those of one process, batch by
batch, so that the results are, too.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.identity import differences
from robustly.evaluation.part_files import (
    all_results,
    digest_of,
    finished_parts,
    is_whole,
    load_part,
    part_file,
    save_part,
)
from robustly.evaluation.parts import ALONE, Arrays, Crew, OnPart, Task, Work, WorkError, no_report
from robustly.processes import Group, ProcessError
from robustly.runtime import DeviceError

_ALL_TAKEN = 2**40


class Leads(Crew, Protocol):
    """A crew whose parts are carried out elsewhere, one evaluation after the other."""

    def begin(self, identity: str, speed: Speed) -> None:
        """Announce an evaluation.

        Args:
            identity: see `evaluation_identity`.
            speed: its batch size and precision.
        """
        ...

    def end(self) -> None:
        """Announce the end of the evaluation."""
        ...


class Leader:
    """Process 0 of several.

    Args:
        group: the processes.
        folder: folder for inputs and results of parts, which all processes reach.
        number: number of the evaluation among those of one command.
    """

    def __init__(self, group: Group, folder: Path, number: int = 0) -> None:
        self._group, self._folder, self._number = group, folder, number
        self._tasks, self._identity = 0, ""

    @property
    def size(self) -> int:
        """Number of processes."""
        return self._group.size

    def begin(self, identity: str, speed: Speed) -> None:
        """Announce an evaluation to the other processes."""
        self._identity = identity
        self._group.store.set(_begun(self._number), json.dumps({"identity": identity, **asdict(speed)}))

    def share(
        self, task: Task, parts: Sequence[Arrays], work: Work, on_part: OnPart = no_report
    ) -> Iterator[Arrays]:
        """Results of all parts, in their order, once all are there; see `Crew`."""
        if len(parts) < 2:
            yield from ALONE.share(task, parts, work, on_part)
            return
        store, place = self._group.store, f"{self._number}/{self._tasks}"
        self._tasks += 1
        folder = self._folder / digest_of(task, parts)
        folder.mkdir(parents=True, exist_ok=True)
        if not is_whole(folder / INPUTS, self._identity):
            named = {f"{n}.{key}": value for n, part in enumerate(parts) for key, value in part.items()}
            save_part(folder / INPUTS, named, self._identity)
        store.set(f"task/{place}", json.dumps({**asdict(task), "folder": folder.name, "count": len(parts)}))
        try:
            own = _Shared(self._group, place, folder, self._identity)
            _take_part(own, len(parts), work, lambda number: parts[number], on_part)
            done = f"done/{place}"

            def is_over() -> bool:
                finished = store.add(done, 0)
                on_part(min(finished, len(parts)))
                return finished >= len(parts) or store.check([f"error/{place}"])

            self._group.wait_until(is_over)
        finally:
            store.add(f"next/{place}", _ALL_TAKEN)
        if store.check([f"error/{place}"]):
            raise WorkError(store.get(f"error/{place}").decode())
        yield from all_results(folder, len(parts))

    def finished(self, task: Task, parts: Sequence[Arrays]) -> Iterator[Arrays]:
        """Results of those parts that an earlier start of the command has finished."""
        return finished_parts(self._folder, task, parts, self._identity)

    def first(self, value: Callable[[], int]) -> int:
        """The number; the other processes do not need it."""
        return value()

    def forget_parts(self) -> None:
        """Remove the results of parts, once an attack is stored as a whole."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def end(self) -> None:
        """Announce the end of this evaluation."""
        self._group.store.set(f"task/{self._number}/{self._tasks}", "over")


INPUTS = "inputs.safetensors"
_TASK = ("kind", "name", "extent", "seconds")


def serve(group: Group, folder: Path, identity: str, work_of: Callable[[Speed, Task], Work], number: int) -> None:
    """Carry out parts of one evaluation until process 0 ends it.

    Args:
        group: the processes; this one is not process 0.
        folder: see `Leader`.
        identity: identity of the evaluation as this process would carry it out.
        work_of: work of a task, at the batch size and precision of process 0.
        number: number of the evaluation among those of one command.
    """
    store = group.store
    begun = json.loads(group.wait_for(_begun(number)))
    if begun["identity"] != identity:
        differ = differences(identity, begun["identity"]) or ["version"]
        group.refuse(f"its {', '.join(differ)} differ from those of process 0")
        return
    speed = Speed.of(begun)
    tasks = 0
    while True:
        place = f"{number}/{tasks}"
        text = group.wait_for(f"task/{place}").decode()
        if text == "over":
            return
        about = json.loads(text)
        task, here = Task(**{key: about[key] for key in _TASK}), folder / about["folder"]

        def part_of(number: int, here: Path = here) -> Arrays:
            return load_part(here / INPUTS, f"{number}.")

        try:
            work = work_of(speed, task)
            _take_part(_Shared(group, place, here, identity), int(about["count"]), work, part_of, no_report)
        except (ProcessError, DeviceError):
            raise
        except Exception as error:  # an attack that raises an error is a result, see `run_stages`
            store.set(f"error/{place}", f"{type(error).__name__}: {error}")
        tasks += 1


@dataclass(frozen=True)
class _Shared:
    """A task that several processes carry out.

    Args:
        group: the processes.
        place: its keys in their store.
        folder: folder of its results.
        identity: identity of the evaluation.
    """

    group: Group
    place: str
    folder: Path
    identity: str


def _take_part(task: _Shared, count: int, work: Work, part_of: Callable[[int], Arrays], on_part: OnPart) -> None:
    """Carry out parts of a task, as long as some are left that no process has begun."""
    store = task.group.store
    while (number := store.add(f"next/{task.place}", 1) - 1) < count:
        if task.group.rank == 0:
            task.group.check()
        path = part_file(task.folder, number)
        if not is_whole(path, task.identity):
            save_part(path, work(part_of(number)), task.identity)
        on_part(store.add(f"done/{task.place}", 1))


def _begun(number: int) -> str:
    return f"begun/{number}"
