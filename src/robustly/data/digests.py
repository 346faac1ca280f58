"""Digests of labelled images, by which the rows of a data set are recognised without keeping them."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly.data.images import ImageData

SIZE = 16
"""Bytes of the digest of an image."""

Keys = NDArray[np.bytes_]


@dataclass(frozen=True, eq=False)
class RowDigests:
    """Digests of the images of some rows, with labels and ids.

    Args:
        images: BLAKE2b digests of pixels and shape, uint8 `(N, 16)`; the same on every device, in every memory
            layout and under every label.
        labels: class indices, int64 `(N,)`.
        ids: ids of the examples, int64 `(N,)`.

    Raises:
        ValueError: a type or a shape differs from the above.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        count = len(self.labels)
        forms = {"images": (np.uint8, (count, SIZE)), "labels": (np.int64, (count,)), "ids": (np.int64, (count,))}
        for name, (dtype, shape) in forms.items():
            value = getattr(self, name)
            if value.dtype != dtype or value.shape != shape:
                raise ValueError(
                    f"{name} of row digests are {value.dtype} of shape {value.shape}: "
                    f"use {np.dtype(dtype)} of {shape}"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def sha256(self) -> str:
        """SHA-256, in hexadecimal, of all rows in their order."""
        digest = hashlib.sha256()
        for value in (self.images, self.labels, self.ids):
            digest.update(f"{value.dtype}\x1f{value.shape}\x1e".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def found_in(self, other: "RowDigests") -> NDArray[np.bool_]:
        """Mask of the rows whose image is among those of `other`, under any label, `(N,)`."""
        return _found(_keys(self.images), _keys(other.images))

    def same_in(self, other: "RowDigests") -> NDArray[np.bool_]:
        """Mask of the rows that `other` has with the same image, label and id, `(N,)`."""
        mine = _keys(self.images, self.labels, self.ids)
        return _found(mine, _keys(other.images, other.labels, other.ids))

    def exchanged(self, other: "RowDigests") -> tuple[int, int]:
        """Numbers of labelled images that `other` lacks, and of those that only `other` has; ids are ignored."""
        mine = Counter(_keys(self.images, self.labels).tolist())
        theirs = Counter(_keys(other.images, other.labels).tolist())
        return (mine - theirs).total(), (theirs - mine).total()


def row_digests(data: ImageData) -> RowDigests:
    """Digests of all rows of a data set."""
    shape = f"{data.shape}\x1e".encode()
    pixels = data.images.cpu().contiguous().numpy()
    joined = b"".join(hashlib.blake2b(shape + image.tobytes(), digest_size=SIZE).digest() for image in pixels)
    images = np.frombuffer(joined, np.uint8).reshape(len(data), SIZE)
    return RowDigests(images, data.labels.cpu().numpy().copy(), data.ids.cpu().numpy().copy())


def joined_digests(parts: "list[RowDigests]") -> RowDigests:
    """The rows of at least one part, one after the other."""
    images, labels, ids = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels", "ids")
    )
    return RowDigests(images, labels, ids)


def _keys(images: NDArray[np.uint8], *numbers: NDArray[np.int64]) -> Keys:
    """One key of bytes per row. Equal keys are equal rows, as all keys of a call have one length."""
    columns: list[NDArray[Any]] = [images]
    columns += [np.ascontiguousarray(one).astype("<i8").view(np.uint8).reshape(-1, 8) for one in numbers]
    table = np.ascontiguousarray(np.concatenate(columns, axis=1))
    return table.view(f"S{table.shape[1]}").reshape(-1)


def _found(mine: Keys, theirs: Keys) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.isin(mine, theirs)
    return found
