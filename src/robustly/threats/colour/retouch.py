"""RetouchUAA: one pass of photo retouching per image (Xie et al., "RetouchUAA", 2023).

In linear RGB: curves of the channels, gamma, saturation, white balance, contrast, hue and sharpness. The order and
the ranges of white balance, contrast and hue are those of the public code of TaFD. It leaves the other ranges open;
ours are below. Every parameter is a share of its range, 0 changes nothing:

    curves          64 slopes per channel, 4^-1 to 4^1: the steepest at most 16 times the least, as in ACE
    gamma           exponent 1/2 to 2
    saturation      factor 0 to 2 of HSV's saturation
    white balance   gain of blue e^-1 to e^1; the luminance of white is kept
    contrast        -1 to 1 of the way to (1 - cos(pi v)) / 2
    hue             -1 to 1 radians
    sharpness       1 to 2 times the difference from the smoothed image, for either sign of the parameter
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robustly.threats.colour.cie import decoded, encoded
from robustly.threats.colour.curve import PIECES, curved
from robustly.threats.colour.hsv import with_hue_shift, with_saturation_factor
from robustly.threats.colour.unit_range import from_unit, to_unit
from robustly.threats.contract import Box, Images, per_example
from robustly.threats.known_slopes import wants_slopes, where_equal, with_slopes
from robustly.threats.parameter_box import Parameters
from robustly.threats.transformation import Transformation

_SLOPES = 3 * PIECES
_LUMINANCE = (0.27, 0.67, 0.06)
_LEAST = 1e-8  # least value whose power is taken: the slope of a power below 1 is infinite at 0


def linear_values(images: Images, box: Box) -> Images:
    """Linear RGB of images, which does not depend on the parameters."""
    return decoded(to_unit(images, box))


def retouched(values: Images, theta: Parameters, box: Box) -> Images:
    """RGB images after all parts, from linear RGB; theta `(N, 198)` holds the curves, then the six others."""
    gamma, saturation, blue, contrast, hue, sharpness = theta[:, _SLOPES:].unbind(1)
    values = curved(values, 4 ** theta[:, :_SLOPES].reshape(-1, 3, PIECES))
    values = powered(values, per_example(2**gamma, values))
    values = with_saturation_factor(values, 1 + saturation)
    values = contrasted(white_balanced(values, (-blue).exp()), per_example(contrast, values))
    values = with_hue_shift(values, hue * (3 / math.pi))
    # not abs(), whose slope 0 at 0 would keep a search at the identity from sharpening
    values = sharpened(values, 1 + torch.where(sharpness >= 0, sharpness, -sharpness))
    return from_unit(encoded(values), box)


def powered(values: Images, exponent: Float[Tensor, "n 1 1 1"]) -> Images:
    """Powers of values, clipped to [1e-8, 1]."""
    wanted = wants_slopes(values, exponent)
    with torch.no_grad():
        allowed = values.clamp(_LEAST, 1.0)
        logs = allowed.log()
        found = (logs * exponent).exp_()
        if not wanted:
            return found
        slope = (found * exponent).div_(allowed).mul_(where_equal(allowed, values))
    return with_slopes(found, (values, slope), (exponent, logs.mul_(found)))


def contrasted(values: Images, share: Float[Tensor, "n 1 1 1"]) -> Images:
    """Values v, clipped to [0, 1], after a share of the way to (1 - cos(pi v)) / 2."""
    wanted = wants_slopes(values, share)
    with torch.no_grad():
        allowed = values.clamp(0.0, 1.0)
        angle = math.pi * allowed
        further = angle.cos().mul_(-0.5).add_(0.5)
        found = torch.lerp(allowed, further, share)
        if not wanted:
            return found
        slope = torch.lerp(torch.ones_like(allowed), angle.sin_().mul_(0.5 * math.pi), share)
        slope.mul_(where_equal(allowed, values))
    return with_slopes(found, (values, slope), (share, further.sub_(allowed)))


class _Smoothed(torch.autograd.Function):
    """Mean with weight 5 for a pixel and 1 for its eight neighbours; beyond the border lie the border's values.

    As a matrix it is symmetric, so that it is its own backward pass.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Smoothed values."""
        return _box_sum(_box_sum(values, 2), 3).add_(values, alpha=4).div_(13)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Smoothed gradient."""
        found: Tensor = _Smoothed.apply(gradient)  # type: ignore[no-untyped-call]
        return found


def _box_sum(values: Tensor, dim: int) -> Tensor:
    """Sum of each value and its two neighbours; beyond the border lie the border's values."""
    last = values.shape[dim] - 1
    found = values.clone()
    found.narrow(dim, 1, last).add_(values.narrow(dim, 0, last))
    found.narrow(dim, 0, last).add_(values.narrow(dim, 1, last))
    found.select(dim, 0).add_(values.select(dim, 0))
    found.select(dim, last).add_(values.select(dim, last))
    return found


def white_balanced(values: Images, gain: Float[Tensor, " n"]) -> Images:
    """Linear RGB with blue times a gain, scaled so that white keeps its luminance."""
    red, green, blue = _LUMINANCE
    scale = 1 / (red + green + blue * gain)
    return values * torch.stack([scale, scale, scale * gain], 1)[:, :, None, None]


def sharpened(values: Images, factor: Float[Tensor, " n"]) -> Images:
    """Values with their differences from the smoothed image times a factor.

    The smoothing weights a pixel 5 and each of its eight neighbours 1; beyond the border lie the border's values.
    """
    smooth: Tensor = _Smoothed.apply(values)  # type: ignore[no-untyped-call]
    return torch.lerp(smooth, values, per_example(factor, values))


def in_words(theta: Sequence[float]) -> str:
    """The six parameters beside the curves, and the spread of the slopes."""
    gamma, saturation, blue, contrast, hue, sharpness = theta[_SLOPES:]
    slopes = theta[:_SLOPES]
    return (
        f"gamma {2**gamma:.2g}, saturation times {1 + saturation:.2g}, blue times {math.exp(-blue):.2g}, contrast "
        f"{contrast:+.2g}, hue shifted by {hue:+.2g} radians, sharpness {1 + abs(sharpness):.2g}, curves whose "
        f"slopes differ by a factor of at most {4 ** (max(slopes) - min(slopes)):.2g}"
    )


RETOUCH = Transformation(
    kind="retouch",
    unit="times the ranges",
    most=Fraction(1),
    neutral=(0.0,) * (_SLOPES + 6),
    change=retouched,
    sentence=(
        "Each image may be retouched in linear RGB by curves of its channels, gamma, saturation, white balance, "
        "contrast, hue and sharpness, each within {limit} times its range (RetouchUAA)."
    ),
    words=in_words,
    channels=(3,),
    prepare=linear_values,
)
"""All parts of RetouchUAA within a share of their ranges."""
