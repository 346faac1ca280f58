"""The memory layout of a network: channels last where the network supports it, because convolutions are faster."""

import torch
from torch import Tensor, nn


def channels_last_works(model: nn.Module, images: Tensor, training: bool = False) -> bool:
    """True if a network runs on channels-last images, forwards and backwards, with the same layout of its weights.

    Networks that flatten with `.view` fail there. Neither the network's modes nor its gradients change.

    Args:
        model: the network; its weights have the layout of channels last.
        images: a few images, `(N, C, H, W)`, in the dtype and on the device of the network.
        training: True also tries training mode, with at least two images. Running statistics are restored.
    """
    here = images.contiguous(memory_format=torch.channels_last)
    return all(_runs(model, here, mode) for mode in ((False, True) if training else (False,)))


def in_fastest_layout(model: nn.Module, images: Tensor, training: bool = False) -> nn.Module:
    """Convert a network to channels last if it runs so, otherwise to the contiguous layout; returns the network.

    Arguments as in `channels_last_works`.
    """
    if images.dim() != 4:
        return model
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not channels_last_works(model, images, training):
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


def _runs(model: nn.Module, images: Tensor, training: bool) -> bool:
    """True if a forward and an input-backward pass raise no error."""
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    here = images.detach().clone().requires_grad_()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for module, _ in modes:
                module.training = training
            output = model(here)
            total = output.sum() if isinstance(output, Tensor) else here.sum()
            torch.autograd.grad(total, here, allow_unused=True)
    except Exception:  # the network is the user's
        return False
    finally:
        torch.set_rng_state(state)
        for module, was_training in modes:
            module.training = was_training
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name in buffers and buffers[name].shape == value.shape:
                    value.copy_(buffers[name])
    return True
