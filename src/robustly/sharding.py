"""Networks in shards (FSDP): each process holds a share of weights, gradients and optimiser state."""

import atexit
import gc
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from robustly.models.blocks import repeated_blocks
from robustly.models.layout import contiguous


class ShardingError(ValueError):
    """A network that cannot be held in shards."""


def check_shardable(networks: Mapping[str, nn.Module]) -> None:
    """Refuse networks that cannot be held in shards.

    Args:
        networks: the trained networks by name.

    Raises:
        ShardingError: a TorchScript program, a parameter without dimensions, or one that two networks share.
    """
    owners: dict[nn.Parameter, str] = {}
    for name, network in networks.items():
        if isinstance(network, torch.jit.ScriptModule):
            raise ShardingError(f"runtime.strategy fsdp: the {name} is a TorchScript program: set it to ddp")
        for place, parameter in network.named_parameters():
            if parameter.ndim == 0:
                raise ShardingError(
                    f"runtime.strategy fsdp: the parameter {place} of the {name} is a single number without "
                    "dimensions: give it the shape (1,), or set the strategy to ddp"
                )
            other = owners.setdefault(parameter, name)
            if other != name:
                raise ShardingError(
                    f"runtime.strategy fsdp: the {name} and the {other} share the parameter {place}: set it to ddp"
                )


def shard(
    network: nn.Module,
    processes: int,
    device: torch.device | None = None,
    *,
    follows: bool = True,
    root_stays: bool = True,
) -> None:
    """Replace the parameters of a network by shards along their first dimension, one for each process.

    PyTorch's `fully_shard` (Zhao et al., "PyTorch FSDP", VLDB 2023; its second version). In a forward or backward
    pass the weights of one block at a time are whole, and so are those outside of blocks. Gradients are means over
    processes. All processes must take the same passes. Names in the state dict stay.

    Args:
        network: the network, changed in place.
        processes: number of processes, which have joined a group of `torch.distributed`.
        device: device of the shards, to which one block after the other is moved; None for that of the network.
        follows: whether the values become those of process 0; else they are the same in all processes already.
        root_stays: whether weights outside of blocks stay whole between a forward and a backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 (slow to import)
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    for parameter in network.parameters():
        parameter.data = contiguous(parameter.data)  # as shards are
        if follows:
            torch.distributed.broadcast(parameter.data, src=0)
    if follows:
        follow_first(list(network.buffers()))
    kind = (device or next(network.parameters()).device).type
    mesh = init_device_mesh(kind, (processes,))
    for block in repeated_blocks(network).values():
        if _owns_its_parameters(block, network):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=not root_stays)


def import_shards() -> None:
    """Import what `shard` needs, before this process joins a group.

    Some functions of PyTorch have the group that there is at their import as a default, and would keep it until the
    exit.
    """
    importlib.import_module("torch.distributed.fsdp")


def leave_groups() -> None:
    """Leave all process groups, and end their threads once the caller has dropped the networks in shards.

    PyTorch keeps the meshes of shards in caches until the exit, and each mesh keeps its group. A thread of a group
    that still runs while Python exits can abort the process.
    """
    from torch.distributed.device_mesh import DeviceMesh  # noqa: PLC0415 (slow to import)

    torch.distributed.destroy_process_group()
    for mesh in [found for found in gc.get_objects() if type(found) is DeviceMesh]:
        getattr(mesh, "_pg_registry", {}).clear()
    gc.collect()
    atexit.register(gc.collect)  # what the caller still holds now, networks in cycles


def _owns_its_parameters(block: nn.Module, network: nn.Module) -> bool:
    """True if no other module of the network has a parameter of the block (tied weights)."""
    inside, own = set(block.modules()), set(block.parameters())
    others = (module for module in network.modules() if module not in inside)
    return bool(own) and not any(p in own for module in others for p in module.parameters(recurse=False))


@contextmanager
def whole_weights(*networks: nn.Module) -> Iterator[None]:
    """In the block, every process holds the whole weights of sharded networks, as ordinary parameters.

    Processes may take different numbers of passes then, which use no communication. The weights must not change.
    All processes enter and leave the block together.

    Args:
        networks: networks of `shard`; others are left as they are.
    """
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415 (slow to import)

    units = [
        (module, module is network)
        for network in networks
        for module in network.modules()
        if isinstance(module, FSDPModule)
    ]
    try:
        for unit, _ in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.set_reshard_after_backward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit, is_root in units:
            unit.set_reshard_after_forward(not is_root, recurse=False)
            unit.set_reshard_after_backward(True, recurse=False)
            unit.reshard()


def output_of_shards(module: nn.Module, *given: Any) -> Any:
    """Output of a module whose networks are in shards.

    Raises:
        ShardingError: a network uses weights outside of the module that they belong to.
    """
    try:
        return module(*given)
    except RuntimeError as error:
        if "mixed torch.Tensor and DTensor" not in str(error):
            raise
        raise ShardingError(
            "runtime.strategy fsdp: a network or a part of the method uses weights outside of the forward pass "
            "of the block that they belong to, where they are shards: set it to ddp"
        ) from error


class ShardedModule(nn.Module):
    """A module whose networks are in shards, with the precision and the buffers that data parallelism has.

    Args:
        module: the module.
        precision: returns a context of passes in the precision of the run.
        is_mixed: whether passes are in bfloat16; outputs are float32 then.
    """

    def __init__(
        self, module: nn.Module, precision: Callable[[], AbstractContextManager[Any]], is_mixed: bool
    ) -> None:
        super().__init__()
        self.module = module
        self._precision, self._is_mixed, self._follows = precision, is_mixed, True

    def forward(self, *given: Any) -> Any:
        """Output of the module; its buffers are those of process 0 before the pass.

        Raises:
            ShardingError: a network uses weights outside of the module that they belong to.
        """
        if self._follows:
            follow_first(list(self.module.buffers()))
        with self._precision():
            if self._is_mixed:  # a cache of converted weights would hold whole ones; the context restores this
                torch.set_autocast_cache_enabled(False)
            output = output_of_shards(self.module, *given)
        return tree_map(_as_float32, output) if self._is_mixed else output

    @contextmanager
    def following(self, more: bool) -> Iterator[None]:
        """In the block, one pass; if `more` is True, the next one is of the same step and keeps its buffers."""
        yield
        self._follows = not more


@torch.no_grad()
def follow_first(tensors: Sequence[Tensor]) -> None:
    """Copy tensors of process 0 to all processes."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        torch.distributed.broadcast(flat, src=0)
        for tensor, values in zip(same, torch.split(flat, [one.numel() for one in same]), strict=True):
            tensor.copy_(values.view_as(tensor))


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def whole(value: Any, keep: bool = True) -> Any:
    """Nested values with the whole tensors, on the CPU, in place of shards; all processes call this together.

    Args:
        value: tensors, and mappings and lists of them; other values are returned as they are.
        keep: whether this process uses the result; else whole tensors are empty ones, which need no memory.
    """
    return _mapped(value, lambda tensor: _gathered(tensor, keep))


