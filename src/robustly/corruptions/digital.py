"""Digital corruptions: contrast, saturation, elastic deformation, coarse pixels and JPEG."""

import io
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robustly.corruptions.constants import Constants
from robustly.corruptions.sampling import gaussian_blurred, interpolated
from robustly.randomness import KeyedGenerator

Values = Float64[Tensor, "n c h w"]


def contrast(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Scale the deviations of each channel from its mean."""
    (factor,) = constants
    # sums of integers are exact, so that the mean does not depend on the order of summation
    mean = (images * 255).round().sum((2, 3), keepdim=True) / (255 * images.shape[2] * images.shape[3])
    return (images - mean) * factor + mean


def saturate(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Map the saturation s of the HSV colour to factor * s + rise, clipped to [0, 1]; hue and value stay.

    A grey pixel has the hue of red, as in scikit-image.
    """
    factor, rise = constants
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    saturation = (value - least) / value.clamp_min(1e-12)
    changed = (saturation * factor + rise).clamp(0, 1)
    coloured = value - (value - images) * (changed / saturation.clamp_min(1e-12))
    red = torch.cat([value, value * (1 - changed), value * (1 - changed)], 1)
    return torch.where(saturation > 0, coloured, red)


def elastic_transform(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Move three points at random with an affine map, then every pixel by a smooth random field (bilinear)."""
    height, width = images.shape[2:]
    side = min(height, width)
    alpha, sigma, reach = (side * share for share in constants)
    rows = torch.arange(height, dtype=torch.float64)[None, :, None].expand(len(images), -1, width)
    columns = torch.arange(width, dtype=torch.float64)[None, None, :].expand(len(images), height, -1)
    moves = (draws.fold("points").uniform(3, 2).double() * 2 - 1) * reach
    images = interpolated(images, *affine_sources(rows, columns, moves, (height, width)), "mirror")
    field = draws.fold("field").uniform(2, height, width).double() * 2 - 1
    field = alpha * gaussian_blurred(field, sigma, truncate=3.0, border="symmetric")
    return interpolated(images, rows + field[:, 0], columns + field[:, 1], "symmetric")


def affine_sources(
    rows: Float64[Tensor, "n a b"],
    columns: Float64[Tensor, "n a b"],
    moves: Float64[Tensor, "n 3 2"],
    size: tuple[int, int],
) -> tuple[Float64[Tensor, "n a b"], Float64[Tensor, "n a b"]]:
    """Rows and columns that the affine map of each image takes to given positions.

    The map moves three points around the centre, at (+s, +s), (+s, -s) and (-s, -s) in (columns, rows), where s is
    a third of the shorter side.

    Args:
        rows: rows of the positions.
        columns: their columns.
        moves: moves of the three points, (columns, rows), in pixels.
        size: height and width of the images.
    """
    height, width = size
    centre_row, centre_column, spread = height // 2, width // 2, min(height, width) // 3
    lower, upper, left = moves.unbind(1)
    along_columns, along_rows = (upper - left) / (2 * spread), (lower - upper) / (2 * spread)
    # the move of (x, y) is left + (x - x0) * along_columns + (y - y0) * along_rows, with (x0, y0) the third point
    x0, y0 = centre_column - spread, centre_row - spread
    a, b = 1 + along_columns[:, 0], along_rows[:, 0]
    c, d = along_columns[:, 1], 1 + along_rows[:, 1]
    determinant, a, b, c, d = (one[:, None, None] for one in (a * d - b * c, a, b, c, d))
    x = columns - x0 - left[:, 0, None, None]
    y = rows - y0 - left[:, 1, None, None]
    return (a * y - c * x) / determinant + y0, (d * x - b * y) / determinant + x0


def pixelate(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Resize to a share of the sides and back (box filter of Pillow)."""
    (share,) = constants
    height, width = images.shape[2:]
    small = int(width * share), int(height * share)

    def changed(picture: Image.Image) -> Image.Image:
        box = Image.Resampling.BOX
        return picture.resize(small, box).resize((width, height), box)

    return _by_pillow(images, changed)


def jpeg_compression(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Compress as JPEG of a given quality (1 to 100) with Pillow."""
    quality = int(constants[0])

    def changed(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return Image.open(stream)

    return _by_pillow(images, changed)


def _by_pillow(images: Values, change: Callable[[Image.Image], Image.Image]) -> Values:
    """Images after a function of Pillow images, one after the other."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    changed = [_array(change(Image.fromarray(one[..., 0] if one.shape[2] == 1 else one))) for one in pixels]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).double() / 255


def _array(picture: Image.Image) -> NDArray[np.uint8]:
    array = np.asarray(picture, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array
