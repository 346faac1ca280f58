"""Corruptions by blur: defocus, frosted glass, motion, zoom and Gaussian blur."""

import math

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from robustly.corruptions.constants import Constants
from robustly.corruptions.sampling import (
    filtered,
    folded,
    gathered,
    gaussian_blurred,
    gaussian_weights,
    sum_of,
    zoomed,
)
from robustly.randomness import KeyedGenerator

Values = Float64[Tensor, "n c h w"]
_LEAST_RADIUS = 8


def gaussian_blur(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Blur with a Gaussian of a given standard deviation in pixels."""
    (sigma,) = constants
    return gaussian_blurred(images, sigma)


def defocus_blur(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Blur with a disk of a given radius whose edge is smoothed by a Gaussian."""
    radius, sigma = constants
    return filtered(images, disk(radius, sigma))


def disk(radius: float, sigma: float) -> Float64[Tensor, "k k"]:
    """A disk on at least 17 x 17 pixels with sum 1, then smoothed by a Gaussian on 3 x 3 (from radius 9: 5 x 5)."""
    reach = max(_LEAST_RADIUS, math.ceil(radius))
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (places[:, None] ** 2 + places[None] ** 2 <= radius**2).double()
    weights = torch.tensor(gaussian_weights(1 if radius <= _LEAST_RADIUS else 2, sigma), dtype=torch.float64)
    smooth = weights[:, None] * weights[None]
    return filtered((inside / inside.sum())[None, None], smooth)[0, 0]


def glass_blur(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Blur, move pixels by random small steps, and blur again.

    From the lower right, each pixel is replaced by one at a random offset of -d..d-1 pixels along both axes. The
    released code means to swap the two, but for colour images it copies; the published files were made so.
    """
    sigma, reach, rounds = constants[0], int(constants[1]), int(constants[2])
    count, _, height, width = images.shape
    blurred = (gaussian_blurred(images, sigma) * 255 + 1e-3).floor() / 255
    origin = np.tile(np.arange(height * width).reshape(1, height, width), (count, 1, 1))
    every = np.arange(count)
    for number in range(rounds):
        offsets = draws.fold("offsets", number).integers(2 * reach, height, width, 2).numpy() - reach
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                down, right = offsets[:, row, column, 0], offsets[:, row, column, 1]
                origin[:, row, column] = origin[every, row + down, column + right]
    place = torch.from_numpy(origin)
    return gaussian_blurred(gathered(blurred, place // width, place % width), sigma)


def motion_blur(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Blur along a line at a random angle of -45 to 45 degrees."""
    radius, sigma = constants
    degrees = draws.uniform(1).double()[:, 0] * 90 - 45
    return motion_blurred(images, int(radius), sigma, degrees)


def motion_blurred(images: Values, radius: int, sigma: float, degrees: Float64[Tensor, " n"]) -> Values:
    """Images blurred along a line that begins at each pixel, with the weights of half a Gaussian.

    This is the motion blur of ImageMagick: 2 * radius + 1 weights at whole pixels, and repeated edges.

    Args:
        images: the images.
        radius: half the length of the line, in pixels.
        sigma: standard deviation of the Gaussian, in pixels.
        degrees: angle of each image's line.
    """
    height, width = images.shape[2:]
    weights = [math.exp(-(place**2) / (2 * sigma**2)) for place in range(2 * radius + 1)]
    total = math.fsum(weights)
    angle = degrees * (math.pi / 180)
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]

    def moved(place: int) -> Values:
        down = (place * angle.sin() - 0.5).ceil().long()[:, None, None]
        right = (place * angle.cos() - 0.5).ceil().long()[:, None, None]
        row = folded(rows + down, height, "nearest").expand(-1, height, width)
        column = folded(columns + right, width, "nearest").expand(-1, height, width)
        return gathered(images, row, column)

    return sum_of((weight / total, moved(place)) for place, weight in enumerate(weights))


def zoom_blur(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Average the image and its zooms by 1, 1 + step, ..., up to a largest factor."""
    stop, step = constants
    factors = np.arange(1, stop, step)  # as in the released code; rounding decides whether `stop` is among them
    zooms = sum_of((1.0, zoomed(images, float(factor))) for factor in factors)
    return (images + zooms) / (len(factors) + 1)
