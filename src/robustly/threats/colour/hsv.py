"""Hue, saturation and value of RGB images, with finite gradients at grey and black pixels."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustly.threats.contract import Images
from robustly.threats.known_slopes import wants_slopes, where_below, where_equal, with_slopes

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
        """Gradient with respect to the images."""
        images, value, least = ctx.saved_tensors
        return _through_extremes(images, value, least, by_value, by_chroma)


def _through_extremes(images: Images, value: Plane, least: Plane, by_value: Plane, by_chroma: Plane) -> Images:
    """The gradient of the value for the largest channels, less that of the chroma for the least ones."""
    found, is_least = where_equal(images, value[:, None]), where_equal(images, least[:, None])
    up = (by_value + by_chroma).div_(found.sum(1))
    down = by_chroma / is_least.sum(1)
    return found.mul_(up[:, None]).addcmul_(is_least, down[:, None], value=-1)


def hue_of(images: Images, value: Plane, chroma: Plane) -> Plane:
    """Hue in sixths of a turn, in [-1, 5]: magenta -1, red and grey 0, green 2, blue 4."""
    is_red, is_green, is_blue = _sectors(images, value)
    difference = _difference(images, is_red, is_green, is_blue)
    return difference / chroma.clamp_min(_least(chroma)) + (2 * is_green + 4 * is_blue)


def _sectors(images: Images, value: Plane) -> tuple[Plane, Plane, Plane]:
    """1 where red, green or blue is the largest channel, the first of equal ones, and 0 elsewhere."""
    red, green, _ = images.unbind(1)
    is_red = where_equal(red, value)
    is_green = where_equal(green, value).mul_(1 - is_red)
    return is_red, is_green, 1 - is_red - is_green


def _difference(images: Images, is_red: Plane, is_green: Plane, is_blue: Plane) -> Plane:
    """Difference of the two channels that are not the largest, in the order of the hues."""
    red, green, blue = images.unbind(1)
    return is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)


def rgb_of(hue: Plane, value: Plane, chroma: Plane) -> Images:
    """RGB images `(N, 3, H, W)` from hue in sixths of a turn, in [0, 6], value and chroma."""
    slopes = wants_slopes(hue, value, chroma)
    with torch.no_grad():
        share, slope = _shares(hue, slopes)
    if slope is not None:
        share = with_slopes(share, (hue[:, None], slope))
    return value[:, None] - chroma[:, None] * share


def _shares(hue: Plane, slopes: bool) -> tuple[Images, Images | None]:
    """Shares of the chroma by which red, green and blue are below the value, and their slopes or None."""
    centres = hue.new_tensor([3.0, 5.0, 1.0])[:, None, None]  # hues at which red, green, blue are least
    away = hue[:, None] - centres
    folded = away.abs().sub_(3.0)
    free = folded.abs().sub_(1.0)
    share = free.clamp(0.0, 1.0)
    if not slopes:
        return share, None
    return share, folded.mul_(away).sign_().mul_(where_equal(free, share))


def saturation_of(value: Plane, chroma: Plane) -> Plane:
    """Chroma over value, in [0, 1]; 0 for black."""
    return chroma / value.clamp_min(_least(value))


def with_hue_shift(images: Images, sixths: Float[Tensor, " n"]) -> Images:
    """RGB images with hues shifted by sixths of a turn, in [-3, 3]; value and chroma do not change."""
    if not wants_slopes(images, sixths):
        return _hue_shifted(images, sixths, slopes=False)[0]
    found: Images = _HueShift.apply(images, sixths)  # type: ignore[no-untyped-call]
    return found


def _hue_shifted(images: Images, sixths: Float[Tensor, " n"], slopes: bool) -> tuple[Images, tuple[Tensor, ...]]:
    """Shifted images, and the intermediate values that the backward pass needs, if there is one."""
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    sectors = _sectors(images, value)
    divisor = chroma.clamp_min(_least(chroma))
    ratio = _difference(images, *sectors).div_(divisor)
    hue = (2 * sectors[1]).add_(sectors[2], alpha=4).add_(ratio).add_(sixths[:, None, None])
    # the remainder by 6 of a number in [-4, 8], bit for bit
    below, beyond = where_below(hue, 0.0), 1 - where_below(hue, 6.0)
    share, slope = _shares(hue.add_(below, alpha=6).sub_(beyond, alpha=6), slopes)
    found = chroma[:, None] * share
    torch.sub(value[:, None], found, out=found)
    if slope is None:
        return found, ()
    return found, (images, value, least, chroma, divisor, ratio, *sectors, share, slope)


class _HueShift(torch.autograd.Function):
    """Shifts of the hue, with their gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, sixths: Tensor) -> Tensor:
        """Shifted images."""
        found, kept = _hue_shifted(images, sixths, slopes=True)
        ctx.save_for_backward(*kept)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        """Gradients with respect to the images and the shifts."""
        images, value, least, chroma, divisor, ratio, *sectors, share, slope = ctx.saved_tensors
        by_hue = (gradient * slope).sum(1).mul_(chroma).neg_()
        by_shift = by_hue.sum((1, 2))
        if not ctx.needs_input_grad[0]:
            return None, by_shift
        by_difference = by_hue / divisor
        # the quotient has no slope in a chroma that its least divisor replaces
        by_chroma = (
            (gradient * share).sum(1).addcmul_(by_difference.mul(ratio), where_equal(divisor, chroma)).neg_()
        )
        found = _through_extremes(images, value, least, gradient.sum(1), by_chroma)
        is_red, is_green, is_blue = sectors
        found[:, 0].addcmul_(by_difference, is_blue - is_green)
        found[:, 1].addcmul_(by_difference, is_red - is_blue)
        found[:, 2].addcmul_(by_difference, is_green - is_red)
        return found, by_shift


