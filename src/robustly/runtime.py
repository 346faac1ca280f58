"""Devices, precision and processes; no other file imports Lightning Fabric, whose import takes seconds."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class RuntimeConfig:
    """Device, precision and number of processes.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "mps".
        precision: "32-true", or "bf16-mixed" (training in bfloat16, parameters and verdicts in float32).
        processes: processes of data-parallel training on this machine (under `torchrun` or SLURM: of each node).
        nodes: machines.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    processes: int = 1
    nodes: int = 1

    def check(self) -> None:
        """Reject settings that are not possible on this machine.

        Raises:
            ValueError: no processes, or a device that is not available.
        """
        if self.processes < 1 or self.nodes < 1:
            raise ValueError(f"processes and nodes must be at least 1, got {self.processes} and {self.nodes}")
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(self.device, True):
            here = ", ".join(["auto", "cpu", *(name for name, found in available.items() if found)])
            raise ValueError(f"device {self.device!r} is not available on this machine: use one of {here}")


class Runtime:
    """One process of a started group.

    Raises:
        ValueError: a device that is not available.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        from lightning_fabric import Fabric  # noqa: PLC0415 (slow to import, and only training needs it)
        from lightning_fabric.strategies.ddp import DDPStrategy  # noqa: PLC0415

        config.check()
        many = config.processes * config.nodes > 1
        self._fabric = Fabric(
            accelerator=config.device,
            strategy=DDPStrategy(find_unused_parameters=False) if many else "auto",
            devices=config.processes,
            num_nodes=config.nodes,
            precision=config.precision,
        )
        self._fabric.launch()

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self._fabric.device

    @property
    def rank(self) -> int:
        """Number of this process; process 0 writes the files."""
        return self._fabric.global_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._fabric.world_size

    def distribute(self, module: nn.Module, *optimizers: Optimizer) -> tuple[nn.Module, list[Optimizer]]:
        """Move to the device, and average gradients over processes: one forward, one backward pass per step."""
        wrapped, *wrapped_optimizers = self._fabric.setup(module, *optimizers)
        return wrapped, wrapped_optimizers

    def backward(self, loss: Tensor) -> None:
        """Back-propagate, with the loss scaled where the precision requires it."""
        self._fabric.backward(loss)

    def clip(self, module: nn.Module, optimizer: Optimizer, norm: float) -> None:
        """Clip the norm of the whole gradient; a gradient that is not finite is not changed."""
        self._fabric.clip_gradients(module, optimizer, max_norm=norm, error_if_nonfinite=False)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes."""
        return value if self.world_size == 1 else self._reduced(value, "mean")

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        return value if self.world_size == 1 else self._reduced(value, "sum")

    def _reduced(self, value: Tensor, how: str) -> Tensor:
        reduced: Any = self._fabric.all_reduce(value.clone(), reduce_op=how)
        return torch.as_tensor(reduced, device=value.device)

    def follow_first(self, module: nn.Module) -> None:
        """Copy the buffers of process 0 to all processes, because batch-norm statistics differ with the images."""
        if self.world_size > 1:
            for buffer in module.buffers():
                buffer.copy_(self._fabric.broadcast(buffer, src=0))

    def wait_for_all(self) -> None:
        """Block until all processes have called this."""
        self._fabric.barrier()

    def close(self) -> None:
        """Leave the process group, whose running threads would otherwise abort the exit."""
        self.wait_for_all()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
