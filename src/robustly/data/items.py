"""Images and labels of any library as 8-bit tensors and class numbers: arrays, tensors, Pillow images, lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustly.data.arrays import channels_first
from robustly.data.decoding import Decoding, EncodedImage, decode_images, different_shapes, image_pixels, refit
from robustly.data.images import to_pixels
from robustly.data.table_files import Columns

IMAGE_KEYS = ("pixel_values", "image", "images", "img", "inputs", "input", "x", "data", "png", "jpg")
LABEL_KEYS = ("label", "labels", "fine_label", "target", "targets", "y", "class", "cls")


@dataclass(frozen=True)
class Reading:
    """Settings of reading.

    Args:
        source: name of the data, for error messages.
        round_to_8_bits: True rounds floats to the 8-bit grid; False refuses floats that are not on it.
        decoding: size and channels of the images.
        numbers: class number of each name, for labels that are text.
        columns: keys of the image and the label in mappings; None is the first of the usual keys.
    """

    source: str
    round_to_8_bits: bool = False
    decoding: Decoding = field(default_factory=Decoding)
    numbers: Mapping[str, int] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)


def pair_of(item: Any, reading: Reading) -> tuple[Any, Any]:
    """Image and label, or images and labels, of a tuple whose first two values they are, or of a mapping.

    Raises:
        ValueError: the item is of another kind, or a mapping without such keys.
    """
    if isinstance(item, Mapping):
        return _image(item, reading), _value(item, LABEL_KEYS, reading.columns.label, "label", reading.source)
    if isinstance(item, tuple | list) and len(item) >= 2:
        return (_image(item[0], reading) if isinstance(item[0], Mapping) else item[0]), item[1]
    raise ValueError(
        f"{reading.source}: its items are {_kind(item)}: they should be pairs of (image, label), or mappings "
        "with the keys image and label"
    )


def _image(item: Mapping[Any, Any], reading: Reading) -> Any:
    return _value(item, IMAGE_KEYS, reading.columns.image, "image", reading.source)


def _value(item: Mapping[Any, Any], usual: Sequence[str], given: str | None, role: str, source: str) -> Any:
    keys = usual if given is None else (given,)
    for key in keys:
        if key in item:
            return item[key]
    found = ", ".join(str(key) for key in item) or "none"
    raise ValueError(
        f"{source}: an item has no {role}: its keys are {found}, not {', '.join(keys)}: set {role}_column"
    )


def is_item(value: Any) -> bool:
    """True for an example: a mapping, or a tuple of an image and one label. Two texts are two paths."""
    if isinstance(value, Mapping):
        return True
    if (
        not isinstance(value, tuple | list)
        or len(value) < 2
        or all(isinstance(one, str | Path) for one in value[:2])
    ):
        return False
    return is_one_label(value[1])


def is_one_label(value: Any) -> bool:
    """True for the label of one example: a number, a text, or an array of one value."""
    if isinstance(value, bool | int | float | str | np.number | np.bool_):
        return True
    return isinstance(value, Tensor | np.ndarray) and value.ndim < 2 and value.shape in ((), (1,))


def pixels_of(images: Any, reading: Reading, first: int = 0) -> UInt8[Tensor, "n c h w"]:
    """8-bit pixels of a batch of images.

    Args:
        images: an array or tensor `(N, C, H, W)`, `(N, H, W, C)` or `(N, H, W)`, or a sequence of images, each a
            Pillow image, an array, a tensor, or the path or the bytes of an image file.
        reading: settings.
        first: number of the first image, for error messages.

    Raises:
        ValueError: the shape or the values are not those of images, or the images have different shapes.
    """
    array = images if _is_array(images) else None
    if array is None and not isinstance(images, list | tuple):
        raise ValueError(
            f"{reading.source}: images are {_kind(images)}: give an array, a tensor or a list of images"
        )
    if array is not None:
        return _pixels_of_array(array, reading)
    if not images:
        raise ValueError(f"{reading.source}: is empty, there is no example in it")
    if all(isinstance(image, Tensor) and image.ndim < 4 for image in images) and _are_alike(images):
        return _pixels_of_array(torch.stack([image.detach() for image in images]), reading, one_by_one=True)
    found = [_pixels_of_image(image, reading, first + place) for place, image in enumerate(images)]
    for place, one in enumerate(found):
        check_shape(one, found[0], first + place, first, reading.source)
    return torch.cat(found)


def _are_alike(images: Sequence[Tensor]) -> bool:
    return len({(image.shape, image.dtype, image.device) for image in images}) == 1


def check_shape(images: Tensor, other: Tensor, number: int, other_number: int, source: str) -> None:
    """Refuse images of another shape than earlier ones.

    Raises:
        ValueError: the shapes differ; the message names `image_size` or `channels`.
    """
    if images.shape[1:] != other.shape[1:]:
        shape, before = ((*one.shape[2:], one.shape[1]) for one in (images, other))
        problem = different_shapes(shape, f"image {number}", before, f"image {other_number}")
        raise ValueError(f"{source}: {problem}")


def _pixels_of_image(image: Any, reading: Reading, number: int) -> UInt8[Tensor, "1 c h w"]:
    if not _is_array(image):
        if type(image).__module__.partition(".")[0] == "PIL":
            try:
                pixels = image_pixels(image, reading.decoding)
            except (ValueError, OSError) as error:
                raise ValueError(f"{reading.source}: image {number}: {error}") from None
            return torch.from_numpy(pixels).permute(2, 0, 1)[None]
        if isinstance(image, Mapping) and image.get("bytes") is not None:
            image = image["bytes"]
        if isinstance(image, bytes | str | Path):
            content = image if isinstance(image, bytes) else Path(image)
            file = EncodedImage(content, f"{reading.source}: image {number}")
            return decode_images([file], reading.decoding)
        image = np.asarray(image) if isinstance(image, list | tuple) or hasattr(image, "__array__") else image
        if not _is_array(image) or image.dtype == object:
            raise ValueError(
                f"{reading.source}: image {number} is {_kind(image)}: give a Pillow image, an array or a tensor"
            )
    batch = image if image.ndim == 4 else image[None]
    return _pixels_of_array(batch, reading, one_by_one=True)


def _pixels_of_array(images: Any, reading: Reading, one_by_one: bool = False) -> UInt8[Tensor, "n c h w"]:
    source = reading.source
    if images.ndim == 2 and one_by_one:
        raise ValueError(f"{source}: an image has the shape {tuple(images.shape[1:])}: use (C, H, W) or (H, W)")
    is_tensor = isinstance(images, Tensor)
    if is_tensor:
        if images.layout != torch.strided or images.is_meta or images.is_quantized:
            raise ValueError(f"{source}: images are a sparse, quantised or meta tensor: give a dense one")
        values = images.detach().as_subclass(Tensor)
        ordered = values if values.ndim == 4 and values.shape[1] in (1, 3) else channels_first(values, source)
    else:
        array = channels_first(images, source)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{source}: images hold {array.dtype}: use uint8, or floats in [0, 1]")
        if array.dtype.itemsize > 8 or not array.dtype.isnative:
            array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        ordered = torch.from_numpy(np.ascontiguousarray(array))
    return refit_on_cpu(_as_bytes(ordered, reading), reading)


def refit_on_cpu(pixels: UInt8[Tensor, "n c h w"], reading: Reading) -> UInt8[Tensor, "n d i j"]:
    """Images of the size and channels of the settings, on their own device."""
    if reading.decoding == Decoding():
        return pixels.contiguous()
    return refit(pixels.cpu(), reading.decoding, reading.source).to(pixels.device)


def _as_bytes(images: Tensor, reading: Reading) -> UInt8[Tensor, "n c h w"]:
    source = reading.source
    if images.dtype == torch.uint8:
        return images
    if images.is_floating_point():
        return to_pixels(images, source, reading.round_to_8_bits)
    if images.dtype == torch.bool or images.is_complex() or images.numel() == 0:
        raise ValueError(
            f"{source}: images are {images.dtype} of shape {tuple(images.shape)}: use uint8, or floats"
        )
    lowest, highest = int(images.min()), int(images.max())
    if lowest < 0 or not 1 < highest <= 255:
        raise ValueError(
            f"{source}: images are {images.dtype} from {lowest} to {highest}: use uint8 from 0 to 255, or floats "
            "in [0, 1]"
        )
    return images.to(torch.uint8)


def labels_of(labels: Any, reading: Reading) -> Int64[Tensor, " n"]:
    """Class numbers from integers of any type: an array, a tensor or a sequence, `(N,)` or `(N, 1)`.

    Text is replaced by its number among the class names that are given.

    Raises:
        ValueError: the labels are of another type or shape.
    """
    source = reading.source
    if isinstance(labels, list | tuple):
        labels = [value.detach().cpu().numpy() if isinstance(value, Tensor) else value for value in labels]
        if any(isinstance(value, str) for value in labels):
            labels = [_number(value, reading) for value in labels]
    try:
        array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except (ValueError, TypeError):
        raise ValueError(f"{source}: labels are {_kind(labels)}: give one integer for each image") from None
    if array.dtype.kind in "US":
        array = np.array([_number(str(value), reading) for value in array.reshape(-1)])
    if array.dtype == object and all(isinstance(value, int | np.integer) for value in array.reshape(-1)):
        array = np.array(array.tolist())
    if array.ndim > 1 and array.shape[1:] == (1,) * (array.ndim - 1):
        array = array.reshape(-1)
    if array.dtype.kind not in "iub":
        hint = ": for one-hot labels give labels.argmax(1)" if array.ndim == 2 else ""
        raise ValueError(f"{source}: labels are {array.dtype} of shape {array.shape}: give integers (N,){hint}")
    if array.ndim != 1:
        hint = ": for one-hot labels give labels.argmax(1)" if array.ndim == 2 else ""
        raise ValueError(f"{source}: labels have the shape {array.shape}: give one integer for each image{hint}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{source}: holds the label {array.max()}: labels are integers 0..K-1")
    return torch.from_numpy(array.astype(np.int64))


def _number(value: Any, reading: Reading) -> int:
    if not reading.numbers:
        raise ValueError(
            f"{reading.source}: labels are text, such as {str(value)[:40]!r}: give the class names in the order of "
            "the model's outputs, classes=[...]"
        )
    if value not in reading.numbers:
        raise ValueError(f"{reading.source}: the label {str(value)[:40]!r} is not one of the class names")
    return reading.numbers[value]


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _kind(value: Any) -> str:
    if _is_array(value):
        return f"{type(value).__name__} of {value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)} values"
    return f"of the type {type(value).__name__}"
