"""The connection to a Ray cluster; Ray is imported when there is one."""

import importlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

PATIENCE = 10.0
"""Seconds that a cluster may take to accept a connection."""
JOIN = 60.0
"""Seconds that a cluster may take to let this machine join."""
ATTEMPTS, PAUSE = 3, 2.0
"""Attempts to connect to a cluster that aborts the connection, and the seconds between them."""
_CLIENT_PORT, _CLIENT = 10001, "ray://"
_FOUND_HERE = "ray", "auto", "local"
_FRAME = 9
"""Bytes of the head of a frame of HTTP/2 (RFC 9113, section 4.1)."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04" + bytes(5)
"""The beginning of a connection: the preface of a client, and settings that change nothing (section 3.4)."""


class ClusterError(ConnectionError):
    """A Ray cluster does not answer, or has lost a task for good."""


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
            if address in _FOUND_HERE:
                _init(ray, address)
            else:
                _join(ray, address)
    except TimeoutError:
        raise ClusterError(
            f"no Ray cluster at {given}: a service answers there, but this machine cannot join within {JOIN:.0f} s"
        ) from None
    except ImportError as error:
        raise ValueError(f"{given} needs the client of Ray: pip install 'ray[client]' ({error})") from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"no Ray cluster at {given}: {one_line_of(error)}") from None
    try:
        yield ray
    finally:
        with suppress(Exception):  # the cluster may be lost
            ray.shutdown()


def check_address(address: str, option: str) -> None:
    """Check that Ray is installed and that a service answers at an address, without joining it; see `connected`."""
    _package(option)
    _check_answers(*_resolved(address))


def _package(option: str) -> Any:
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # read once: a lost client must not start a cluster here
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


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Do some work in a thread, which is left alone if it takes too long; Ray has no limit of its own.

    Raises:
        TimeoutError: it takes longer.
        Exception: an error of the work.
    """
    errors: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            errors.append(None)
        except BaseException as error:  # raised by the caller, whatever it is
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not errors:
        raise TimeoutError
    if errors[0] is not None:
        raise errors[0]


def _join(ray: Any, address: str) -> None:
    """Connect to a cluster, again if it aborts the connection.

    The proxy of a cluster starts a process for each client, and aborts if that is not there soon enough, as on a
    machine with much other work.

    Raises:
        TimeoutError: an attempt takes longer than `JOIN`.
        Exception: an error of Ray.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            return _within(JOIN, lambda: _init(ray, address))
        except ConnectionAbortedError:
            if not left:
                raise
            with suppress(Exception):  # what is left of the attempt
                ray.shutdown()
            time.sleep(PAUSE)


def _init(ray: Any, address: str) -> None:
    if address != "ray":
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True)
        return
    try:
        _init(ray, "auto")
    except ConnectionError:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def _check_answers(address: str, given: str) -> None:
    """Refuse an address at which no service of Ray listens; Ray itself waits for minutes, or for ever.

    Raises:
        ValueError: an address without a host, or with a port that is not a number.
        ClusterError: nothing answers there, or another service does.
    """
    if address in _FOUND_HERE:
        return
    where = address.removeprefix(_CLIENT)
    is_page = where.startswith(("http:", "https:"))  # of the dashboard, which some commands of Ray take
    where = where.partition("/")[0]
    if address.startswith(_CLIENT) and ":" not in where:
        where = f"{where}:{_CLIENT_PORT}"
    host, _, port = where.rpartition(":")
    if is_page or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"the address of a Ray cluster is ray://HOST:PORT or HOST:PORT, got {given}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as connection:
            is_service = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _answers_as_grpc(connection)
    except OSError as error:
        reason = error.strerror or f"no answer within {PATIENCE:.0f} s"
        raise ClusterError(f"no Ray cluster at {given}: {reason}") from None
    if not is_service:
        raise ClusterError(f"no Ray cluster at {given}: another service answers there")


def _answers_as_grpc(connection: socket.socket) -> bool:
    """Return True if the first answer is a frame of settings of HTTP/2, as gRPC's servers give, those of Ray too.

    Raises:
        TimeoutError: no answer within `PATIENCE`.
    """
    connection.sendall(_PREFACE)
    deadline, found = time.monotonic() + PATIENCE, b""
    while len(found) < _FRAME:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        more = connection.recv(_FRAME - len(found))
        if not more:
            return False
        found += more
    return found[3:5] == b"\x04\x00"  # the type of the frame, and its flags


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


def one_line_of(error: object) -> str:
    """Message of an error on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]
