"""Devices, precision and processes; no other file imports Lightning Fabric, whose import takes seconds."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustly.memory import is_out_of_memory
from robustly.sharding import (
    ShardedModule,
    check_shardable,
    import_shards,
    leave_groups,
    shard,
    whole,
    whole_weights,
)

T = TypeVar("T")
_ONE_OF = (
    "runtime.compile does not go with runtime.{other}, as both rule the passes of the attack: set one of them only"
)


@dataclass(frozen=True)
class RuntimeConfig:
    """Device, precision and number of processes.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "mps".
        precision: "32-true", or "bf16-mixed" (training in bfloat16, parameters and verdicts in float32).
        processes: processes that train or evaluate on this machine (under `torchrun` or SLURM: of each node).
        nodes: machines.
        strategy: what several processes hold: "ddp" (each of them everything), or "fsdp" (a share of weights,
            gradients and optimiser state each, see `robustly.sharding`).
        graphs: whether the passes of the training attack are captured once and replayed (CUDA graphs), where a GPU
            is there and the network allows it. Not for modes that update statistics or draw dropout in the attack.
        compile: whether passes of attacks, in training and in evaluation, are compiled by `torch.compile`, where a
            compiler is there and the network allows it. Verdicts are those of the uncompiled network.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    processes: int = 1
    nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    graphs: bool = False
    compile: bool = False

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

    def check_training(self) -> None:
        """Reject settings that are not possible for training on this machine.

        Raises:
            ValueError: as `check`; "fsdp" with one process, or on a device other than the CPU and GPUs of CUDA; two
                of graphs, compile and "fsdp".
        """
        self.check()
        if self.strategy == "fsdp":
            self.check_shards(self.processes * self.nodes)
        if self.strategy == "fsdp" and self.graphs:
            raise ValueError(
                "runtime.graphs captures passes through weights that stay in their place, and with "
                "runtime.strategy fsdp they are collected for each step: set graphs to false, or strategy to ddp"
            )
        if self.compile and self.graphs:
            raise ValueError(_ONE_OF.format(other="graphs true"))

    def check_shards(self, processes: int) -> None:
        """Refuse weights in shards where they are not possible.

        Args:
            processes: number of processes.

        Raises:
            ValueError: one process, a device other than the CPU and GPUs of CUDA, or compiled passes.
        """
        if self.compile:
            raise ValueError(_ONE_OF.format(other="strategy fsdp"))
        if processes == 1:
            raise ValueError(
                "runtime.strategy fsdp divides weights, gradients and optimiser state among processes, and there "
                "is one: set runtime.processes to at least 2, or strategy to ddp"
            )
        if device_of(self).type == "mps":
            raise ValueError("runtime.strategy fsdp needs the device cpu or cuda: set strategy to ddp")


@dataclass(frozen=True)
class Place:
    """Place of a process among those that work together.

    Args:
        rank: its number; process 0 leads.
        local_rank: its number on its machine, which is that of its GPU.
        size: number of processes.
        address: name of the machine of process 0.
        port: port of the store.
        port_is_taken: whether the store exists already, and process 0 need not make it.
    """

    rank: int
    local_rank: int
    size: int
    address: str
    port: int
    port_is_taken: bool = True


def place_in_cluster() -> Place | None:
    """Place of this process if torchrun or SLURM started several; None otherwise.

    Raises:
        ValueError: variables of SLURM that are not numbers, or contradict each other.
    """
    if not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"} & set(os.environ):
        return None
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # noqa: PLC0415 (slow to import)
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment  # noqa: PLC0415

    place = None
    if TorchElasticEnvironment.detect():
        here = TorchElasticEnvironment()
        own_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        numbers = here.global_rank(), here.local_rank(), here.world_size()
        place = Place(*numbers, here.main_address, here.main_port, own_store)
    elif SLURMEnvironment.detect():  # its constructor refuses `srun -n 2` without --ntasks-per-node
        size = _slurm("NTASKS")
        if size > 1:
            nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
            address = os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
            place = Place(_slurm("PROCID"), _slurm("LOCALID", 0), size, address, _slurm_port(), False)
            if place.rank >= size:
                raise ValueError(
                    f"the variable SLURM_PROCID is {place.rank}, and SLURM_NTASKS is {size}: start with srun"
                )
    return place if place is not None and place.size > 1 else None


def _slurm(name: str, missing: int | None = None) -> int:
    text = os.environ.get(f"SLURM_{name}")
    if text is None and missing is not None:
        return missing
    if text is None or not text.isdecimal():
        raise ValueError(f"the variable SLURM_{name} should be a whole number, but is {text!r}: start with srun")
    return int(text)


def _slurm_port() -> int:
    """A port that all processes of a step agree on, and other jobs and steps hardly use."""
    given = os.environ.get("MASTER_PORT")
    if given is not None and given.isdecimal():
        return int(given)
    return 15000 + (_slurm("JOB_ID", 0) + 37 * _slurm("STEP_ID", 0)) % 10000