def with_saturation_factor(images: Images, factor: Float[Tensor, " n"]) -> Images:
    """RGB images in [0, 1] with saturations times a factor of at least 0, at most 1; hue and value do not change.

    The differences from the largest channel are multiplied, so no hue is needed, and factor 1 is exact.
    """
    if not wants_slopes(images, factor):
        return _saturated(images, factor)[0]
    found: Images = _Saturation.apply(images, factor)  # type: ignore[no-untyped-call]
    return found


def _saturated(images: Images, factor: Float[Tensor, " n"]) -> tuple[Images, tuple[Tensor, ...]]:
    """Images with other saturations, and the intermediate values that the backward pass needs."""
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    divisor = chroma.clamp_min(_least(chroma))
    most = value / divisor
    lost = 1.0 - torch.minimum(factor[:, None, None], most)
    found = (value[:, None] - images).mul_(lost[:, None]).add_(images)
    return found, (images, factor, value, least, chroma, divisor, most, lost)


class _Saturation(torch.autograd.Function):
    """Factors of the saturation, with their gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, factor: Tensor) -> Tensor:
        """Images with other saturations."""
        found, kept = _saturated(images, factor)
        ctx.save_for_backward(*kept)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        """Gradients with respect to the images and the factors."""
        images, factor, value, least, chroma, divisor, most, lost = ctx.saved_tensors
        by_share = (images - value[:, None]).mul_(gradient).sum(1)
        wide = factor[:, None, None].expand_as(most)
        # of the factor and its bound the smaller one has the slope; equal ones share it
        is_factor = torch.lt(wide, most, out=torch.empty_like(most))
        is_factor.add_(torch.le(wide, most, out=torch.empty_like(most))).mul_(0.5)
        by_factor = by_share * is_factor
        if not ctx.needs_input_grad[0]:
            return None, by_factor.sum((1, 2))
        by_bound = (by_share - by_factor).div_(divisor)
        by_chroma = by_bound.mul(most).mul_(where_equal(divisor, chroma)).neg_()
        by_value = gradient.sum(1).mul_(lost).add_(by_bound)
        found = _through_extremes(images, value, least, by_value, by_chroma)
        return found.addcmul_(gradient, 1 - lost[:, None]), by_factor.sum((1, 2))
