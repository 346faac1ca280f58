"""Images of any box as values in [0, 1], which colour spaces need."""

from robustly.threats.contract import Box, Images
from robustly.threats.known_slopes import clipped


def to_unit(images: Images, box: Box) -> Images:
    """Images of a box, scaled to [0, 1], plane after plane: colours are computed so."""
    low, high = box
    images = images.contiguous()
    return images if box == (0.0, 1.0) else (images - low) / (high - low)


def from_unit(images: Images, box: Box) -> Images:
    """Images in [0, 1], scaled to a box, in which they are whatever the rounding."""
    low, high = box
    return images if box == (0.0, 1.0) else clipped(images * (high - low) + low, low, high)
