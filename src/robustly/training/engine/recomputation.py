"""Activation checkpointing: activations of a network's blocks are computed again in the backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from robustly.models.blocks import long_sequences, pieces, repeated_blocks
from robustly.training.engine.replaced_forward import forward_replaced

Forward = Callable[..., Any]


class RecomputationError(ValueError):
    """A network whose activations cannot be computed again."""


def check_blocks(network: nn.Module, name: str) -> None:
    """Refuse a network without blocks.

    Args:
        network: the network.
        name: its name in messages.

    Raises:
        RecomputationError: it is a TorchScript program, or has no blocks.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise RecomputationError(
            f"training.recompute_activations: the {name} is a TorchScript program, whose blocks cannot be entered: "
            "set it to false"
        )
    if not repeated_blocks(network) and not long_sequences(network):
        raise RecomputationError(
            f"training.recompute_activations: the {name} ({type(network).__name__}) has no blocks, neither two "
            "modules of one class with layers inside nor an nn.Sequential of four layers: set it to false"
        )


@contextmanager
def recomputed_activations(network: nn.Module) -> Iterator[None]:
    """Keep the inputs of a network's blocks only, and compute the rest again in the backward pass, in the block.

    Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174. Blocks are those of
    `repeated_blocks`; without any, each `Sequential` of four layers or more is divided into about the square root
    of their number of pieces. Passes without gradient are not changed. The second pass has the random numbers and
    the modes and buffers of the first one, and leaves batch-norm statistics as they are. Gradients and statistics
    are those of an ordinary run, on the CPU bit for bit.

    Args:
        network: the network; its modules and names stay as they are.
    """
    blocks = {} if isinstance(network, torch.jit.ScriptModule) else repeated_blocks(network)
    with ExitStack() as held:
        for name, block in blocks.items():
            held.enter_context(forward_replaced(block, partial(_recomputed, [block], name, block.forward)))
        if not blocks and not isinstance(network, torch.jit.ScriptModule):
            for name, layers in long_sequences(network).items():
                held.enter_context(forward_replaced(layers, partial(_in_pieces, layers, name)))
        yield


def _in_pieces(layers: nn.Sequential, name: str, x: Any) -> Any:
    for piece in pieces(layers):
        x = _recomputed(piece, name, partial(_chained, piece), x)
    return x


def _chained(layers: Sequence[nn.Module], x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def _recomputed(block: Sequence[nn.Module], name: str, forward: Forward, *given: Any, **named: Any) -> Any:
    """Output of a block, whose activations are computed again in the backward pass."""
    inputs = [value for value in tree_leaves((given, named)) if isinstance(value, Tensor)]
    parameters = (p for layer in block for p in layer.parameters())
    if not torch.is_grad_enabled() or not any(value.requires_grad for value in (*inputs, *parameters)):
        return forward(*given, **named)
    state = _State([module for layer in block for module in layer.modules()], inputs, name)
    output = checkpoint(forward, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), state), **named)
    state.refuse_changed_inputs()
    return output


class _State:
    """State of a block before its first pass, which the second one has again: a context that is entered repeatedly.

    Args:
        modules: all modules of the block.
        inputs: tensors that the block receives.
        name: its name in messages.
    """

    def __init__(self, modules: Sequence[nn.Module], inputs: Sequence[Tensor], name: str) -> None:
        self._name = name
        self._flags = _flags_of(modules)
        self._inputs = [(value, value._version) for value in inputs if not value.is_inference()]
        # running statistics, and the vectors of spectral normalisation, change in a pass
        self._buffers = [
            (module._buffers, key, buffer.detach().clone())
            for module in modules
            for key, buffer in module._buffers.items()
            if buffer is not None
        ]

    def refuse_changed_inputs(self) -> None:
        """Refuse a block whose inputs have other values than before its first pass.

        Raises:
            RecomputationError: an in-place operation has changed one.
        """
        if any(value._version != version for value, version in self._inputs):
            raise RecomputationError(
                f"training.recompute_activations: an in-place operation changes the input of the block "
                f"{self._name or 'of all layers'}, which the second pass needs: use inplace=False in the network, "
                "or set it to false"
            )

    def __enter__(self) -> None:
        """Give the block its modes of before, and copies of its buffers, which the second pass changes."""
        self.refuse_changed_inputs()
        self._later_flags = _flags_of([module for module, _, _ in self._flags])
        self._later_buffers = [(holder, key, holder[key]) for holder, key, _ in self._buffers]
        for module, name, flag in self._flags:
            setattr(module, name, flag)
        for holder, key, value in self._buffers:
            holder[key] = value.clone()

    def __exit__(self, *reason: object) -> None:
        """Give the block back its present modes and buffers."""
        for module, name, flag in self._later_flags:
            setattr(module, name, flag)
        for holder, key, buffer in self._later_buffers:
            holder[key] = buffer


def _flags_of(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, str, bool]]:
    """Modes of modules, and of normalisations whether they update their running statistics."""
    names = ("training", "track_running_stats")
    return [(module, name, getattr(module, name)) for module in modules for name in names if hasattr(module, name)]
