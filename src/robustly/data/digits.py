"""MNIST: the 5,000 digits that the package ships, and the original IDX files."""

import gzip
import hashlib
import importlib.resources
import lzma
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustly.data.images import class_numbers
from robustly.data.rows import Rows, rows_in_memory
from robustly.memory import check_bytes

MNIST5K_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
_DIGITS = tuple(str(digit) for digit in range(10))
_IDX_PARTS = {"train": "train", "t10k": "test"}
_IDX_MAGIC = {"images": 2051, "labels": 2049}


def mnist5k_rows() -> dict[str, Rows]:
    """Read the 5,000 MNIST training digits that the package ships, 500 of each class, sorted by class.

    The file is 5,000 images of 28x28 bytes and then 5,000 labels of one byte, compressed; `mnist5k.txt` beside it
    states source and licence.

    Returns:
        One part, "all".

    Raises:
        ValueError: the file is damaged.
    """
    file = importlib.resources.files("robustly.data") / "mnist5k.xz"
    try:
        content = lzma.decompress(file.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}): reinstall robustly") from error
    found = hashlib.sha256(content).hexdigest()
    if found != MNIST5K_SHA256:
        raise ValueError(f"{file} is damaged (SHA-256 {found}, not {MNIST5K_SHA256}): reinstall robustly")
    table = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    images, labels = table[: 5000 * 784].reshape(-1, 1, 28, 28), table[5000 * 784 :].to(torch.int64)
    return {"all": rows_in_memory(images, labels, _DIGITS, "mnist5k")}


def holds_idx(folder: Path) -> bool:
    """True if the folder holds image files of the IDX format."""
    return any(_idx_file(folder, prefix, "images") for prefix in _IDX_PARTS)


def idx_rows(folder: Path, named: int = 0) -> dict[str, Rows]:
    """Parts of a folder with `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, ..., plain or `.gz`.

    LeCun, Cortes and Burges; big-endian headers with magic numbers 2051 (images) and 2049 (labels).

    Args:
        folder: the folder.
        named: number of classes that are named elsewhere.

    Raises:
        FileNotFoundError: if the file of labels is missing.
        ValueError: if a file is damaged or of another format.
    """
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for prefix, part in _IDX_PARTS.items():
        images_file = _idx_file(folder, prefix, "images")
        if images_file is None:
            continue
        labels_file = _idx_file(folder, prefix, "labels")
        if labels_file is None:
            raise FileNotFoundError(f"{folder}: holds {images_file.name} but not {prefix}-labels-idx1-ubyte[.gz]")
        parts[part] = _read_idx_images(images_file), _read_idx_labels(labels_file)
    classes = class_numbers([labels for _, labels in parts.values()], str(folder), named)
    return {
        part: rows_in_memory(images, labels, classes, f"{folder} ({part})")
        for part, (images, labels) in parts.items()
    }


def _idx_file(folder: Path, prefix: str, kind: str) -> Path | None:
    stem = f"{prefix}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    return next((folder / name for name in (stem, f"{stem}.gz") if (folder / name).is_file()), None)


def _read_idx_images(file: Path) -> UInt8[Tensor, "n 1 h w"]:
    (count, height, width), pixels = _read_idx(file, "images", 3)
    return pixels.reshape(count, 1, height, width)


def _read_idx_labels(file: Path) -> Int64[Tensor, " n"]:
    return _read_idx(file, "labels", 1)[1].to(torch.int64)


def _read_idx(file: Path, kind: str, dimensions: int) -> tuple[tuple[int, ...], UInt8[Tensor, " bytes"]]:
    header = 4 + 4 * dimensions
    if file.suffix == ".gz":
        try:
            content = _unpacked(file, header)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: is damaged or not a gzip file ({error})") from error
    else:
        content = file.read_bytes()
    if len(content) < header or struct.unpack(">i", content[:4])[0] != _IDX_MAGIC[kind]:
        raise ValueError(f"{file}: is not an IDX file of {kind} (its magic number is not {_IDX_MAGIC[kind]})")
    shape = struct.unpack(f">{dimensions}i", content[4:header])
    if min(shape) < 0 or len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{file}: is damaged: its header gives {shape} bytes but {len(content) - header} follow")
    return shape, torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())


def _unpacked(file: Path, header: int) -> bytes:
    """Decompress as many bytes as the header states, and one more, which shows that it is wrong."""
    with gzip.open(file) as stream:
        start = stream.read(header)
        shape = [max(0, size) for size in struct.unpack(f">{len(start) // 4}i", start[: len(start) // 4 * 4])[1:]]
        check_bytes(math.prod(shape), str(file))
        return start + stream.read(math.prod(shape) + 1)
