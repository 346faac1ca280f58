"""Decoding of image files to uint8 tensors of one shape, in the order given."""

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from robustly.memory import SizeError, check_bytes, check_pixels

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
    chunks = [files[place : place + _CHUNK] for place in range(1, len(files), _CHUNK)]
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


def _to_image(array: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _decode(file: EncodedImage, decoding: Decoding) -> NDArray[np.uint8]:
    source = io.BytesIO(file.content) if isinstance(file.content, bytes) else file.content
    # Pillow's decoders raise OSError, SyntaxError, struct.error and more for a damaged file
    try:
        with Image.open(source) as image:
            check_pixels(*image.size)
            image.load()
            upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION) else image
            if upright.mode.startswith(_DEEP_MODES):
                raise ValueError(f"it has more than 8 bits a channel (mode {upright.mode})")
            return _fitted(upright, decoding)
    except Exception as error:
        raise ValueError(f"{file.name}: is not a readable image: {error}") from error


def _fitted(image: Image.Image, decoding: Decoding) -> NDArray[np.uint8]:
    channels = decoding.channels or (1 if image.mode in _GREY_MODES else 3)
    mode = "L" if channels == 1 else "RGB"
    fitted = image if image.mode == mode else image.convert(mode)
    side = decoding.image_size
    if side is not None and fitted.size != (side, side):
        fitted = ImageOps.fit(fitted, (side, side), Image.Resampling.BICUBIC)
    array: NDArray[np.uint8] = np.array(fitted, dtype=np.uint8)
    return array[:, :, None] if channels == 1 else array


def _stacked(arrays: Sequence[NDArray[np.uint8]], files: Sequence[EncodedImage]) -> UInt8[Tensor, "n c h w"]:
    first = arrays[0].shape
    for array, file in zip(arrays, files, strict=True):
        if array.shape[2] != first[2]:
            raise ValueError(
                f"{file.name}: has {array.shape[2]} channels but {files[0].name} has {first[2]}: "
                "set channels to 1 or 3 to convert all images"
            )
        if array.shape != first:
            raise ValueError(
                f"{file.name}: is {array.shape[0]}x{array.shape[1]} pixels but {files[0].name} is "
                f"{first[0]}x{first[1]}: set image_size to resize all images"
            )
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
