"""Processes that all run the same command and share its parts, such as the batches of an audit.

Every process runs the same code on the same inputs. Where the code comes to parts of work, each process takes some
of them, and receives the results of all. Results are kept in the store of the processes; nothing is written.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from safetensors.numpy import load, save

from robustly.evaluation.part_files import digest_of
from robustly.evaluation.parts import ALONE, Arrays, OnPart, Task, Work, no_report
from robustly.processes import Group, ProcessError
from robustly.runtime import DeviceError, check_device

_PIECE = 2**22  # bytes of a value of the store, which takes no more than about twice as many
_FAILED = b"0"


class Member:
    """One of several processes that run the same command.

    Args:
        group: the processes.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._tasks = 0
        self._numbers = 0
        self._kept: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Number of processes."""
        return self._group.size

    def share(
        self, task: Task, parts: Sequence[Arrays], work: Work, on_part: OnPart = no_report
    ) -> Iterator[Arrays]:
        """Results of all parts, in their order; see `Crew`.

        An error is that of the first part that raises one, as in one process.

        Raises:
            ProcessError: another process has stopped; this one has come to other work than process 0.
            DeviceError: the device of this process does not answer any more.
        """
        if len(parts) < 2:
            yield from ALONE.share(task, parts, work, on_part)
            return
        store, place = self._group.store, str(self._tasks)
        self._tasks += 1
        self._agree(place, digest_of(task, parts))
        self._forget()
        while (number := store.add(f"next/{place}", 1) - 1) < len(parts):
            if self._group.rank == 0:
                self._group.check()
            if not self._put(f"{place}/{number}", work, parts[number]):
                store.add(f"next/{place}", len(parts))
            on_part(min(store.add(f"done/{place}", 1), len(parts)))
        has_failed = False
        for number, part in enumerate(parts):
            key = f"{place}/{number}"
            found = None if has_failed and not store.check([key]) else self._got(key)
            has_failed |= found is None
            yield work(part) if found is None else found  # which raises the error of the other process again
        store.add(f"read/{place}", 1)
        if self._group.rank == 0 and not has_failed:
            self._kept[place] = len(parts)

    def finished(self, task: Task, parts: Sequence[Arrays]) -> Iterator[Arrays]:
        """Nothing is kept of an earlier start."""
        return iter(())

    def first(self, value: Callable[[], int]) -> int:
        """The number of process 0."""
        key = f"number/{self._numbers}"
        self._numbers += 1
        if self._group.rank == 0:
            found = value()
            self._group.store.set(key, str(found))
            return found
        return int(self._group.wait_for(key))

    def forget_parts(self) -> None:
        """Nothing is kept in files."""

    def _agree(self, place: str, digest: str) -> None:
        """Refuse to share other work than that of process 0."""
        if self._group.rank == 0:
            self._group.store.set(f"work/{place}", digest)
        elif self._group.wait_for(f"work/{place}").decode() != digest:
            raise ProcessError("its files or settings differ from those of process 0")

    def _put(self, key: str, work: Work, part: Arrays) -> bool:
        """Store the result of a part; returns False for an error, of which only the fact is stored."""
        store = self._group.store
        try:
            content = save({name: np.ascontiguousarray(value) for name, value in work(part).items()})
        except (ProcessError, DeviceError):
            raise
        except Exception:
            if torch.cuda.is_available():
                check_device(torch.device("cuda", 0))
            store.set(key, _FAILED.decode())
            return False
        pieces = [content[first : first + _PIECE] for first in range(0, len(content), _PIECE)]
        for number, piece in enumerate(pieces):
            store.set(f"{key}/{number}", piece)  # type: ignore[arg-type]  # bytes are stored as they are
        store.set(key, str(len(pieces)))
        return True

    def _got(self, key: str) -> Arrays | None:
        """The result of a part once it is there; None for an error."""
        store = self._group.store
        if self._group.rank == 0:
            self._group.wait_until(lambda: store.check([key]))
        count = self._group.wait_for(key)
        if count == _FAILED:
            return None
        found = load(b"".join(store.get(f"{key}/{number}") for number in range(int(count))))
        return {name: value.copy() for name, value in found.items()}  # arrays that can be written to

    def _forget(self) -> None:
        """Remove results that all processes have received; process 0 holds the store."""
        store = self._group.store
        for place, count in list(self._kept.items()):
            if store.add(f"read/{place}", 0) < self._group.size:
                continue
            for number in range(count):
                key = f"{place}/{number}"
                pieces = int(store.get(key))
                for name in (key, *(f"{key}/{piece}" for piece in range(pieces))):
                    store.delete_key(name)
            del self._kept[place]
