"""Colour threats: hue, saturation, brightness, contrast, colour curves, maps of colours and retouching."""

from robustly.threats.colour.adjustments import BRIGHTNESS, CONTRAST, HUE, SATURATION
from robustly.threats.colour.curves import ACE, HSV_CURVE, LIGHTNESS
from robustly.threats.colour.recolour import RECOLOR
from robustly.threats.colour.retouch import RETOUCH

COLOUR_FAMILIES = (HUE, SATURATION, BRIGHTNESS, CONTRAST, ACE, HSV_CURVE, LIGHTNESS, RECOLOR, RETOUCH)
"""Every family of colour threats; `HUE.within(0.5)` is the threat "hue:0.5"."""

__all__ = [
    "ACE",
    "BRIGHTNESS",
    "COLOUR_FAMILIES",
    "CONTRAST",
    "HSV_CURVE",
    "HUE",
    "LIGHTNESS",
    "RECOLOR",
    "RETOUCH",
    "SATURATION",
]
