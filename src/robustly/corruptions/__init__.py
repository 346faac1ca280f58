"""Common corruptions of images at severities 1 to 5 (Hendrycks and Dietterich, ICLR 2019).

They are implemented here with PyTorch, NumPy and Pillow, because the packages that have them need OpenCV,
ImageMagick or scikit-image and draw from global random state. The constants are those of CIFAR-10-C and ImageNet-C.
Snow, frost, motion blur and spatter, marked `procedural`, differ from the released generator; their accuracies are
never compared with published ones of CIFAR-10-C or ImageNet-C.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from robustly.corruptions import blur, digital, noise, weather
from robustly.corruptions.constants import TABLES, Constants, TableName, table_for
from robustly.randomness import KeyedGenerator, derive_seed

Family = Literal["noise", "blur", "weather", "digital"]
Change = Callable[[Float64[Tensor, "n c h w"], Constants, KeyedGenerator], Float64[Tensor, "n c h w"]]
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 8
"""Smallest height and width of images, in pixels."""
_CHUNK = 2_000_000  # values that are corrupted at once, 16 MB in double precision


class CorruptionError(ValueError):
    """A corruption that does not exist or is not defined for these images; the message names what is allowed."""


@dataclass(frozen=True)
class Corruption:
    """A common corruption.

    Args:
        name: its name, as in the files of CIFAR-10-C.
        family: noise, blur, weather or digital.
        change: from images in [0, 1] on the 8-bit grid, constants of a severity and random numbers to images, which
            are then clipped to [0, 1].
        procedural: whether it differs from the released generator.
        extra: whether it is one of the four further corruptions, which do not count in means.
        colour: whether it needs colour images.
    """

    name: str
    family: Family
    change: Change
    procedural: bool = False
    extra: bool = False
    colour: bool = False

    @property
    def title(self) -> str:
        """Name in tables; "(procedural)" marks those that differ from the released generator."""
        return f"{self.name} (procedural)" if self.procedural else self.name


_ALL = (
    Corruption("gaussian_noise", "noise", noise.gaussian_noise),
    Corruption("shot_noise", "noise", noise.shot_noise),
    Corruption("impulse_noise", "noise", noise.impulse_noise),
    Corruption("defocus_blur", "blur", blur.defocus_blur),
    Corruption("glass_blur", "blur", blur.glass_blur),
    Corruption("motion_blur", "blur", blur.motion_blur, procedural=True),
    Corruption("zoom_blur", "blur", blur.zoom_blur),
    Corruption("snow", "weather", weather.snow, procedural=True),
    Corruption("frost", "weather", weather.frost, procedural=True),
    Corruption("fog", "weather", weather.fog),
    Corruption("brightness", "weather", weather.brightness),
    Corruption("contrast", "digital", digital.contrast),
    Corruption("elastic_transform", "digital", digital.elastic_transform),
    Corruption("pixelate", "digital", digital.pixelate),
    Corruption("jpeg_compression", "digital", digital.jpeg_compression),
    Corruption("speckle_noise", "noise", noise.speckle_noise, extra=True),
    Corruption("gaussian_blur", "blur", blur.gaussian_blur, extra=True),
    Corruption("spatter", "weather", weather.spatter, procedural=True, extra=True),
    Corruption("saturate", "digital", digital.saturate, extra=True, colour=True),
)
CORRUPTIONS: dict[str, Corruption] = {one.name: one for one in _ALL}
"""The 15 corruptions and the 4 further ones, by name, in the order of the paper."""
STANDARD: tuple[str, ...] = tuple(one.name for one in _ALL if not one.extra)
"""Names of the 15 corruptions that count in means."""
EXTRA: tuple[str, ...] = tuple(one.name for one in _ALL if one.extra)
"""Names of the 4 further corruptions."""


def corruption(name: str) -> Corruption:
    """The corruption of a name.

    Raises:
        CorruptionError: there is none.
    """
    if name not in CORRUPTIONS:
        raise CorruptionError(f"there is no corruption {name!r}: there are {', '.join(CORRUPTIONS)}")
    return CORRUPTIONS[name]


def check_severity(severity: int) -> None:
    """Refuse severities outside 1..5.

    Raises:
        CorruptionError: another severity.
    """
    if severity not in SEVERITIES:
        raise CorruptionError(f"severity is {severity}: it is a whole number from 1 to 5")


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Refuse images that a corruption is not defined for.

    Args:
        name: the corruption.
        shape: channels, height and width.

    Raises:
        CorruptionError: another number of channels than 1 and 3, fewer than 8 pixels along a side, or one channel
            where colour is needed.
    """
    channels, height, width = shape
    if channels not in (1, 3) or min(height, width) < LEAST_SIDE:
        raise CorruptionError(
            f"{name} is defined for images of 1 or 3 channels and at least {LEAST_SIDE} x {LEAST_SIDE} pixels, "
            f"got {channels} x {height} x {width}"
        )
    if channels == 1 and corruption(name).colour:
        raise CorruptionError(f"{name} needs colour images (3 channels), got {channels} x {height} x {width}")


def corrupt(
    images: UInt8[Tensor, "n c h w"],
    name: str,
    severity: int,
    *,
    seed: int = 0,
    ids: Int64[Tensor, " n"] | None = None,
    constants: TableName | None = None,
) -> UInt8[Tensor, "n c h w"]:
    """Corrupt images.

    The result for an image depends only on the image, the corruption, the severity, the seed and the image's id. It
    is computed on the CPU in double precision, then cut off to 8 bits as in the released generator (not rounded).

    Args:
        images: 8-bit images with 1 or 3 channels, of at least 8 x 8 pixels.
        name: the corruption.
        severity: 1 to 5.
        seed: seed of the random numbers.
        ids: the examples' ids, `(N,)`; None numbers them from 0.
        constants: table of constants; None for that of the size, see `table_for`.

    Raises:
        CorruptionError: an unknown corruption or severity, or images that it is not defined for.
    """
    one = corruption(name)
    check_severity(severity)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise CorruptionError(f"images are {images.dtype} of shape {tuple(images.shape)}: use uint8 (N, C, H, W)")
    check_shape(name, images.shape[1:])
    ids = torch.arange(len(images)) if ids is None else ids.cpu()
    if len(ids) != len(images):
        raise CorruptionError(f"there are {len(images)} images but {len(ids)} ids")
    chosen = TABLES[constants or table_for(*images.shape[2:])][name][severity - 1]
    draws = KeyedGenerator(derive_seed(seed, "corruption", name, severity), ids)
    size = max(1, _CHUNK // images[0].numel()) if len(images) else 1
    result = torch.empty(images.shape, dtype=torch.uint8)
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        values = images[part].cpu().contiguous().double() / 255
        changed = one.change(values, chosen, KeyedGenerator(draws.seed, ids[part]))
        # unchanged values are multiples of 1/255 up to rounding, which must not lower them by one level
        result[part] = (changed.clamp(0, 1) * 255 + 1e-3).floor().to(torch.uint8)
    return result.to(images.device)


__all__ = [
    "CORRUPTIONS",
    "EXTRA",
    "LEAST_SIDE",
    "SEVERITIES",
    "STANDARD",
    "Corruption",
    "CorruptionError",
    "Family",
    "TableName",
    "check_severity",
    "check_shape",
    "corrupt",
    "corruption",
    "table_for",
]
