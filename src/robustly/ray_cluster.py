"""A Ray cluster whose workers carry out tasks; Ray is imported when a cluster is used."""

import importlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

RETRIES = 3
PATIENCE = 10.0
"""Seconds that a cluster may take to accept a connection."""
NO_NODE = 60.0
"""Seconds that a cluster may be without a node for a task."""
_CLIENT_PORT, _CLIENT = 10001, "ray://"


class ClusterError(ConnectionError):
    """A Ray cluster does not answer, or has lost a task for good."""


@dataclass(frozen=True)
class Cluster:
    """A connected Ray cluster.

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
        return bool(self.ray.cluster_resources().get("GPU", 0))

    def slots(self) -> int:
        """Number of tasks that all nodes together can carry out at a time; nodes may join and leave."""
        rooms = (node["Resources"] for node in self.ray.nodes() if node["Alive"])
        return sum(self._room(resources) for resources in rooms)

    def _room(self, resources: Mapping[str, float]) -> int:
        room = int(resources.get("CPU", 0) // self.threads)
        return room if self.gpus == 0 else min(room, int(resources.get("GPU", 0) // self.gpus))

    def put(self, value: object) -> Any:
        """Send a value to the cluster once; returns the reference that tasks take in its place.

        Raises:
            ClusterError: its object store has no room for it, on the disk neither.
        """
        try:
            return self.ray.put(value)
        except self.ray.exceptions.RayError as error:
            raise ClusterError(f"the object store of the Ray cluster takes no more: {_line(error)}") from None

    def submit(self, function: Callable[..., object], *arguments: object) -> Any:
        """Begin a task; returns the reference of its result.

        If its worker or node is lost, Ray begins it again on another one, up to `RETRIES` times.

        Args:
            function: function of a module.
            arguments: values that can be pickled.
        """
        task = self.ray.remote(max_retries=RETRIES, num_cpus=self.threads, num_gpus=self.gpus)(function)
        return task.remote(*arguments)

    def finished(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """References of the tasks that have ended, after at most some seconds if none has."""
        found: list[Any] = self.ray.wait(list(references), num_returns=1, timeout=seconds)[0]
        return found

    def result(self, reference: Any) -> Any:
        """The result of a task.

        Raises:
            ClusterError: the task was lost too often, or a worker cannot begin it.
        """
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            reason = f"{type(error.cause).__name__}: {error.cause}" if error.cause is not None else str(error)
            raise ClusterError(f"a worker of the Ray cluster cannot take part ({_line(reason)})") from None
        except self.ray.exceptions.RayError as error:
            raise ClusterError(
                f"the Ray cluster has lost a task {RETRIES + 1} times ({type(error).__name__}: {_line(error)}); "
                "the same command continues from the finished parts"
            ) from None

    def cancel(self, references: Sequence[Any]) -> None:
        """End tasks whose results are of no use any more."""
        for reference in references:
            self.ray.cancel(reference, force=True)


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


@contextmanager
def connected(address: str, option: str) -> Iterator[Any]:
    """Connect to a Ray cluster; yields the package `ray`.

    Args:
        address: `ray://HOST:PORT` of a client, `HOST:PORT` of a cluster of which this machine is a node, "auto" for
            the cluster of this machine or of the variable `RAY_ADDRESS`, "local" to start one here, or "ray" for
            the cluster of "auto" if there is one, and else a new one here.
        option: the option that names it, for messages.

    Raises:
        ValueError: Ray is not installed.
        ClusterError: the cluster does not answer.
    """
    ray, (address, given) = _package(option), _resolved(address)
    _check_answers(address, given)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _signals_kept():
            _init(ray, address)
    except ImportError as error:
        raise ValueError(f"{given} needs the client of Ray: pip install 'ray[client]' ({error})") from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"no Ray cluster at {given}: {_line(error)}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str, option: str) -> None:
    """Check that Ray is installed and that something answers at an address, without connecting; see `connected`."""
    _package(option)
    _check_answers(*_resolved(address))


def _package(option: str) -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(f"{option} needs the package ray: pip install 'robustly[ray]'") from error


def _resolved(address: str) -> tuple[str, str]:
    """The address, and the words for it in messages."""
    if address in ("ray", "auto") and os.environ.get("RAY_ADDRESS"):
        found = os.environ["RAY_ADDRESS"]
        return found, f"{found} (the variable RAY_ADDRESS)"
    return address, address


def _init(ray: Any, address: str) -> None:
    if address != "ray":
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True)
        return
    try:
        _init(ray, "auto")
    except ConnectionError:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def _check_answers(address: str, given: str) -> None:
    """Refuse an address that no process listens at; Ray itself waits for minutes.

    Raises:
        ValueError: an address without a host, or with a port that is not a number.
        ClusterError: nothing answers there.
    """
    if address in ("ray", "auto", "local"):
        return
    where = address.removeprefix(_CLIENT).partition("/")[0]
    if address.startswith(_CLIENT) and ":" not in where:
        where = f"{where}:{_CLIENT_PORT}"
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"the address of a Ray cluster is ray://HOST:PORT or HOST:PORT, got {given}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except OSError as error:
        reason = error.strerror or f"no answer within {PATIENCE:.0f} s"
        raise ClusterError(f"no Ray cluster at {given}: {reason}") from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces by one that ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_room(ray: Any, threads: int) -> bool:
    """Check that a node has enough CPUs; returns whether the cluster has GPUs.

    Raises:
        ValueError: no node has enough CPUs; a run would wait for ever.
    """
    widest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if threads > widest:
        raise ValueError(f"no node of the Ray cluster has {threads} CPUs for a run (the largest has {widest:g})")
    return bool(ray.cluster_resources().get("GPU", 0))


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
