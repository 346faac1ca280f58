"""Decoding of image files to uint8 tensors of one shape, in the order given."""

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from robustly.memory import SizeError, check_bytes, check_pixels

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""Ends of the names of image files in folders."""
_GREY_MODES = ("1", "L", "LA", "La")
_DEEP_MODES = ("I", "F")  # and I;16, I;16B, ...: more than 8 bits a channel
_ORIENTATION = 0x0112
_WORKERS = min(8, os.cpu_count() or 1)
_CHUNK = 64


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding.

    Args:
        image_size: side in pixels: the shorter side is resized to it (bicubic), then the centre is cut out;
            None leaves images as they are.
        channels: 1 for grey, 3 for colour; None keeps those of the files.
    """

    image_size: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}: give a side in pixels, or leave it out")
        if self.image_size is not None:
            try:
                check_pixels(self.image_size, self.image_size)
            except SizeError as error:
                raise ValueError(f"image_size is {self.image_size}: {error}") from None
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels is {self.channels}: use 1 (grey), 3 (colour), or leave it out")


@dataclass(frozen=True)
class EncodedImage:
    """Bytes of an image file, or its path, and its name in error messages."""

    content: bytes | Path
    name: str


def decode_images(encoded: Iterable[EncodedImage], decoding: Decoding) -> UInt8[Tensor, "n c h w"]:
    """Decode files of any format of Pillow, by threads, in the order given.

    Raises:
        ValueError: naming the file, if one cannot be read or has more than 8 bits a channel, if shapes differ, or
            if an image or all of them are larger than the limits of `robustly.memory`.
    """
    files = list(encoded)
    if not files:
        raise ValueError("there is no image to decode")
    first = _decode(files[0], decoding)
    check_bytes(first.nbytes * len(files), f"{files[0].name} and {len(files) - 1} more images of its size")
    # one task per image would cost as much as decoding a small one
    size = max(1, min(_CHUNK, -(-len(files) // _WORKERS)))
    chunks = [files[place : place + size] for place in range(1, len(files), size)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        decoded = pool.map(lambda chunk: [_decode(file, decoding) for file in chunk], chunks)
        arrays = [first, *(array for chunk in decoded for array in chunk)]
    return _stacked(arrays, files)


def refit(images: UInt8[Tensor, "n c h w"], decoding: Decoding, source: str) -> UInt8[Tensor, "n d i j"]:
    """Convert decoded images to the size and channels of `decoding`.

    Raises:
        ValueError: if they have neither 1 nor 3 channels but must be changed.
    """
    _, channels, height, width = images.shape
    same_channels = decoding.channels in (None, channels)
    if same_channels and decoding.image_size in (None, height) and height == width:
        return images
    if same_channels and decoding.image_size is None:
        return images
    if channels not in (1, 3):
        raise ValueError(f"{source}: image_size and channels can only be set for 1 or 3 channels, not {channels}")
    side = decoding.image_size or min(height, width)
    check_bytes(len(images) * side * side * (decoding.channels or channels), source)
    arrays = [_fitted(_to_image(array), decoding) for array in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _to_image(array: NDArray[np.uint8]) -> "Image.Image":
    from PIL import Image  # noqa: PLC0415 (slow to import, and data in arrays do not need it)

    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _decode(file: EncodedImage, decoding: Decoding) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps  # noqa: PLC0415

    source = io.BytesIO(file.content) if isinstance(file.content, bytes) else file.content
    # Pillow's decoders raise OSError, SyntaxError, struct.error and more for a damaged file
    try:
        with Image.open(source) as image:
            check_pixels(*image.size)
            image.load()
            upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION) else image
            return image_pixels(upright, decoding)
    except MemoryError as error:
        raise ValueError(
            f"{file.name}: there is not enough memory for the decoded images: set data.in_memory to false, which "
            "keeps them on the disk"
        ) from error
    except Exception as error:
        raise ValueError(f"{file.name}: is not a readable image: {error}") from error


def image_pixels(image: "Image.Image", decoding: Decoding) -> NDArray[np.uint8]:
    """Pixels of a Pillow image, `(H, W, C)`.

    Raises:
        ValueError: if it has more than 8 bits a channel.
    """
    if image.mode.startswith(_DEEP_MODES):
        raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
    return _fitted(image, decoding)


def _fitted(image: "Image.Image", decoding: Decoding) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps  # noqa: PLC0415

    channels = decoding.channels or (1 if image.mode in _GREY_MODES else 3)
    mode = "L" if channels == 1 else "RGB"
    fitted = image if image.mode == mode else image.convert(mode)
    side = decoding.image_size
    if side is not None and fitted.size != (side, side):
        fitted = ImageOps.fit(fitted, (side, side), Image.Resampling.BICUBIC)
    array: NDArray[np.uint8] = np.array(fitted, dtype=np.uint8)
    return array[:, :, None] if channels == 1 else array


def _stacked(arrays: Sequence[NDArray[np.uint8]], files: Sequence[EncodedImage]) -> UInt8[Tensor, "n c h w"]:
    for array, file in zip(arrays, files, strict=True):
        if array.shape != arrays[0].shape:
            raise ValueError(different_shapes(array.shape, file.name, arrays[0].shape, files[0].name))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def different_shapes(shape: Sequence[int], name: str, other: Sequence[int], other_name: str) -> str:
    """Error message for two images of different shapes, each height, width and channels."""
    if shape[2] != other[2]:
        return (
            f"{name}: has {shape[2]} channels but {other_name} has {other[2]}: set channels to 1 or 3 to convert "
            "all images"
        )
    return (
        f"{name}: is {shape[0]}x{shape[1]} pixels but {other_name} is {other[0]}x{other[1]}: set image_size to "
        "resize all images"
    )
