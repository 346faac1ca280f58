"""Peak memory of a computation."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes of the tensors that a call creates and that are alive at one time.

    On a GPU the allocator counts them. Elsewhere the results of all operations are counted, those of the backward
    pass included; memory that a library takes inside one operation is not.

    Args:
        work: the call.
        device: its device.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    with _Living() as living:
        work()
    return int(living.peak)


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sum of the bytes of all storages that operations create, while they are alive, and its peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and id(one.untyped_storage()) not in given:
                self._add(one.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            self._now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self._now += size
        self.peak = max(self.peak, self._now)


def weight_bytes(*networks: nn.Module) -> int:
    """Bytes of the parameters and buffers of networks."""
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
