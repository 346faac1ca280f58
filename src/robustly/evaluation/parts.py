"""Parts of an evaluation's tasks: batches of images, which one process or several carry out."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
"""Input or result of one part of a task."""
Work = Callable[[Arrays], Arrays]
OnPart = Callable[[int], None]
"""Called with the number of finished parts."""


@dataclass(frozen=True)
class Task:
    """Work of which any process can carry out parts.

    Args:
        kind: kind of the work, such as "attack", or "8bit": the search for images of 8 bits.
        name: name of the attack or certificate in the suite.
        extent: extent of the threat, as a text.
        seconds: time for all parts together; None without a limit. It is not part of the identity of the task.
    """

    kind: str
    name: str = ""
    extent: str = ""
    seconds: float | None = None


class WorkError(RuntimeError):
    """An attack raised an error in another process; the text names its type."""


def no_report(number: int) -> None:
    """Report nothing of a part."""


def as_bytes(value: object) -> NDArray[np.uint8]:
    """Plain values as JSON text in an array, `(N,)`."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_bytes(values: NDArray[Any]) -> Any:
    """The plain values of `as_bytes`."""
    return json.loads(values.tobytes())


@runtime_checkable
class Crew(Protocol):
    """The processes that share work, for the code that uses it.

    Args:
        size: number of processes.
    """

    @property
    def size(self) -> int: ...  # noqa: D102

    def share(
        self, task: Task, parts: Sequence[Arrays], work: Work, on_part: OnPart = no_report
    ) -> Iterator[Arrays]:
        """Results of all parts, in their order.

        Raises:
            WorkError: the work raised an error in another process.
            ProcessError: another process has stopped.
        """
        ...

    def finished(self, task: Task, parts: Sequence[Arrays]) -> Iterator[Arrays]:
        """Results of those parts that an earlier start of the command has finished."""
        ...

    def first(self, value: Callable[[], int]) -> int:
        """A number that process 0 computes for all, such as a random one, or one that depends on the time."""
        ...

    def forget_parts(self) -> None:
        """Remove what is kept of finished tasks, once their results are stored as a whole."""
        ...


class Alone:
    """One process."""

    size = 1

    def finished(self, task: Task, parts: Sequence[Arrays]) -> Iterator[Arrays]:
        """Nothing is kept."""
        return iter(())

    def first(self, value: Callable[[], int]) -> int:
        """The number."""
        return value()

    def forget_parts(self) -> None:
        """Nothing is kept."""

    def share(
        self, task: Task, parts: Sequence[Arrays], work: Work, on_part: OnPart = no_report
    ) -> Iterator[Arrays]:
        """Results of all parts, each computed when it is used."""
        for number, part in enumerate(parts):
            on_part(number)
            yield work(part)


ALONE = Alone()
