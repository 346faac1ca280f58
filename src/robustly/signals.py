"""Ctrl-C while other processes begin, and in processes that another one has started."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STARTED_BY = "ROBUSTLY_STARTED_BY"
"""Variable with the number of the process that has started this one for a training run, and that prints for it."""


@contextmanager
def without_interruption() -> Iterator[None]:
    """Ignore Ctrl-C, so that processes that begin here ignore it from their first moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
