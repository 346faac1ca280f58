"""Filters and resampling on batches of images: borders, Gaussian filters, zooms, bilinear interpolation.

All results are sums of products of single values in a fixed order, so that an image does not depend on the others
of its batch.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Values = Float64[Tensor, "n c h w"]
Border = Literal["nearest", "symmetric", "mirror"]
"""Continuation of a line a b c d: "nearest" d d d, "symmetric" d c b, "mirror" c b a."""


def folded(places: Int64[Tensor, "..."], size: int, border: Border) -> Int64[Tensor, "..."]:
    """Positions in 0..size-1 for positions on a line that continues beyond its ends."""
    if border == "nearest" or size == 1:
        return places.clamp(0, size - 1)
    period = 2 * size if border == "symmetric" else 2 * size - 2
    inside = places.remainder(period)
    return torch.minimum(inside, (2 * size - 1 if border == "symmetric" else period) - inside)


def gaussian_blurred(images: Values, sigma: float, truncate: float = 4.0, border: Border = "nearest") -> Values:
    """Images after a Gaussian filter that is cut off at `truncate` standard deviations, as in SciPy.

    Args:
        images: the images.
        sigma: standard deviation in pixels, at least 0.
        truncate: radius of the filter, in standard deviations.
        border: continuation beyond the edges.
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return images
    weights = gaussian_weights(radius, sigma)
    for axis in (2, 3):
        size = images.shape[axis]
        index = folded(torch.arange(-radius, size + radius), size, border)
        wide = images.index_select(axis, index)
        images = sum_of((weight, wide.narrow(axis, k, size)) for k, weight in enumerate(weights))
    return images


def gaussian_weights(radius: int, sigma: float) -> list[float]:
    """Weights of a Gaussian filter at -radius..radius; their sum is 1."""
    weights = [math.exp(-(place**2) / (2 * sigma**2)) for place in range(-radius, radius + 1)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def filtered(images: Values, kernel: Float64[Tensor, "k k"], border: Border = "mirror") -> Values:
    """Correlation of images with a square kernel of odd side; weights of 0 cost nothing."""
    height, width = images.shape[2:]
    radius = len(kernel) // 2
    rows = folded(torch.arange(-radius, height + radius), height, border)
    columns = folded(torch.arange(-radius, width + radius), width, border)
    wide = images.index_select(2, rows).index_select(3, columns)
    taps = kernel.nonzero().tolist()
    return sum_of((float(kernel[i, j]), wide[:, :, i : i + height, j : j + width]) for i, j in taps)


def zoomed(images: Values, factor: float) -> Values:
    """The middle of images, enlarged by a factor of at least 1 to the size of the images (linear interpolation)."""
    return _zoomed_axis(_zoomed_axis(images, 2, factor), 3, factor)


def _zoomed_axis(images: Values, axis: int, factor: float) -> Values:
    size = images.shape[axis]
    cut = math.ceil(size / factor)
    enlarged = round(cut * factor)
    first = (enlarged - size) // 2
    places = torch.arange(first, first + size, dtype=torch.float64) * ((cut - 1) / max(enlarged - 1, 1))
    low = places.floor().long().clamp(0, max(cut - 2, 0))
    high = (low + 1).clamp(max=cut - 1)
    share = (places - low).reshape([-1 if one == axis else 1 for one in range(4)])
    start = (size - cut) // 2
    return images.index_select(axis, low + start) * (1 - share) + images.index_select(axis, high + start) * share


def gathered(images: Values, rows: Int64[Tensor, "n h w"], columns: Int64[Tensor, "n h w"]) -> Values:
    """Pixels of each image at positions of its own."""
    count, channels, _, width = images.shape
    index = (rows * width + columns).reshape(count, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).reshape(count, channels, *rows.shape[1:])


def interpolated(
    images: Values, rows: Float64[Tensor, "n h w"], columns: Float64[Tensor, "n h w"], border: Border
) -> Values:
    """Values of each image between its pixels (bilinear).

    Args:
        images: the images.
        rows: positions from the top, in pixels; 0 is the centre of the first row.
        columns: positions from the left.
        border: continuation beyond the edges.
    """
    height, width = images.shape[2:]
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    upper, lower = (folded(top.long() + k, height, border) for k in (0, 1))
    near, far = (folded(left.long() + k, width, border) for k in (0, 1))
    above = gathered(images, upper, near) * (1 - right) + gathered(images, upper, far) * right
    below = gathered(images, lower, near) * (1 - right) + gathered(images, lower, far) * right
    return above * (1 - down) + below * down


def sum_of(terms: Iterable[tuple[float, Values]]) -> Values:
    """Weighted sum of arrays of one shape, in the order given; at least one."""
    total: Tensor | None = None
    for weight, values in terms:
        total = values * weight if total is None else total + values * weight
    assert total is not None
    return total
