"""Layers of all networks: input normalisation and the choice of activation."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustly.settings import nearest

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def activation_layer(name: str) -> nn.Module:
    """New activation layer, out of place, by one of the names in `ACTIVATIONS`.

    `leaky_relu` has slope 0.1, `softplus` has beta 1, `gelu` is the exact one.

    Raises:
        ValueError: for a name that is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}{nearest(name, ACTIVATIONS)}: use {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def scaled(channels: int, width: float) -> int:
    """Number of channels of a layer times the width multiplier, rounded, at least 1."""
    return max(1, round(channels * width))


class Normalize(nn.Module):
    """Standardise images inside the model: (x - mean) / std per channel.

    Images are in [0, 1] everywhere outside the model, so that epsilon is in pixel units. Mean and standard
    deviation are persistent buffers: predictions depend on them, so they are saved and hashed with the weights.

    Args:
        mean: one number for each channel, on the [0, 1] scale.
        std: one positive number for each channel, on the [0, 1] scale.

    Raises:
        ValueError: if the two lengths differ or are zero, if a number is not finite, or a std is not
            positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(
                f"mean has {len(mean)} numbers and std has {len(std)}: both need one number for each channel"
            )
        if not all(math.isfinite(number) for number in mean):
            raise ValueError(f"mean is {tuple(mean)}: every number must be finite")
        if not all(math.isfinite(number) and number > 0 for number in std):
            raise ValueError(f"std is {tuple(std)}: every number must be positive and finite")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Standardise images in [0, 1]; the shape does not change."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Text of the constants in `print(model)`."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def input_layer(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalize | nn.Identity:
    """First layer of a network: `Normalize`, or the identity if mean and std are None.

    Raises:
        ValueError: if only one of them is given, or their lengths differ from `channels`.
    """
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None:
        raise ValueError("mean and std must be given together: set both, or neither")
    if len(mean) != channels:
        raise ValueError(f"mean has {len(mean)} numbers but the images have {channels} channels: give one for each")
    return Normalize(mean, std)
