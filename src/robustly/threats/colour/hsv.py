"""Hue, saturation and value of RGB images, with finite gradients at grey and black pixels."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustly.threats.contract import Images
from robustly.threats.known_slopes import wants_slopes

Plane = Float[Tensor, "n h w"]
_TINY = 1e-8  # chroma and value below it count as it in divisions: their quotients are multiplied by them again


def _least(plane: Plane) -> float:
    """The least divisor; 1e-8 itself is zero in float16."""
    return max(_TINY, torch.finfo(plane.dtype).tiny)


def value_and_chroma(images: Images) -> tuple[Plane, Plane]:
    """Largest channel, and the largest minus the least, of RGB images `(N, 3, H, W)` in [0, 1]."""
    if not wants_slopes(images):
        value = images.amax(1)
        return value, value - images.amin(1)
    found: tuple[Plane, Plane] = _ValueAndChroma.apply(images)  # type: ignore[no-untyped-call]
    return found


class _ValueAndChroma(torch.autograd.Function):
    """Both, with the slopes of `amax` and `amin`, which channels of one value share, in fewer passes."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Value and chroma."""
        value, least = images.amax(1), images.amin(1)
        ctx.save_for_backward(images, value, least)
        return value, value - least

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor, by_chroma: Tensor) -> Tensor:
        """The gradient of the value for the largest channels, less that of the chroma for the least ones."""
        images, value, least = ctx.saved_tensors
        is_largest = (images == value[:, None]).to(images.dtype)
        is_least = (images == least[:, None]).to(images.dtype)
        up = (by_value + by_chroma).div_(is_largest.sum(1))
        down = by_chroma.div(is_least.sum(1))[:, None]
        found: Tensor = is_largest.mul_(up[:, None]).addcmul_(is_least, down, value=-1)
        return found


def hue_of(images: Images, value: Plane, chroma: Plane) -> Plane:
    """Hue in sixths of a turn, in [-1, 5]: magenta -1, red and grey 0, green 2, blue 4."""
    red, green, blue = images.unbind(1)
    # products with masks take a third of the time of torch.where
    is_red = (value == red).to(value)
    is_green = (value == green).to(value) * (1 - is_red)
    is_blue = 1 - is_red - is_green
    difference = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    return difference / chroma.clamp_min(_least(chroma)) + (2 * is_green + 4 * is_blue)


def rgb_of(hue: Plane, value: Plane, chroma: Plane) -> Images:
    """RGB images `(N, 3, H, W)` from hue in sixths of a turn, in [0, 6], value and chroma."""
    centres = hue.new_tensor([3.0, 5.0, 1.0])[:, None, None]  # hues at which red, green, blue are least
    share = (((hue[:, None] - centres).abs() - 3.0).abs() - 1.0).clamp(0.0, 1.0)
    return value[:, None] - chroma[:, None] * share


def saturation_of(value: Plane, chroma: Plane) -> Plane:
    """Chroma over value, in [0, 1]; 0 for black."""
    return chroma / value.clamp_min(_least(value))


def with_hue_shift(images: Images, sixths: Float[Tensor, " n"]) -> Images:
    """RGB images with hues shifted by sixths of a turn; value and chroma do not change."""
    value, chroma = value_and_chroma(images)
    hue = hue_of(images, value, chroma)
    return rgb_of((hue + sixths[:, None, None]).remainder(6.0), value, chroma)


def with_saturation_factor(images: Images, factor: Float[Tensor, " n"]) -> Images:
    """RGB images in [0, 1] with saturations times a factor of at least 0, at most 1; hue and value do not change.

    The differences from the largest channel are multiplied, so no hue is needed, and factor 1 is exact.
    """
    value, chroma = value_and_chroma(images)
    possible = torch.minimum(factor[:, None, None], value / chroma.clamp_min(_least(chroma)))
    return images + (value[:, None] - images) * (1.0 - possible)[:, None]
