"""Rotation about the centre of an image, by bilinear interpolation (Engstrom et al., ICML 2019)."""

from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.threats.contract import Box, Images
from robustly.threats.parameter_box import Parameters
from robustly.threats.precision import without_autocast
from robustly.threats.transformation import Transformation


def rotated(images: Float[Tensor, "n c h w"], degrees: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Images rotated counter-clockwise about their centre, zero outside; differentiable in both arguments."""
    if len(images) == 0:  # the interpolation raises on an empty batch
        return images
    height, width = images.shape[2:]
    angle = degrees * (torch.pi / 180)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # grid coordinates run from -1 to 1 along either side: a rotation in pixels includes the ratio of the sides
    rows = (
        torch.stack([cosine, -sine * (height / width), zero], 1),
        torch.stack([sine * (width / height), cosine, zero], 1),
    )
    with without_autocast(images):
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def turned(images: Images, theta: Parameters, box: Box) -> Images:
    """Images rotated by theta `(N, 1)` degrees; pixels from outside have the least value of the box."""
    return rotated(images - box[0], theta[:, 0]) + box[0]


def angle_in_words(theta: Sequence[float]) -> str:
    """An angle in degrees, counter-clockwise where it is positive."""
    (angle,) = theta
    return f"rotated by {abs(angle):.1f} degrees {'counter-clockwise' if angle >= 0 else 'clockwise'}"


ROTATION = Transformation(
    kind="rotation",
    unit="degrees",
    most=Fraction(180),
    neutral=(0.0,),
    change=turned,
    sentence=(
        "Each image may be rotated about its centre by at most {limit} degrees in either direction "
        "(bilinear interpolation, the background filled with the least value)."
    ),
    words=angle_in_words,
)
"""Rotations by up to 180 degrees in either direction."""
Rotation = ROTATION.within
"""Rotations by at most some degrees: `Rotation(30)`, with the box of the images as a second argument."""
