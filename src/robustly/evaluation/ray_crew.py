"""Parts of an evaluation as tasks of a Ray cluster."""

import shutil
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.part_files import (
    all_results,
    digest_of,
    finished_parts,
    is_whole,
    part_file,
    save_part,
)
from robustly.evaluation.parts import ALONE, Arrays, OnPart, Task, Work, WorkError, no_report
from robustly.evaluation.ray_tasks import Outcome, Sent, carry_out_part
from robustly.ray_cluster import RETRIES, Cluster, Room
from robustly.ray_connection import ClusterError

_POLL = 0.5  # seconds


class RayCrew:
    """The process that leads an evaluation whose parts are tasks of a Ray cluster.

    Results are written to files here as soon as they arrive, so that a stopped evaluation continues from them. A
    part whose file is there is not carried out again, and its result is taken once.

    Args:
        cluster: the cluster.
        folder: folder for results of parts, of this machine only.
        send: sends model and images; called when the first parts are shared.
        images: number of images.
    """

    def __init__(self, cluster: Cluster, folder: Path, send: Callable[[], Sent], images: int) -> None:
        self._cluster, self._folder, self._send, self._images = cluster, folder, send, images
        self._sent: Sent | None = None
        self._speed, self._identity = Speed(1, half_pays=False), ""

    @property
    def size(self) -> int:
        """Number of tasks at a time."""
        return max(1, self._cluster.slots())

    def begin(self, identity: str, speed: Speed) -> None:
        """Set batch size and precision; warn if there are fewer batches than tasks at a time."""
        self._speed, self._identity = speed, identity
        batches = -(-self._images // speed.batch_size)
        if batches < min(self.size, self._images):
            warnings.warn(
                f"{self._images} images in batches of {speed.batch_size} are {batches} part{'s' * (batches > 1)} "
                f"for {self.size} tasks at a time: --evaluation.batch_size makes smaller ones",
                stacklevel=3,
            )

    def end(self) -> None:
        """Forget model and images, which the cluster may remove then."""
        self._sent = None

    def share(
        self, task: Task, parts: Sequence[Arrays], work: Work, on_part: OnPart = no_report
    ) -> Iterator[Arrays]:
        """Results of all parts, in their order, once all are there; see `Crew`.

        Raises:
            WorkError: the work raised an error.
            ClusterError: the cluster has lost a part too often, its workers cannot take part, or no node has had
                room for a minute.
        """
        if len(parts) < 2:
            yield from ALONE.share(task, parts, work, on_part)
            return
        folder = self._folder / digest_of(task, parts)
        folder.mkdir(parents=True, exist_ok=True)
        files = [part_file(folder, number) for number in range(len(parts))]
        waiting = deque(number for number, file in enumerate(files) if not is_whole(file, self._identity))
        if waiting:
            self._carry_out(task, parts, waiting, folder, on_part)
        yield from all_results(folder, len(parts))

    def finished(self, task: Task, parts: Sequence[Arrays]) -> Iterator[Arrays]:
        """Results of those parts that an earlier start of the command has finished."""
        return finished_parts(self._folder, task, parts, self._identity)

    def first(self, value: Callable[[], int]) -> int:
        """The number; the tasks do not need it."""
        return value()

    def forget_parts(self) -> None:
        """Remove the results of parts, once an attack is stored as a whole."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _carry_out(
        self, task: Task, parts: Sequence[Arrays], waiting: deque[int], folder: Path, on_part: OnPart
    ) -> None:
        """Carry out the waiting parts on the cluster, and write their results."""
        self._sent = sent = self._sent or self._send()
        began, room = time.monotonic(), Room(self._cluster)
        running: dict[Any, int] = {}
        refused: Counter[int] = Counter()
        done, size = len(parts) - len(waiting), self.size
        try:
            while waiting or running:
                slots = room.slots()
                while waiting and len(running) < slots:
                    number = waiting.popleft()
                    left = None if task.seconds is None else max(0.0, began + task.seconds - time.monotonic())
                    todo = sent, self._speed, replace(task, seconds=left), size, parts[number]
                    running[self._cluster.submit(carry_out_part, *todo)] = number
                if not running:
                    time.sleep(_POLL)
                    continue
                for reference in self._cluster.finished([*running], _POLL):
                    number = running[reference]
                    found: Outcome = self._cluster.result(reference)
                    del running[reference]
                    if found.error:
                        raise WorkError(found.error)
                    if found.refusal:
                        refused[number] += 1
                        if refused[number] > RETRIES:
                            raise ClusterError(f"a worker of the Ray cluster cannot take part: {found.refusal}")
                        waiting.appendleft(number)
                        continue
                    save_part(part_file(folder, number), found.value, self._identity)
                    done += 1
                    on_part(done)
        finally:
            self._cluster.cancel([*running])
