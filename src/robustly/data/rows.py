"""Rows of a source: labels at once, images on demand, so that only the rows in use are decoded."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustly.data.class_names import ClassNames, renumbered_labels, shown_names
from robustly.data.images import check_labels

MISSING = -1
"""Label of a row without a label."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One part of a data set (train, test, ...) as stored in its source.

    Labels are checked by `check`, where the rows are used: many public data sets have a test split without labels.

    Args:
        labels: class indices of all rows, `(N,)`; `MISSING` for a row without a label.
        classes: class names.
        source: the file or data set, for error messages.
        read: from positions `(M,)` to the images of these rows, uint8 `(M, C, H, W)`, in the same order.
        fingerprint: hash of the files and of the settings of decoding, by which decoded images on the disk are
            found again; None for rows that can only be kept in memory.
    """

    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    source: str
    read: Callable[[Int64[Tensor, " m"]], UInt8[Tensor, "m c h w"]]
    fingerprint: Callable[[], str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_all_labels(self) -> bool:
        """True if no label is missing."""
        return not bool((self.labels == MISSING).any())

    def check(self) -> None:
        """Check the labels.

        Raises:
            ValueError: if there are no rows, a label is missing, or it is not one of the classes.
        """
        if not self.has_all_labels:
            missing = int((self.labels == MISSING).sum())
            raise ValueError(
                f"{self.source}: holds the label -1, but with {len(self.classes)} classes labels are "
                f"0..{len(self.classes) - 1}: {missing} of {len(self)} rows have no label (it is -1 or null)"
            )
        check_labels(self.labels, self.classes, self.source)

    def renumbered(self, names: ClassNames) -> "Rows":
        """The same rows with the class numbers of other names; see `ImageData.renumbered`."""
        labels = renumbered_labels(self.labels, self.classes, names, self.source)
        return replace(self, labels=labels, classes=shown_names(names))


def rows_in_memory(
    images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], classes: tuple[str, ...], source: str
) -> Rows:
    """Rows whose images are already decoded.

    Raises:
        ValueError: if the numbers of images and labels differ.
    """
    if len(images) != len(labels):
        raise ValueError(f"{source}: holds {len(images)} images but {len(labels)} labels")
    return Rows(labels, classes, source, lambda index: images[index.to(torch.int64)])
