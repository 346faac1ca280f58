"""Shifts, scalings and shears of images, and all of them with a rotation in one bilinear interpolation.

The joint family of rotations and shifts is that of Engstrom et al. ("Exploring the landscape of spatial
robustness", ICML 2019): up to 30 degrees and 3 pixels. Pixels from outside an image have the least value of the
box.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.threats.contract import Box, Images, PerExample, ThreatError
from robustly.threats.exact_size import fraction_text
from robustly.threats.parameter_box import Parameters
from robustly.threats.precision import without_autocast
from robustly.threats.transformation import Transformation

ImageBatch = Float[Tensor, "n c h w"]


def shifted(images: ImageBatch, right: PerExample, down: PerExample) -> ImageBatch:
    """Images moved by some pixels, zero outside; exact for whole pixels, else bilinear.

    Args:
        images: the images.
        right: pixels to the right `(N,)`, to the left where negative.
        down: pixels down `(N,)`, up where negative.
    """
    return _along(_along(images, right, 3), down, 2)


def _along(images: ImageBatch, offset: PerExample, axis: int) -> ImageBatch:
    """Images moved along one axis: between the values at the two nearest whole shifts."""
    whole = offset.detach().floor()
    part = (offset - whole).view(-1, 1, 1, 1)
    return (1 - part) * _taken(images, whole, axis) + part * _taken(images, whole + 1, axis)


def _taken(images: ImageBatch, whole: PerExample, axis: int) -> ImageBatch:
    """Images moved by a whole number of pixels along one axis."""
    side = images.shape[axis]
    source = torch.arange(side, device=images.device) - whole.long()[:, None]
    shape = [len(images), 1, 1, 1]
    shape[axis] = side
    outside = ((source < 0) | (source >= side)).view(shape)
    return images.take_along_dim(source.clamp(0, side - 1).view(shape), axis).masked_fill(outside, 0.0)


def warped(
    images: ImageBatch,
    *,
    degrees: PerExample,
    right: PerExample,
    down: PerExample,
    factor: PerExample,
    shear: PerExample,
) -> ImageBatch:
    """Images scaled, sheared, rotated about their centre, then shifted, with one interpolation; zero outside.

    Differentiable in all arguments.

    Args:
        images: the images.
        degrees: angle of the rotation, counter-clockwise.
        right: shift to the right, in pixels.
        down: shift down, in pixels.
        factor: of the size, above 0.
        shear: angle in degrees, within (-90, 90), by which columns lean to the right.
    """
    if len(images) == 0:  # the interpolation raises on an empty batch
        return images
    height, width = images.shape[2:]
    angle, slope = degrees * (torch.pi / 180), (shear * (torch.pi / 180)).tan()
    cosine, sine = angle.cos(), angle.sin()
    # the place in the image from which each pixel comes, from its own place: both in pixels from the centre
    across = (cosine + slope * sine) / factor, (slope * cosine - sine) / factor
    along = sine / factor, cosine / factor
    # grid coordinates run from -1 to 1 along either side
    rows = (
        _row(across[0], across[1] * (height / width), -(across[0] * right + across[1] * down) * (2 / width)),
        _row(along[0] * (width / height), along[1], -(along[0] * right + along[1] * down) * (2 / height)),
    )
    with without_autocast(images):
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _row(*entries: PerExample) -> Float[Tensor, "n 3"]:
    return torch.stack(entries, 1)


def _shift(images: Images, theta: Parameters, box: Box) -> Images:
    return shifted(images - box[0], theta[:, 0], theta[:, 1]) + box[0]


def _scale(images: Images, theta: Parameters, box: Box) -> Images:
    zero = torch.zeros_like(theta[:, 0])
    moved = warped(images - box[0], degrees=zero, right=zero, down=zero, factor=theta[:, 0], shear=zero)
    return moved + box[0]


def _shear(images: Images, theta: Parameters, box: Box) -> Images:
    zero, one = torch.zeros_like(theta[:, 0]), torch.ones_like(theta[:, 0])
    moved = warped(images - box[0], degrees=zero, right=zero, down=zero, factor=one, shear=theta[:, 0])
    return moved + box[0]


def _check_shift(limit: Fraction, shape: torch.Size) -> None:
    height, width = shape[2:]
    if limit > min(height, width):
        raise ThreatError(
            f"a shift must be at most the smaller side of the image, {min(height, width)} pixels of "
            f"{height} x {width}, got {fraction_text(limit)}"
        )


def shift_in_words(theta: Sequence[float]) -> str:
    """A shift in pixels: "moved 2 pixels right and 1 up"."""
    right, down = theta
    ways = ((right, "right", "left"), (down, "down", "up"))
    sizes = [(f"{abs(size):.2g}", more if size > 0 else less) for size, more, less in ways if size != 0]
    if not sizes:
        return "not moved"
    (first, way), *rest = sizes
    pixels = "pixel" if first == "1" else "pixels"
    return f"moved {first} {pixels} {way}" + "".join(f" and {size} {other}" for size, other in rest)


def scale_in_words(theta: Sequence[float]) -> str:
    """A factor of the size: "enlarged by 12 %"."""
    (factor,) = theta
    return f"{'enlarged' if factor >= 1 else 'shrunk'} by {100 * abs(factor - 1):.3g} %"


def shear_in_words(theta: Sequence[float]) -> str:
    """A shear in degrees: "sheared by 5 degrees to the right"."""
    (angle,) = theta
    return f"sheared by {abs(angle):.1f} degrees to the {'right' if angle >= 0 else 'left'}"


SHIFT = Transformation(
    kind="shift",
    unit="pixels",
    most=None,
    neutral=(0.0, 0.0),
    change=_shift,
    sentence=(
        "Each image may be moved by at most {limit} pixels along each axis (bilinear interpolation, the background "
        "filled with the least value)."
    ),
    words=shift_in_words,
    check=_check_shift,
)
"""Shifts to the right and down, each by up to some pixels in either direction; parameters `(right, down)`."""
SCALE = Transformation(
    kind="scale",
    unit="times the size",
    most=Fraction(9, 10),
    neutral=(1.0,),
    change=_scale,
    sentence=(
        "Each image may be scaled about its centre by a factor of 1 +- {limit} (bilinear interpolation, the "
        "background filled with the least value)."
    ),
    words=scale_in_words,
)
"""Scalings by a factor of 1 +- the limit, which is at most 0.9; the parameter is the factor."""
SHEAR = Transformation(
    kind="shear",
    unit="degrees",
    most=Fraction(80),
    neutral=(0.0,),
    change=_shear,
    sentence=(
        "Each image may be sheared horizontally by at most {limit} degrees in either direction (bilinear "
        "interpolation, the background filled with the least value)."
    ),
    words=shear_in_words,
)
"""Horizontal shears by up to 80 degrees: columns lean to the right where the angle is positive."""
