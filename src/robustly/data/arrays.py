"""NumPy archives of images and labels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from robustly.data.images import class_numbers, to_pixels
from robustly.data.rows import Rows, rows_in_memory
from robustly.memory import SizeError, check_npz

_LAYOUTS = {
    "all": ("images", "labels"),
    "generated": ("image", "label"),  # the layout of published samples of diffusion models (Wang et al., ICML 2023)
    "train": ("x_train", "y_train"),
    "test": ("x_test", "y_test"),
}
_KEYS = "images and labels, or x_train, y_train, x_test and y_test"


def npz_rows(file: Path, named: int = 0) -> dict[str, Rows]:
    """Parts of an archive: `images`, `labels` (or `image`, `label`); or `x_train`, `y_train`, `x_test`, ...

    Images are uint8, or floats in [0, 1] on the 8-bit grid, `(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)` with 1 or
    3 channels, or fewer than the pixels of a side; labels are integers, `(N,)` or `(N, 1)`; a third array `classes`
    may hold class names.

    Args:
        file: the archive.
        named: number of classes that are named elsewhere.

    Raises:
        ValueError: if the file is damaged, larger than the limit of `robustly.memory`, holds Python objects, or
            lacks an array, or an array is invalid.
    """
    arrays = _read(file)
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for part, (images_key, labels_key) in _LAYOUTS.items():
        if images_key in arrays and labels_key in arrays:
            images = _images(arrays[images_key], f"{file} ({images_key})")
            parts[part] = images, _labels(arrays[labels_key], f"{file} ({labels_key})")
    if not parts or ({"all", "generated"} & parts.keys() and len(parts) > 1):
        raise ValueError(f"{file}: holds the arrays {', '.join(sorted(arrays)) or 'none'}: it needs {_KEYS}")
    names = arrays.get("classes")
    classes = (
        class_numbers([labels for _, labels in parts.values()], str(file), named)
        if names is None
        else tuple(str(name) for name in names.reshape(-1))
    )
    return {
        part: rows_in_memory(images, labels, classes, f"{file} ({part})")
        for part, (images, labels) in parts.items()
    }


def _read(file: Path) -> dict[str, NDArray[np.generic]]:
    # a damaged archive raises many kinds of errors of zipfile, zlib and NumPy
    try:
        check_npz(file)
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except SizeError:
        raise
    except Exception as error:
        raise ValueError(
            f"{file}: is damaged, not a NumPy archive, or holds Python objects, which are never unpickled ({error})"
        ) from error


def _images(array: NDArray[np.generic], where: str) -> UInt8[Tensor, "n c h w"]:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        channels_first(array, where)  # a wrong shape is named first
        raise ValueError(f"{where}: holds {array.dtype}: use uint8, or floats in [0, 1]")
    images = torch.from_numpy(np.ascontiguousarray(channels_first(array, where)))
    return to_pixels(images, where) if images.is_floating_point() else images


def channels_first(images: Any, where: str) -> Any:
    """A view of images with their channels before height and width.

    Args:
        images: an array or a tensor, `(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)` with 1 or 3 channels, or fewer
            than the pixels of a side.
        where: the file or data set, for error messages.

    Raises:
        ValueError: another number of axes, or channels that may be first or last.
    """
    if images.ndim not in (3, 4):
        raise ValueError(
            f"{where}: has the shape {tuple(images.shape)}: use (N, H, W), (N, C, H, W) or (N, H, W, C)"
        )
    if images.ndim == 3:
        return images[:, None]
    _, one, two, three = images.shape
    first, last = one in (1, 3), three in (1, 3)
    if not first and not last:  # other numbers of channels: fewer than the pixels of a side
        first, last = one < min(two, three), three < min(one, two)
    if first and last:
        raise ValueError(f"{where}: the shape {tuple(images.shape)} has channels first or last, which is not clear")
    return images.swapaxes(2, 3).swapaxes(1, 2) if last else images


def _labels(array: NDArray[np.generic], where: str) -> Int64[Tensor, " n"]:
    if array.dtype.kind not in "iu":
        raise ValueError(f"{where}: holds {array.dtype}: labels are integers 0..K-1")
    if array.ndim != 1 and array.shape[1:] != (1,):
        raise ValueError(f"{where}: has the shape {array.shape}: labels are one integer for each image, (N,)")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{where}: holds the label {array.max()}: labels are integers 0..K-1")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))
