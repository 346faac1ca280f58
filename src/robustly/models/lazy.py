"""Parameters that a network creates in its first forward pass (`LazyLinear`, layers built inside `forward`)."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustly.models.modes import modes_kept


def has_lazy_parameters(model: nn.Module) -> bool:
    """Return True if a parameter or buffer of the model has no shape yet."""
    return any(is_lazy(value) for value in (*model.parameters(), *model.buffers()))


def create_parameters(model: nn.Module, x: Tensor, seed: int) -> None:
    """Run one forward pass in evaluation mode, which creates missing parameters from the seed alone.

    PyTorch's global generator is neither used nor changed. Modes are left as they were.

    Args:
        model: the network, on the device of the images.
        x: a few images `(N, ...)`.
        seed: any integer of 64 bits.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with modes_kept(model), torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        model.eval()
        model(x)
