"""Corrupted images in folders: the arrays of CIFAR-10-C, or the files of ImageNet-C, as they are published."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from robustly.corruptions import CORRUPTIONS, SEVERITIES
from robustly.data.decoding import IMAGE_SUFFIXES, Decoding, EncodedImage, decode_images
from robustly.data.images import ImageData, class_numbers
from robustly.data.rows import Rows
from robustly.memory import check_npy

LABELS = "labels.npy"
"""File of the labels beside the arrays of CIFAR-10-C."""


@dataclass(frozen=True)
class CorruptedFiles:
    """Corrupted images of a folder, the same examples for every corruption and severity.

    Args:
        root: the folder.
        names: its corruptions, in the order of the paper.
        count: number of examples of each corruption and severity.
        digest: hash of the names and sizes of its files.
        read: from a corruption and a severity to its images, on the CPU.
    """

    root: Path
    names: tuple[str, ...]
    count: int
    digest: str
    read: Callable[[str, int], ImageData]


def open_corrupted(root: Path, like: ImageData, count: int | None = None) -> CorruptedFiles:
    """Open a folder of corrupted images; they are read when they are used.

    A folder with `labels.npy` has the layout of CIFAR-10-C: for each corruption a file `NAME.npy` with uint8 images
    `(5 * N, H, W, C)`, the N examples of severity 1 first. Other folders have the layout of ImageNet-C:
    `NAME/SEVERITY/CLASS/*.jpg`.

    Args:
        root: the folder.
        like: the clean test images: shape and classes.
        count: number of examples to use: the first of arrays, evenly spaced ones of folders, which are sorted by
            class; None for all.

    Raises:
        ValueError: a file or folder that is missing, damaged, or does not fit; the message names it and its shape.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder of corrupted images")
    if (root / LABELS).is_file():
        return _arrays(root, like, count)
    return _folders(root, like, count)


def corrupted_rows(source: str, named: int = 0) -> dict[str, Rows]:
    """The images of `FOLDER/NAME.npy:SEVERITY`, an array of CIFAR-10-C, as a data set with one part "all".

    Args:
        source: path of an array of uint8 images `(5 * N, H, W, C)`, with `labels.npy` beside it, and 1 to 5.
        named: number of classes that are named elsewhere.

    Raises:
        ValueError: a severity outside 1 to 5; a file that is missing or damaged, or of another shape.
    """
    name, _, number = source.rpartition(":")
    file = Path(name).expanduser()
    if number not in map(str, SEVERITIES):
        raise ValueError(f"{source}: the severity is {number[:20]!r}: write FOLDER/NAME.npy:1 to FOLDER/NAME.npy:5")
    for one in (file, file.with_name(LABELS)):
        if not one.is_file():
            raise ValueError(f"{one}: there is no such file")
    array, place = _open(file), file.with_name(LABELS)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or len(array) % len(SEVERITIES):
        raise ValueError(
            f"{file}: holds {array.dtype} of shape {array.shape}: use uint8 of shape (5 * N, H, W, C) with 1 or 3 "
            "channels"
        )
    each = len(array) // len(SEVERITIES)
    labels = _labels_of_one_severity(_labels(place), each, place)
    start = (int(number) - 1) * each

    def read(index: Int64[Tensor, " m"]) -> UInt8[Tensor, "m c h w"]:
        pixels = torch.from_numpy(np.array(array[(index + start).numpy()]))
        return pixels.permute(0, 3, 1, 2).contiguous()

    return {"all": Rows(labels, class_numbers([labels], source, named), source, read)}


def _arrays(root: Path, like: ImageData, count: int | None) -> CorruptedFiles:
    names = tuple(name for name in CORRUPTIONS if (root / f"{name}.npy").is_file())
    if not names:
        raise ValueError(f"{root}: has {LABELS} but none of the files {', '.join(CORRUPTIONS)} with the end .npy")
    labels = _labels(root / LABELS)
    if int(labels.max()) >= like.num_classes:
        raise ValueError(
            f"{root / LABELS}: holds the label {int(labels.max())}, but the model has {like.num_classes} classes"
        )
    channels, height, width = like.shape
    arrays = {name: _open(root / f"{name}.npy") for name in names}
    size = 0
    for name, array in arrays.items():
        file = root / f"{name}.npy"
        if array.dtype != np.uint8 or array.shape[1:] != (height, width, channels):
            raise ValueError(
                f"{file}: holds {array.dtype} of shape {array.shape}, but the model's images need uint8 of shape "
                f"(5 * N, {height}, {width}, {channels})"
            )
        if len(array) == 0 or len(array) % len(SEVERITIES):
            raise ValueError(f"{file}: has shape {array.shape}: the number of images is not a multiple of 5")
        if size and len(array) != size:
            raise ValueError(f"{file}: has shape {array.shape}, but {names[0]}.npy has {size} images")
        size = len(array)
    each = size // len(SEVERITIES)
    labels = _labels_of_one_severity(labels, each, root / LABELS)
    used = min(each, count or each)

    def read(name: str, severity: int) -> ImageData:
        start = (severity - 1) * each
        pixels = torch.from_numpy(np.array(arrays[name][start : start + used])).permute(0, 3, 1, 2).contiguous()
        ids = torch.arange(used)
        return ImageData(pixels, labels[:used], ids, like.classes, f"{root / name}.npy, severity {severity}")

    files = [root / LABELS, *(root / f"{name}.npy" for name in names)]
    return CorruptedFiles(root, names, used, _digest(root, files), read)


