"""Canny's edges of grey images (Canny, PAMI 1986), with the conventions of scikit-image: what MNIST-C draws."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64
from torch import Tensor

from robustly.corruptions.sampling import gaussian_blurred

Planes = Float64[Tensor, "n 1 h w"]
_SIGMA, _LOW, _HIGH = 1.0, 0.1, 0.2
_PAD = 4  # pixels that the Gaussian reaches


def canny_edges(images: Planes) -> Bool[Tensor, "n 1 h w"]:
    """Edges of images in [0, 1]: ridges of the gradient's length above 0.1 that are joined to one above 0.2.

    The image is smoothed by a Gaussian of one pixel, whose weights beyond the border do not count. Gradients are
    those of Sobel. A ridge is at least as high as its neighbours along the gradient, interpolated linearly. The
    outermost pixels have none.
    """
    smoothed = _blurred_inside(images) / (_blurred_inside(torch.ones_like(images)) + torch.finfo(images.dtype).eps)
    down, right = _sobel(smoothed, 2), _sobel(smoothed, 3)
    length = torch.hypot(down, right)
    ridge = _ridges(length, down, right) & _inner(length)
    return _joined(ridge & (length >= _LOW), ridge & (length >= _HIGH))


def _blurred_inside(images: Planes) -> Planes:
    """Gaussian filter of the images continued by 0."""
    return gaussian_blurred(F.pad(images, (_PAD,) * 4), _SIGMA)[..., _PAD:-_PAD, _PAD:-_PAD]


def _sobel(images: Planes, axis: int) -> Planes:
    """Sobel's derivative along an axis, the border's values repeated."""
    wide = F.pad(images, (1, 1, 1, 1), mode="replicate")
    other, size = 5 - axis, images.shape[2:]
    slope = wide.narrow(axis, 2, size[axis - 2]) - wide.narrow(axis, 0, size[axis - 2])
    parts = [slope.narrow(other, k, size[other - 2]) for k in range(3)]
    return parts[0] + 2 * parts[1] + parts[2]


def _ridges(length: Planes, down: Planes, right: Planes) -> Bool[Tensor, "n 1 h w"]:
    """True where both neighbours along the gradient are at most as long; False where there is no gradient."""
    wide, (height, width) = F.pad(length, (1, 1, 1, 1)), length.shape[2:]

    def at(rows: int, columns: int) -> Planes:
        return wide[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    found = torch.zeros_like(length, dtype=torch.bool)
    steep, same = down.abs() >= right.abs(), down * right >= 0
    share = torch.where(steep, right.abs(), down.abs()) / torch.where(steep, down.abs(), right.abs())
    for is_steep in (True, False):
        for sign in (1, -1):
            row, column = (1, 0) if is_steep else (0, sign)  # of the nearest neighbour; (1, sign) is diagonal
            one, other = (
                at(way * row, way * column) * (1 - share) + at(way, way * sign) * share for way in (1, -1)
            )
            here = (steep == is_steep) & (same == (sign == 1))
            found |= here & (one <= length) & (other <= length)
    return found & (length > 0)


def _inner(length: Planes) -> Bool[Tensor, "n 1 h w"]:
    inner = torch.zeros_like(length, dtype=torch.bool)
    inner[..., 1:-1, 1:-1] = True
    return inner


def _joined(weak: Bool[Tensor, "n 1 h w"], strong: Bool[Tensor, "n 1 h w"]) -> Bool[Tensor, "n 1 h w"]:
    """Weak pixels that weak pixels join to a strong one, over sides and corners."""
    found = strong
    while True:
        wider = (F.max_pool2d(found.double(), 3, stride=1, padding=1) > 0) & weak
        if torch.equal(wider, found):
            return found
        found = wider
