"""RobustBench's `load_cifar10` and `load_cifar100` from local files."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robustly.compat.robustbench.loading import RobustBenchError
from robustly.compat.robustbench.pickled_batches import read_batch
from robustly.data import DataConfig, ImageData, load_test

Pixels = UInt8[Tensor, "n c h w"]
Labels = Int64[Tensor, " n"]
SHARED = "ROBUSTLY_SHARED_DATA"
"""Environment variable: a folder with `cifar10-jpeg`, CIFAR-10 as JPEG files in Parquet."""
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class _Layout:
    """Places of the test images in a data folder, and the fields of the two original formats."""

    name: str
    classes: int
    python: str
    binary: str
    label_key: str
    label_bytes: int
    folders: tuple[str, ...]


_CIFAR10_LAYOUT = _Layout(
    "CIFAR-10", 10, "cifar-10-batches-py/test_batch", "cifar-10-batches-bin/test_batch.bin", "labels", 1,
    ("cifar10/plain_text", "cifar10", "cifar-10"),
)  # fmt: skip
_CIFAR100_LAYOUT = _Layout(
    "CIFAR-100", 100, "cifar-100-python/test", "cifar-100-binary/test.bin", "fine_labels", 2,
    ("cifar100/cifar100", "cifar100", "cifar-100"),
)  # fmt: skip
_LAYOUTS = {"cifar10": _CIFAR10_LAYOUT, "cifar100": _CIFAR100_LAYOUT}


def load_cifar10(
    n_examples: int | None = None,
    data_dir: str | Path = "./data",
    transforms_test: Callable[[Image.Image], Tensor] | None = None,
) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    """The first test images of CIFAR-10 and their labels, from local files; nothing is downloaded or unpickled.

    Args:
        n_examples: number of images; None is all.
        data_dir: folder with `cifar-10-batches-py` (torchvision's) or `cifar-10-batches-bin`, or one of these two;
            or a source of `robustly.data`, also in a folder `cifar10` in it: Parquet files, a folder of
            `save_to_disk`, images by class. If it has none of them, `cifar10-jpeg` in the folder
            `ROBUSTLY_SHARED_DATA` is read, with a warning, since its images are compressed.
        transforms_test: from a PIL image to a tensor; None gives floats in [0, 1].

    Returns:
        Images, `(N, 3, 32, 32)` in [0, 1] without transforms, and labels `(N,)`.

    Raises:
        FileNotFoundError: no such files.
        ValueError: files that are not CIFAR-10, or have fewer images.
    """
    images, labels, remark = images_for_tests("cifar10", n_examples, data_dir)
    if remark:
        warnings.warn(remark, stacklevel=2)
    return transformed(images, transforms_test), labels


def load_cifar100(
    n_examples: int | None = None,
    data_dir: str | Path = "./data",
    transforms_test: Callable[[Image.Image], Tensor] | None = None,
) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    """The first test images of CIFAR-100 with their fine labels; see `load_cifar10`.

    The folders are `cifar-100-python`, `cifar-100-binary`, or `cifar100`.

    Raises:
        FileNotFoundError: no such files.
        ValueError: files that are not CIFAR-100, or have fewer images.
    """
    images, labels, remark = images_for_tests("cifar100", n_examples, data_dir)
    if remark:
        warnings.warn(remark, stacklevel=2)
    return transformed(images, transforms_test), labels


def check_count(count: object) -> None:
    """Refuse a number of images that is neither a positive whole number nor None.

    Raises:
        RobustBenchError: it is refused.
    """
    if count is not None and (type(count) is not int or count < 1):
        raise RobustBenchError(f"n_examples must be a positive number of images or None, got {count!r}")


def images_for_tests(dataset: str, count: int | None, data_dir: str | Path) -> tuple[Pixels, Labels, str]:
    """Test images of "cifar10" or "cifar100", their labels, and a remark on the source, or an empty one.

    The arguments and errors are those of `load_cifar10`.
    """
    layout, folder = _LAYOUTS[dataset], Path(data_dir).expanduser()
    check_count(count)
    places = (folder, *(folder / name for name in layout.folders))
    for file, read in ((layout.python, _from_pickle), (layout.binary, _from_binary)):
        for path in (place / one for place in places for one in (file, Path(file).name)):
            if path.is_file():
                return *_first(*read(path, layout), layout, count, str(path)), ""
    for source in places:
        if source.is_dir() if source != folder else _is_source(folder):
            return *_from_source(source, layout, count), ""
    shared = os.environ.get(SHARED)
    source = Path(shared or "") / f"{dataset}-jpeg"
    if shared and source.is_dir():
        remark = (
            f"{folder} has no {layout.name}, so {source} is read: its images are compressed as JPEG and in another "
            "order, so that accuracies differ from published ones"
        )
        return *_from_source(source, layout, count), remark
    raise FileNotFoundError(_absent(layout, folder))


def _is_source(path: Path) -> bool:
    """True for a file, and for a folder with Parquet files, of `save_to_disk`, or with a split for tests."""
    if not path.is_dir():
        return path.is_file()
    inside = {item.name for item in path.iterdir()}
    known = {"data", "test", "dataset_dict.json", "state.json"}
    return bool(inside & known) or any(name.endswith(".parquet") for name in inside)


def _absent(layout: _Layout, folder: Path) -> str:
    archives = sorted(folder.glob("cifar*.tar.gz")) if folder.is_dir() else []
    remedy = (
        f"unpack {archives[0].name} in it: tar -xzf {archives[0]} -C {folder}"
        if archives
        else f"put {Path(layout.python).parts[0]} there, Parquet files, or a folder of images by class"
    )
    return f"{folder} has no {layout.name}, and robustly downloads nothing: {remedy}"


def _from_pickle(path: Path, layout: _Layout) -> tuple[NDArray[Any], NDArray[Any]]:
    batch = read_batch(path)
    pixels, labels = batch.get("data"), batch.get(layout.label_key)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise RobustBenchError(f"{path}: has no array 'data' of {_PIXELS} bytes an image")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(one) is int for one in labels):
        raise RobustBenchError(f"{path}: has no list {layout.label_key!r} of a number for each image")
    return pixels, np.array(labels)


def _from_binary(path: Path, layout: _Layout) -> tuple[NDArray[Any], NDArray[Any]]:
    content = np.fromfile(path, np.uint8)
    length = layout.label_bytes + _PIXELS
    if content.size == 0 or content.size % length:
        raise RobustBenchError(f"{path}: is damaged: {content.size} bytes are not rows of {length}")
    rows = content.reshape(-1, length)
    return rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1]


def _first(
    pixels: NDArray[Any], labels: NDArray[Any], layout: _Layout, count: int | None, where: str
) -> tuple[Pixels, Labels]:
    if int(labels.min()) < 0 or int(labels.max()) >= layout.classes:
        raise RobustBenchError(f"{where}: labels of {layout.name} are 0 to {layout.classes - 1}")
    if count is not None and count > len(pixels):
        raise RobustBenchError(f"{where}: has {len(pixels)} images, fewer than n_examples={count}")
    images = np.ascontiguousarray(pixels[:count]).reshape(-1, 3, _SIDE, _SIDE)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels[:count].astype(np.int64))


def _from_source(source: Path, layout: _Layout, count: int | None) -> tuple[Pixels, Labels]:
    try:
        data = load_test(DataConfig(str(source), evaluation_only=True, test_limit=count))
    except ValueError as error:
        raise RobustBenchError(str(error).replace("test_limit", "n_examples")) from None
    _check(data, layout, source)
    return data.images, data.labels


def _check(data: ImageData, layout: _Layout, source: Path) -> None:
    if data.shape != (3, _SIDE, _SIDE):
        raise RobustBenchError(f"{source}: images of {layout.name} have the shape (3, 32, 32), not {data.shape}")
    if data.num_classes != layout.classes:
        raise RobustBenchError(f"{source}: {layout.name} has {layout.classes} classes, not {data.num_classes}")


def transformed(images: Pixels, transform: Callable[[Image.Image], Tensor] | None) -> Tensor:
    """Images as floats in [0, 1], or as a function of PIL images gives them.

    Raises:
        RobustBenchError: the transform is not a function, or does not return tensors.
    """
    if transform is None:
        return images.to(torch.float32) / 255
    if not callable(transform):
        raise RobustBenchError(f"transforms_test must be a function of a PIL image, got {transform!r}")
    return torch.stack([_tensor(transform(_picture(image))) for image in images])


def _picture(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise RobustBenchError(
            f"transforms_test must return tensors, got {type(value).__name__}: end with ToTensor()"
        )
    return value
