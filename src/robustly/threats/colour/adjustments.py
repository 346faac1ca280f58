"""Hue, saturation, brightness and contrast: one number per image.

The components of the composite adversarial attack (Hsiung, Tsai, Chen and Ho, "Towards Compositional Adversarial
Robustness", CVPR 2023). The paper allows hue pi radians, saturation and contrast 0.3, brightness 0.2.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from robustly.threats.colour.hsv import with_hue_shift, with_saturation_factor
from robustly.threats.colour.unit_range import from_unit, to_unit
from robustly.threats.contract import Box, Images, per_example
from robustly.threats.exact_size import fraction_text
from robustly.threats.parameter_box import Parameters
from robustly.threats.transformation import Transformation

RGB = (3,)


def hue_shifted(images: Images, theta: Parameters, box: Box) -> Images:
    """RGB images with hues shifted by theta radians, from red towards green where theta is positive."""
    return from_unit(with_hue_shift(to_unit(images, box), theta[:, 0] * (3 / math.pi)), box)


def saturated(images: Images, theta: Parameters, box: Box) -> Images:
    """RGB images with saturations times theta, at most 1."""
    return from_unit(with_saturation_factor(to_unit(images, box), theta[:, 0]), box)


def brightened(images: Images, theta: Parameters, box: Box) -> Images:
    """Images plus theta times the width of the box."""
    low, high = box
    return images + per_example(theta[:, 0] * (high - low), images)


def contrasted(images: Images, theta: Parameters, box: Box) -> Images:
    """Values times theta, counted from the least value of the box; the mean is not subtracted."""
    factor = per_example(theta[:, 0], images)
    return images * factor if box[0] == 0 else images * factor + box[0] * (1 - factor)


def degrees_in_radians(limit: Fraction) -> str:
    """Advice for an angle that is too large for radians."""
    degrees = float(limit)
    if not 0 < degrees <= 180:
        return ""
    if degrees < math.pi + 0.01:  # pi, rounded up
        return "; half a turn is 3.14159"
    return f"; {fraction_text(limit)} degrees are {math.radians(degrees):.4g} radians"


def _hue_in_words(theta: Sequence[float]) -> str:
    return f"hue shifted by {theta[0]:+.3g} radians"


def _saturation_in_words(theta: Sequence[float]) -> str:
    return f"saturation times {theta[0]:.3g}"


def _brightness_in_words(theta: Sequence[float]) -> str:
    return f"brightness {theta[0]:+.3g}"


def _contrast_in_words(theta: Sequence[float]) -> str:
    return f"contrast times {theta[0]:.3g}"


HUE = Transformation(
    kind="hue",
    unit="radians",
    most=Fraction(repr(math.pi)),
    neutral=(0.0,),
    change=hue_shifted,
    sentence="The hues of each image may be shifted by at most {limit} radians in either direction (HSV).",
    words=_hue_in_words,
    channels=RGB,
    other_unit=degrees_in_radians,
)
"""Hue shifts of HSV by at most half a turn, pi radians. Grey pixels do not change."""

SATURATION = Transformation(
    kind="saturation",
    unit="times the saturation",
    most=Fraction(1),
    neutral=(1.0,),
    change=saturated,
    sentence="The saturations of each image may be multiplied by a factor of 1 +- {limit} (HSV, at most 1).",
    words=_saturation_in_words,
    channels=RGB,
)
"""Factors of the saturation of HSV. Grey pixels do not change."""

BRIGHTNESS = Transformation(
    kind="brightness",
    unit="times the range of values",
    most=Fraction(1),
    neutral=(0.0,),
    change=brightened,
    sentence=(
        "All values of each image may be raised or lowered by the same amount, at most {limit} times the range of "
        "values, and are clipped."
    ),
    words=_brightness_in_words,
)
"""The same addition to all values, as a share of the box's width."""

CONTRAST = Transformation(
    kind="contrast",
    unit="times the values",
    most=Fraction(1),
    neutral=(1.0,),
    change=contrasted,
    sentence=(
        "All values of each image may be multiplied by a factor of 1 +- {limit} (counted from the least value, the "
        "mean is not subtracted), and are clipped."
    ),
    words=_contrast_in_words,
)
"""Factors of all values, as in CAA, which uses Kornia's older `adjust_contrast`: the mean is not subtracted."""
