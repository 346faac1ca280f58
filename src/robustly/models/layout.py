"""The memory layout of a network: channels last where the network supports it, because convolutions are faster."""

import torch
from torch import Tensor, nn

from robustly.models.modes import modes_kept


def in_fastest_layout(model: nn.Module, images: Tensor) -> nn.Module:
    """Convert a network to channels last if it runs so, otherwise to the contiguous layout; returns the network.

    Networks that flatten with `.view` fail on channels-last images. Neither modes nor gradients change.

    Args:
        model: the network.
        images: a few images, `(N, C, H, W)`, in the dtype and on the device of the network.
    """
    if images.dim() != 4:
        return model
    put_in_layout(model, torch.channels_last)
    if not _runs(model, images.contiguous(memory_format=torch.channels_last)):
        put_in_layout(model, torch.contiguous_format)
    return model


def put_in_layout(model: nn.Module, layout: torch.memory_format) -> None:
    """Convert the weights of a network to a layout."""
    model.to(memory_format=layout)  # type: ignore[call-overload]
    if layout == torch.contiguous_format:
        for value in (*model.parameters(), *model.buffers()):
            value.data = contiguous(value.data)


def contiguous(value: Tensor) -> Tensor:
    """The same values with the strides of the contiguous layout.

    With one channel, `Tensor.contiguous` leaves the strides of channels last, by which layers choose their layout.
    """
    strides: list[int] = []
    here = 1
    for size in reversed(value.shape):
        strides.insert(0, here)
        here *= size
    return value if list(value.stride()) == strides else value.clone(memory_format=torch.contiguous_format)


def _runs(model: nn.Module, images: Tensor) -> bool:
    """True if a forward and an input-backward pass in evaluation mode raise no error."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    here = images.detach().clone().requires_grad_()
    try:
        with modes_kept(model), torch.inference_mode(False), torch.enable_grad():
            for module in model.modules():
                if hasattr(module, "training"):
                    module.training = False
            output = model(here)
            total = output.sum() if isinstance(output, Tensor) else here.sum()
            torch.autograd.grad(total, here, allow_unused=True)
    except Exception:  # the network is the user's
        return False
    finally:
        torch.set_rng_state(state)
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name in buffers and buffers[name].shape == value.shape:
                    value.copy_(buffers[name])
    return True
