"""Signals that end a command cleanly, and output that may be lost without ending it."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
LOST = (errno.EPIPE, errno.EIO)  # the reader of a pipe, or the terminal, has gone


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP; handled like Ctrl-C, so that files are completed and the status is true.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` in the main thread on SIGTERM and SIGHUP.

    The second signal is ignored: launchers send the same one to a group and to each process, and it must not cut
    off the files that the first one completes. Signals that are ignored stay ignored, as SIGHUP under `nohup`.
    Nothing changes in other threads than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) != 2:
            raise Stopped(number)

    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


@contextmanager
def lasting_output() -> Iterator[None]:
    """Drop what is printed once the reader of the output has gone (`| head`); the command continues."""
    before = sys.stdout, sys.stderr
    wrapped: list[Any] = [None if stream is None else _LastingStream(stream) for stream in before]
    sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        for stream in wrapped:
            with suppress(OSError, AttributeError):
                stream.flush()
        sys.stdout, sys.stderr = before


class _LastingStream:
    """A text stream that writes to nowhere once its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; returns its length."""
        with self._whatever_is_lost():
            return self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write out what is held back."""
        with self._whatever_is_lost():
            self._stream.flush()

    @contextmanager
    def _whatever_is_lost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in LOST:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            with suppress(OSError):
                os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