def use_own_gpu(place: Place) -> None:
    """Show this process one GPU, that of its number; must come before the first use of CUDA.

    With more processes than GPUs, several share one.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else [str(number) for number in range(torch.cuda.device_count())]
    if names and names != [""]:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[place.local_rank % len(names)]


def device_of(config: RuntimeConfig) -> torch.device:
    """The device of a single process.

    Raises:
        ValueError: a device that is not available.
    """
    config.check()
    if config.device != "auto":
        return torch.device("cuda", 0) if config.device == "cuda" else torch.device(config.device)
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps", 0) if torch.backends.mps.is_available() else torch.device("cpu")


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class DeviceError(OSError):
    """A device that does not answer any more."""


def check_device(device: torch.device) -> None:
    """Check that a device computes still; called after an error, which may be that of a lost device.

    Raises:
        DeviceError: it does not.
    """
    try:
        answer = float((torch.ones(2, device=device) + 1).sum())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise DeviceError(f"the device {device} does not answer any more ({reason})") from error
    if answer != 4:
        raise DeviceError(f"the device {device} does not compute any more: 1 + 1 is {answer / 2:g}")


def raise_if_lost(error: BaseException, device: torch.device | None = None) -> None:
    """After an error of any work, raise that of a lost device if there is one.

    An error of CUDA is one, unless a GPU is there that computes still: some errors are those of a single call.

    Args:
        error: the error.
        device: the device of the work; None for the GPU, if there is one.

    Raises:
        DeviceError: the device does not answer any more.
    """
    if isinstance(error, DeviceError):
        raise error
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    if device is not None:
        check_device(device)
    if (device is None or device.type == "cpu") and _is_of_cuda(error):  # PyTorch does not see the GPU any more
        reason = " ".join(str(error).split())[:120]
        raise DeviceError(f"the GPU does not answer any more ({reason})") from error


def with_lost_device(error: Exception) -> Exception:
    """The error, or that of a lost device in its place; see `raise_if_lost`."""
    try:
        raise_if_lost(error)
    except DeviceError as lost:
        return lost
    return error


def _is_of_cuda(error: BaseException) -> bool:
    named = type(error).__name__ == "AcceleratorError" or str(error).startswith("CUDA error")
    return isinstance(error, RuntimeError) and named and not is_out_of_memory(error)


class Runtime:
    """One process of a started group.

    Attributes:
        graphs: whether the passes of the training attack are captured.
        compiles: whether they are compiled.

    Raises:
        ValueError: a device that is not available.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        from lightning_fabric import Fabric  # noqa: PLC0415 (slow to import, and only training needs it)
        from lightning_fabric.strategies.ddp import DDPStrategy  # noqa: PLC0415

        config.check_training()
        many = config.processes * config.nodes > 1
        self._is_sharded, self._is_mixed = config.strategy == "fsdp", config.precision == "bf16-mixed"
        self._fabric = Fabric(
            accelerator=config.device,
            strategy=DDPStrategy(find_unused_parameters=False) if many else "auto",
            devices=config.processes,
            num_nodes=config.nodes,
            precision=config.precision,
        )
        if self._is_sharded:
            import_shards()
        self._fabric.launch()
        self.graphs, self.compiles = config.graphs, config.compile

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

    @property
    def is_sharded(self) -> bool:
        """True if each process holds a share of the weights (FSDP)."""
        return self._is_sharded

    def shard(self, networks: Mapping[str, nn.Module]) -> None:
        """Replace the parameters of networks by shards where the strategy is "fsdp".

        Must come before optimisers are made. Like data parallelism, all processes start from the weights of process
        0.

        Args:
            networks: the trained networks by name; moved to the device and changed in place.

        Raises:
            ShardingError: a network that cannot be held in shards.
        """
        if not self._is_sharded:
            return
        check_shardable(networks)
        for network in networks.values():
            shard(network.to(self.device), self.world_size)

    def whole_weights(self, *networks: nn.Module) -> AbstractContextManager[None]:
        """In the block, hold the whole weights of networks; see `robustly.sharding.whole_weights`."""
        return whole_weights(*networks) if self._is_sharded else nullcontext()

    def whole(self, value: T) -> T:
        """Nested values with whole tensors in place of shards, for process 0; all processes call this together."""
        found: T = whole(value, self.rank == 0) if self._is_sharded else value
        return found

    def distribute(self, module: nn.Module, *optimizers: Optimizer) -> tuple[nn.Module, list[Optimizer]]:
        """Move to the device, and average gradients over processes: one forward, one backward pass per step.

        Networks in shards average their gradients themselves.
        """
        if self._is_sharded:
            return ShardedModule(module, self._fabric.autocast, self._is_mixed), list(optimizers)
        wrapped, *wrapped_optimizers = self._fabric.setup(module, *optimizers)
        return wrapped, wrapped_optimizers

    def backward(self, loss: Tensor) -> None:
        """Back-propagate, with the loss scaled where the precision requires it."""
        self._fabric.backward(loss)

    def alone(self, module: nn.Module, more: bool) -> AbstractContextManager[Any]:
        """In the block, a backward pass leaves its gradients in this process; one outside of it averages them.

        Gradients in shards are averaged in every pass, because whole ones would need the memory.

        Args:
            module: as `distribute` returns it.
            more: whether passes of the same step follow.
        """
        if isinstance(module, ShardedModule):
            return module.following(more)
        if self.world_size == 1:
            return nullcontext()
        wrapped: Any = module  # as `distribute` returns it
        return self._fabric.no_backward_sync(wrapped, enabled=True)

    def begin_again(self, module: nn.Module) -> None:
        """After a pass that failed in some process: the next one begins as the first of a step in all of them.

        Data parallelism copies buffers of process 0 in a pass that follows a reduction of gradients, and a process
        that failed in its first pass has not done so.
        """
        inner: Any = getattr(module, "_forward_module", module)
        if self.world_size > 1 and hasattr(inner, "require_forward_param_sync"):
            inner.require_forward_param_sync = True

    def clip(self, module: nn.Module, optimizer: Optimizer, norm: float) -> None:
        """Clip the norm of the whole gradient; a gradient that is not finite is not changed."""
        if self._is_sharded:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, norm, error_if_nonfinite=False)
            return
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
            leave_groups()
