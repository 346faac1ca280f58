"""A Ray cluster whose workers carry out tasks."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from robustly.ray_connection import ClusterError, one_line_of

RETRIES = 3
NO_NODE = 60.0
"""Seconds that a cluster may be without a node for a task."""


@dataclass(frozen=True)
class Cluster:
    """A connected Ray cluster.

    Every access raises a `ClusterError` if the connection is lost.

    Args:
        ray: the package.
        threads: CPUs of a task.
        gpus: GPUs of a task.
    """

    ray: Any
    threads: int = 1
    gpus: int = 0

    @property
    def has_gpus(self) -> bool:
        """True if a node has a GPU."""
        with _answering():
            return bool(self.ray.cluster_resources().get("GPU", 0))

    def slots(self) -> int:
        """Number of tasks that all nodes together can carry out at a time; nodes may join and leave."""
        with _answering():
            nodes = self.ray.nodes()
        return sum(self._room(node["Resources"]) for node in nodes if node["Alive"])

    def _room(self, resources: Mapping[str, float]) -> int:
        room = int(resources.get("CPU", 0) // self.threads)
        return room if self.gpus == 0 else min(room, int(resources.get("GPU", 0) // self.gpus))

    def put(self, value: object) -> Any:
        """Send a value to the cluster once; returns the reference that tasks take in its place.

        Raises:
            ClusterError: its object store has no room for it, on the disk neither.
        """
        try:
            with _answering():
                return self.ray.put(value)
        except self.ray.exceptions.RayError as error:
            raise ClusterError(f"the object store of the Ray cluster takes no more: {one_line_of(error)}") from None

    def submit(self, function: Callable[..., object], *arguments: object) -> Any:
        """Begin a task; returns the reference of its result.

        If its worker or node is lost, Ray begins it again on another one, up to `RETRIES` times.

        Args:
            function: function of a module.
            arguments: values that can be pickled.
        """
        with _answering():
            task = self.ray.remote(max_retries=RETRIES, num_cpus=self.threads, num_gpus=self.gpus)(function)
            return task.remote(*arguments)

    def finished(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """References of the tasks that have ended, after at most some seconds if none has."""
        with _answering():
            found: list[Any] = self.ray.wait(list(references), num_returns=1, timeout=seconds)[0]
        return found

    def result(self, reference: Any) -> Any:
        """The result of a task.

        Raises:
            ClusterError: the task was lost too often, or a worker cannot begin it.
        """
        try:
            with _answering():
                return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            reason = f"{type(error.cause).__name__}: {error.cause}" if error.cause is not None else str(error)
            raise ClusterError(f"a worker of the Ray cluster cannot take part ({one_line_of(reason)})") from None
        except self.ray.exceptions.RayError as error:
            raise ClusterError(
                f"the Ray cluster has lost a task {RETRIES + 1} times ({type(error).__name__}: "
                f"{one_line_of(error)}); the same command continues from the finished parts"
            ) from None

    def cancel(self, references: Sequence[Any]) -> None:
        """End tasks whose results are of no use any more; those of a cluster that is lost have ended."""
        with suppress(Exception):
            # a lost client would start a cluster here for it
            for reference in references if self.ray.is_initialized() else ():
                self.ray.cancel(reference, force=True)


@contextmanager
def _answering() -> Iterator[None]:
    """Give the loss of a connection as one sentence.

    Raises:
        ClusterError: the connection is lost, and with it all tasks.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, ConnectionError) and type(error).__module__.partition(".")[0] != "grpc":
            raise
        raise ClusterError(
            f"the connection to the Ray cluster is lost ({one_line_of(error)}); the same command continues from "
            "the finished parts"
        ) from None


class Room:
    """The number of tasks that a cluster can carry out at a time, while nodes join and leave.

    Args:
        cluster: the cluster.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._since = cluster, time.monotonic()

    def slots(self) -> int:
        """The number; 0 for a while after the last node has left.

        Raises:
            ClusterError: no node has had room for `NO_NODE` seconds.
        """
        now, found = time.monotonic(), self._cluster.slots()
        if found:
            self._since = now
        if now - self._since > NO_NODE:
            raise ClusterError(
                f"no node of the Ray cluster has had room for {NO_NODE:.0f} s; the same command continues from the "
                "finished parts"
            )
        return found


def check_room(ray: Any, threads: int) -> bool:
    """Check that a node has enough CPUs; returns whether the cluster has GPUs.

    Raises:
        ValueError: no node has enough CPUs; a run would wait for ever.
    """
    widest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if threads > widest:
        raise ValueError(f"no node of the Ray cluster has {threads} CPUs for a run (the largest has {widest:g})")
    return bool(ray.cluster_resources().get("GPU", 0))