def _open(file: Path) -> NDArray[np.generic]:
    """An array that stays in its file until it is used; objects are never unpickled."""
    try:
        check_npy(file)
        array: NDArray[np.generic] = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises many kinds of errors
        raise ValueError(f"{file}: is damaged, not a NumPy array, or holds Python objects ({error})") from error
    return array


def _labels(file: Path) -> Int64[Tensor, " n"]:
    array = _open(file)
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{file}: holds {array.dtype} of shape {array.shape}: labels are integers (N,)")
    if int(array.min()) < 0:
        raise ValueError(f"{file}: holds the label {int(array.min())}: labels are integers 0..K-1")
    return torch.from_numpy(array.astype(np.int64))


def _labels_of_one_severity(labels: Int64[Tensor, " n"], each: int, file: Path) -> Int64[Tensor, " m"]:
    if len(labels) not in (each, each * len(SEVERITIES)):
        raise ValueError(
            f"{file}: has shape ({len(labels)},), but there are {each} images of each severity: give {each} or "
            f"{each * len(SEVERITIES)} labels"
        )
    parts = labels.reshape(-1, each)
    if bool((parts != parts[0]).any()):
        raise ValueError(f"{file}: the labels of the five severities differ, so they are not of the same images")
    return parts[0]


def _folders(root: Path, like: ImageData, count: int | None) -> CorruptedFiles:
    names = tuple(name for name in CORRUPTIONS if (root / name).is_dir())
    if not names:
        raise ValueError(
            f"{root}: has neither {LABELS} (as CIFAR-10-C) nor folders {', '.join(list(CORRUPTIONS)[:3])}, ... "
            "(as ImageNet-C)"
        )
    found = {(name, severity): _files(root / name / str(severity)) for name in names for severity in SEVERITIES}
    first = found[names[0], 1]
    labels = _class_labels(root / names[0] / "1", list(first), like)
    for (name, severity), files in found.items():
        if {key: len(some) for key, some in files.items()} != {key: len(some) for key, some in first.items()}:
            raise ValueError(
                f"{root / name / str(severity)}: its classes or their numbers of images differ from those of "
                f"{root / names[0] / '1'}"
            )
    numbers = torch.tensor([labels[key] for key, some in first.items() for _ in some])
    used = min(len(numbers), count or len(numbers))
    rows = torch.arange(used) * len(numbers) // used
    channels, height, width = like.shape
    decoding = Decoding(height if height == width else None, channels if channels in (1, 3) else None)

    def read(name: str, severity: int) -> ImageData:
        paths = [path for some in found[name, severity].values() for path in some]
        chosen = [EncodedImage(paths[row], str(paths[row])) for row in rows.tolist()]
        pixels = decode_images(chosen, decoding)
        source = str(root / name / str(severity))
        if pixels.shape[1:] != like.images.shape[1:]:
            raise ValueError(
                f"{source}: images have the shape {tuple(pixels.shape[1:])}, those of the model {like.shape}"
            )
        return ImageData(pixels, numbers[rows], rows, like.classes, source)

    every = [path for one in found.values() for some in one.values() for path in some]
    return CorruptedFiles(root, names, used, _digest(root, every), read)


def _files(folder: Path) -> dict[str, list[Path]]:
    """Image files by class, in the order of names."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder: each corruption has folders 1 to 5 of classes")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {
        path.name: sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        for path in classes
    }
    if not any(files.values()):
        raise ValueError(f"{folder}: holds no image in folders of classes")
    return files


def _class_labels(folder: Path, names: Sequence[str], like: ImageData) -> dict[str, int]:
    """Class numbers of folders: by the names of the classes, else by their order if there are as many."""
    if set(names) <= set(like.classes):
        return {name: like.classes.index(name) for name in names}
    if len(names) == like.num_classes:
        return {name: number for number, name in enumerate(names)}
    raise ValueError(
        f"{folder}: has {len(names)} class folders such as {names[0]}, but the model has {like.num_classes} "
        f"classes such as {like.classes[0]}"
    )


def _digest(root: Path, files: Sequence[Path]) -> str:
    listing = "\n".join(f"{file.relative_to(root).as_posix()} {file.stat().st_size}" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()
