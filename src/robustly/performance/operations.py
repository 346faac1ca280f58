"""Counted arithmetic operations of passes, by which speeds of different networks and devices compare."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robustly.performance.passes import KINDS, Copies, bare_pass


def counted_operations(work: Callable[[], object]) -> int:
    """Products and sums of matrix products and convolutions in a call; other operations are not counted."""
    with _Counter() as counter:
        work()
    return int(counter.total)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sum of the operations of everything that PyTorch computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def operations_of(model: nn.Module, x: Tensor, precision: str) -> dict[str, int]:
    """Operations of each kind of pass for one image; kinds that fail are left out.

    Args:
        model: the network, which is not changed.
        x: a batch of images, `(N, ...)`.
        precision: its own precision; see `PassTime`.
    """
    copies, found = Copies(model, {}), dict[str, int]()
    for kind in KINDS:
        try:
            found[kind] = counted_operations(bare_pass(copies, x, kind, precision, "contiguous")) // len(x)
        except Exception:  # the network is the user's
            continue
    return found
