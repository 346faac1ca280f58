"""Rows of a source: labels at once, images on demand, so that only the rows in use are decoded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustly.data.images import check_labels


@dataclass(frozen=True, eq=False)
class Rows:
    """One part of a data set (train, test, ...) as stored in its source.

    Args:
        labels: class indices of all rows, `(N,)`.
        classes: class names.
        source: the file or data set, for error messages.
        read: from positions `(M,)` to the images of these rows, uint8 `(M, C, H, W)`, in the same order.

    Raises:
        ValueError: if there are no rows, or a label is not one of the classes.
    """

    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    source: str
    read: Callable[[Int64[Tensor, " m"]], UInt8[Tensor, "m c h w"]]

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes, self.source)

    def __len__(self) -> int:
        return len(self.labels)


def rows_in_memory(
    images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], classes: tuple[str, ...], source: str
) -> Rows:
    """Rows whose images are already decoded.

    Raises:
        ValueError: if the numbers of images and labels differ, and as `Rows` does.
    """
    if len(images) != len(labels):
        raise ValueError(f"{source}: holds {len(images)} images but {len(labels)} labels")
    return Rows(labels, classes, source, lambda index: images[index.to(torch.int64)])