def _mapped(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return convert(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, convert) for key, item in value.items()}
    return [_mapped(item, convert) for item in value] if isinstance(value, list) else value


def _gathered(tensor: Tensor, keep: bool) -> Tensor:
    if not is_shard(tensor):
        return tensor
    full: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return full.cpu() if keep else full.new_empty(0)


def is_shard(value: object) -> bool:
    """Return True for a tensor of which each process holds a share."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor; a tensor that is not in shards is returned as it is."""
    return tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def shards_like(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors as shards where another state has a shard of the same name and shape.

    Args:
        tensors: whole tensors, the same in all processes.
        like: a state dict with shards.
    """
    return {name: _shard_like(tensor, like.get(name)) for name, tensor in tensors.items()}


def _shard_like(tensor: Tensor, like: Any) -> Tensor:
    """This process's rows of a whole tensor, which every process has read from the same file."""
    if not is_shard(like) or is_shard(tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 (slow to import)

    mesh, own = like.device_mesh, like.to_local()
    first = mesh.get_local_rank() * -(-len(tensor) // mesh.size())
    rows = tensor[first : first + len(own)].to(own.device, copy=True).contiguous()
    whole_like = tensor.contiguous()
    return DTensor.from_local(
        rows, mesh, like.placements, run_check=False, shape=tensor.shape, stride=whole_like.stride()
    )


def sharded_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """State dict of an optimiser with shards in place of whole tensors, where its parameters are shards.

    Args:
        optimizer: the optimiser that the state is for.
        state: whole state dict, the same in all processes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        place: {
            key: _shard_like(value, parameters[place])
            if isinstance(value, Tensor) and isinstance(place, int) and place < len(parameters)
            else value
            for key, value in values.items()
        }
        for place, values in state["state"].items()
    }
    return {**state, "state": entries}
