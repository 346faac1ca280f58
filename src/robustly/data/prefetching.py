"""The next batch of an iterator, prepared by a thread while the one before it is used."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_WAIT = 0.05  # seconds after which a thread checks whether it is to stop


@dataclass(frozen=True)
class _Prepared(Generic[T]):
    """An item, or the error or the end of the iterator; with the event of the device after which it is there."""

    item: T | None = None
    error: BaseException | None = None
    ready: Any = None
    is_last: bool = False


def prefetched(items: Iterator[T], device: torch.device, tensors: Callable[[T], Iterable[Tensor]]) -> Iterator[T]:
    """The items of an iterator in their order, the next one prepared by a thread.

    On a GPU the thread queues its copies and operations on a stream of its own, so that they run beside those of
    the caller. At most three items exist at a time: one in use, one waiting, one in preparation. The thread ends
    with the iterator, also if the caller leaves it early.

    Args:
        items: the iterator; used by the thread alone from the first item on.
        device: device of the items.
        tensors: the tensors of an item, whose memory the device keeps until the caller's work on them is done.

    Raises:
        Exception: an error of the iterator, at the item where it occurs.
    """
    stream: Any = None
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))  # what the items are made of may still be queued
    waiting: Queue[_Prepared[T]] = Queue(maxsize=1)
    stop = threading.Event()
    thread = threading.Thread(target=_prepare, args=(items, stream, waiting, stop), daemon=True, name="batches")
    thread.start()
    try:
        while not (found := waiting.get()).is_last:
            if found.error is not None:
                raise found.error
            assert found.item is not None
            if found.ready is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(found.ready)
                for tensor in tensors(found.item):
                    tensor.record_stream(current)
            yield found.item
    finally:
        stop.set()
        with suppress(Empty):
            waiting.get_nowait()  # a thread that waits for room
        thread.join()


def _prepare(items: Iterator[T], stream: Any, waiting: "Queue[_Prepared[T]]", stop: threading.Event) -> None:
    """Put the items into a queue, until they end or the caller stops."""
    found: _Prepared[T]
    while not stop.is_set():
        try:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                item = next(items)
                found = _Prepared(item, ready=None if stream is None else stream.record_event())
        except StopIteration:
            found = _Prepared(is_last=True)
        except BaseException as error:  # raised again in the thread of the caller
            found = _Prepared(error=error)
        while not stop.is_set():
            try:
                waiting.put(found, timeout=_WAIT)
                break
            except Full:
                continue
        if found.is_last or found.error is not None:
            return
