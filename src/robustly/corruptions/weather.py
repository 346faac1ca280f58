"""Corruptions by weather: snow, frost, fog, brightness and spatter."""

import torch
from jaxtyping import Float64
from torch import Tensor

from robustly.corruptions.blur import motion_blurred
from robustly.corruptions.constants import Constants
from robustly.corruptions.fractal import clouds
from robustly.corruptions.sampling import gaussian_blurred, zoomed
from robustly.randomness import KeyedGenerator

Values = Float64[Tensor, "n c h w"]
_LUMA = (0.299, 0.587, 0.114)
_ICE = (0.85, 0.95, 1.0)
_RIDGES = (("coarse", 2.0), ("fine", 1.4))  # decays of the two clouds of frost
_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)


def brightness(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Add a constant to the value (largest channel) of the HSV colour; hue and saturation stay."""
    (rise,) = constants
    value = images.amax(1, keepdim=True)
    raised = (value + rise).clamp(max=1.0)
    scaled = images * (raised / value.clamp_min(1e-12))  # hue and saturation fix the ratios of the channels
    return torch.where(value > 0, scaled, raised.expand_as(images))


def fog(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Add clouds, then scale so that the largest value stays below 1."""
    amount, decay = constants
    largest = images.amax((1, 2, 3), keepdim=True)
    height, width = images.shape[2:]
    mist = clouds(height, width, decay, draws)[:, None]
    return (images + amount * mist) * (largest / (largest + amount))


def frost(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Mix with a texture of ice: ridges of random clouds, in place of the photographs of the released code."""
    share, amount = constants
    height, width = images.shape[2:]
    coarse, fine = (clouds(height, width, decay, draws.fold(decay_name)) for decay_name, decay in _RIDGES)
    ridges = (1 - (2 * coarse - 1).abs()) ** 3
    ice = (0.25 + 0.55 * ridges + 0.35 * (fine - 0.5)).clamp(0, 1)
    return share * images + amount * _tinted(ice, _ICE, images)


def snow(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Whiten the image, and add flakes that are blurred along a random direction."""
    mean, deviation, zoom, threshold, radius, sigma, share = constants
    height, width = images.shape[2:]
    layer = mean + deviation * draws.fold("flakes").normal(1, height, width).double()
    layer = zoomed(layer, zoom)
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    layer = (layer * 255).floor() / 255
    degrees = draws.fold("angle").uniform(1).double()[:, 0] * 90 - 135
    layer = motion_blurred(layer, int(radius), sigma, degrees)
    white = torch.maximum(images, grey(images) * 1.5 + 0.5)
    return share * images + (1 - share) * white + layer + layer.flip((2, 3))


def spatter(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Cover parts of the image with drops of water (light) or mud (dark), in simplified form.

    The shading of drops by edge detection and distance transforms of the released code is replaced by a Gaussian.
    """
    mean, deviation, sigma, threshold, strength, is_mud = constants
    layer = mean + deviation * draws.normal(1, *images.shape[2:]).double()
    layer = gaussian_blurred(layer, sigma)
    drops = (layer > threshold).double()
    if is_mud:
        cover = gaussian_blurred(drops, strength)
        cover = torch.where(cover < 0.8, 0.0, cover)
        return images * (1 - cover) + _tinted(cover[:, 0], _MUD, images)
    shade = gaussian_blurred(layer * drops, sigma)
    shade = strength * shade / shade.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    return images + _tinted(shade[:, 0], _WATER, images)


def grey(images: Values) -> Float64[Tensor, "n 1 h w"]:
    """Luma of colour images (ITU-R BT.601); grey images as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = _LUMA
    return red * images[:, 0:1] + green * images[:, 1:2] + blue * images[:, 2:3]


def _tinted(layer: Float64[Tensor, "n h w"], colour: tuple[float, float, float], like: Values) -> Values:
    """A layer in a colour; in its luma for grey images."""
    tint = torch.tensor(colour, dtype=torch.float64)[None, :, None, None]
    return layer[:, None] * (tint if like.shape[1] == 3 else grey(tint))
