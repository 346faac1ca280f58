"""Parts of an evaluation's tasks: batches of images, which one process or several carry out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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
        kind: "attack", or "8bit": the search for images of 8 bits.
        name: name of the attack in the suite.
        extent: extent of the threat, as a text.
    """

    kind: str
    name: str
    extent: str


class WorkError(RuntimeError):
    """An attack raised an error in another process; the text names its type."""


@runtime_checkable
class Crew(Protocol):
    """The processes of an evaluation, for the code that process 0 runs."""

    def share(self, task: Task, parts: Sequence[Arrays], work: Work, on_part: OnPart) -> Iterator[Arrays]:
        """Results of all parts, in their order.

        Raises:
            WorkError: the work raised an error in another process.
            ProcessError: another process has stopped.
        """
        ...

    def forget_parts(self) -> None:
        """Remove what is kept of finished tasks, once their results are stored as a whole."""
        ...


class Alone:
    """One process."""

    def forget_parts(self) -> None:
        """Nothing is kept."""

    def share(self, task: Task, parts: Sequence[Arrays], work: Work, on_part: OnPart) -> Iterator[Arrays]:
        """Results of all parts, each computed when it is used."""
        for number, part in enumerate(parts):
            on_part(number)
            yield work(part)


ALONE = Alone()
