"""Evaluation with weights in shards: process 0 runs the work, and all processes take its passes.

Every process loads the model and keeps a share of its weights. Then process 0 works as a single process does, with
a `DividedModel` as its network. The others carry out its passes until it is done.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs do not export it
from torch.distributed.distributed_c10d import PrefixStore, Store

from robustly.evaluation.diagnostics.forced_routes import has_domains
from robustly.evaluation.parts import ALONE, Arrays, OnPart, Task, Work, no_report
from robustly.evaluation.shared_passes import Order, SharedPasses, Worker
from robustly.memory import is_out_of_memory
from robustly.models import weights_hash
from robustly.models.divided import DividedModel
from robustly.output_text import first_line
from robustly.processes import PATIENCE, Group, ProcessError, is_lost_process
from robustly.runtime import Place
from robustly.sharding import ShardingError, check_shardable, import_shards, leave_groups

T = TypeVar("T")
_END = "end"
_SEARCH = 10.0
"""Seconds for the cause of a pass that failed."""


class ServedError(Exception):
    """The work of another process than 0 with a model is over."""


class ShardedCrew:
    """Processes that hold one network together, for work that runs in process 0.

    Args:
        group: the processes.
        place: place of this process; None in process 0 if it has started the others.
    """

    size = 1

    def __init__(self, group: Group, place: Place | None = None) -> None:
        self._group, self._place = group, place
        self._store: Store | None = None
        self._orders = self._models = 0
        self._serves = False
        self._has_failed = False

    def divided(self, model: nn.Module, device: torch.device) -> nn.Module:
        """In process 0, the model whose passes all processes take; the others take part in them until the end.

        All processes call this with the same model, one after the other for several.

        Args:
            model: the whole model, on the CPU; it is changed.
            device: device of the passes.

        Raises:
            ShardingError: the model cannot be held in shards.
            ProcessError: another process has stopped, or has another model.
            ServedError: in other processes, once process 0 has ended the work with the model.
        """
        check_divisible(model)
        self.release()
        digest = self._agreed(weights_hash(model))
        self._join(device)
        worker = Worker(model, self._group.rank, self._group.size, device)
        if self._group.rank:
            self._serve(worker)
            raise ServedError
        self._serves = True

        def together(order: Order, rows: Tensor | None) -> Tensor | None:
            return self._together(worker, order, rows)

        return DividedModel(model, SharedPasses(worker, together, digest), digest)

    def release(self) -> None:
        """In process 0, end the work with the last model, if there is one."""
        if self._serves:
            self._serves = False
            self._post({"kind": _END})

    def close(self) -> None:
        """Leave the other processes, which end if this is process 0."""
        if not self._has_failed:
            self.release()
        if self._store is not None:
            leave_groups()
            self._store = None

    def share(
        self, task: Task, parts: Sequence[Arrays], work: Work, on_part: OnPart = no_report
    ) -> Iterator[Arrays]:
        """Results of all parts, of which process 0 carries out each."""
        return ALONE.share(task, parts, work, on_part)

    def finished(self, task: Task, parts: Sequence[Arrays]) -> Iterator[Arrays]:
        """Nothing is kept."""
        return iter(())

    def first(self, value: Callable[[], int]) -> int:
        """The number."""
        return value()

    def forget_parts(self) -> None:
        """Nothing is kept."""

    def _agreed(self, digest: str) -> str:
        """The hash of the weights, once all processes have the same."""
        store, key, group = self._group.store, f"weights/{self._models}", self._group
        self._models += 1
        if group.rank == 0:
            store.set(key, digest)
            group.wait_until(lambda: all(store.check([f"{key}/{rank}"]) for rank in range(1, group.size)))
        elif group.wait_for(key).decode() == digest:
            store.set(f"{key}/{group.rank}", "")
        else:
            raise ProcessError("its weights differ from those of process 0")
        return digest

    def _join(self, device: torch.device) -> None:
        """Join the group of `torch.distributed`, once."""
        if self._store is not None:
            return
        store = self._group.store
        if self._group.rank and self._place is not None:
            # a connection of its own, because waiting for an order must not delay the signs of life
            limit = timedelta(seconds=PATIENCE)
            own = TCPStore(self._place.address, self._place.port, is_master=False, timeout=limit)
            store = PrefixStore("robustly", own)
        self._store = PrefixStore("passes", store)
        import_shards()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=self._group.rank,
            world_size=self._group.size,
            timeout=timedelta(seconds=PATIENCE),
        )

    def _post(self, order: dict[str, object]) -> None:
        assert self._store is not None
        self._store.set(str(self._orders), json.dumps(order))
        if self._orders:  # all processes have read the one before
            self._store.delete_key(str(self._orders - 1))
        self._orders += 1

    def _serve(self, worker: Worker) -> None:
        while True:
            order = json.loads(self._next())
            if order["kind"] == _END:
                return
            try:
                worker.carry_out(Order.of(order))
            except Exception as error:
                if is_lost_process(error):
                    time.sleep(_SEARCH)  # else process 0 could take this process for the one that stopped
                else:
                    self._group.refuse(f"a pass failed in it ({_words(error)})")
                raise RuntimeError("the passes have ended") from error

    def _next(self) -> bytes:
        """The next order of process 0."""
        assert self._store is not None
        key = str(self._orders)
        self._orders += 1
        while True:
            try:
                self._store.wait([key], timedelta(seconds=PATIENCE))
                found: bytes = self._store.get(key)
                return found
            except dist.DistStoreError:  # process 0 computes something else for long
                continue

    def _together(self, worker: Worker, order: Order, rows: Tensor | None) -> Tensor | None:
        if self._has_failed:
            raise ProcessError("the processes that share the passes have ended")
        try:
            self._post(asdict(order))
            return worker.carry_out(order, rows)
        except Exception as error:
            self._has_failed = True
            if isinstance(error, ShardingError):
                raise
            raise self._cause(error, rows) from error

    def _cause(self, error: Exception, rows: Tensor | None) -> ProcessError:
        """The sentence on a pass that failed in process 0, perhaps because another process has stopped."""
        until = time.monotonic() + _SEARCH
        while is_lost_process(error) and time.monotonic() < until:
            try:
                self._group.check()
            except ProcessError as found:
                return found
            time.sleep(0.1)
        if is_lost_process(error):
            return ProcessError(f"another process does not answer any more; {self._group.advice}")
        count = 0 if rows is None else len(rows)
        return ProcessError(f"a pass of {count} images failed in process 0 ({_words(error)})")


def check_divisible(model: nn.Module) -> None:
    """Refuse models that cannot be evaluated in shards.

    Raises:
        ShardingError: see `check_shardable`; a model without weights, or one whose parts attacks call one by one.
    """
    if next(model.parameters(), None) is None:
        raise ShardingError("runtime.strategy fsdp: the model has no weights to divide: leave it out")
    if has_domains(model):
        raise ShardingError(
            "runtime.strategy fsdp: attacks call the branches of a network with threat domains one by one, which "
            "needs whole weights: leave it out"
        )
    check_shardable({"model": model})


def divided(model: nn.Module, crew: object, device: torch.device) -> nn.Module:
    """The model, held by all processes together if the crew is a `ShardedCrew`; see its `divided`."""
    return crew.divided(model, device) if isinstance(crew, ShardedCrew) else model


def _words(error: Exception) -> str:
    if is_out_of_memory(error):
        return "there is not enough memory: set a smaller --evaluation.batch_size"
    return first_line(error)
