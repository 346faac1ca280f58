"""Batches of labelled images mixed with extra ones, which were generated or labelled by a network.

As in Gowal et al. (arXiv 2010.03593; 2110.09468), Rebuffi et al. (arXiv 2103.01946) and Wang et al. (ICML 2023), a
fixed share of every batch is drawn from the extra images with replacement. The rest is drawn from the labelled ones
without replacement. An epoch has as many batches as the labelled images would fill alone, so it contains each of
them (1 - share) times.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from robustly.data.augmentation import Augmentation
from robustly.data.batches import Batch, augmented, batch_count, check_batches
from robustly.data.digests import joined_digests, row_digests
from robustly.data.images import ImageData
from robustly.randomness import KeyedGenerator, derive_seed, shuffled

FIRST_ID = 1 << 40  # first id of the extra images, beyond those of all labelled images


@dataclass(frozen=True, eq=False)
class Extra:
    """Extra images that are mixed into the training.

    Args:
        data: the images, of the classes and the shape of the labelled ones.
        fraction: their share of each batch, in (0, 1); the number of images is rounded down.
    """

    data: ImageData
    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"the share of extra images must lie between 0 and 1, got {self.fraction}")

    def share_of(self, batch_size: int) -> int:
        """Number of extra images in a batch.

        Raises:
            ValueError: none or all of them.
        """
        count = int(batch_size * self.fraction)
        if not 0 < count < batch_size:
            raise ValueError(
                f"a share of {self.fraction} of {batch_size} images is {count}: both sources need at least one"
            )
        return count

    def to(self, device: torch.device | str) -> "Extra":
        """The same images on another device."""
        return Extra(self.data.to(device), self.fraction)


def check_extra(extra: ImageData, train: ImageData, held_out: tuple[ImageData, ...]) -> None:
    """Check that extra images fit the others, and that none of them is a validation or test image.

    Raises:
        ValueError: another shape, another number of classes, or a held-out image among them.
    """
    if extra.shape != train.shape or extra.num_classes != train.num_classes:
        raise ValueError(
            f"extra images of {extra.source} have the shape {extra.shape} and {extra.num_classes} classes, those "
            f"of {train.source} {train.shape} and {train.num_classes}"
        )
    known = joined_digests([row_digests(part) for part in held_out])
    leaked = int(row_digests(extra).found_in(known).sum())
    if leaked:
        raise ValueError(
            f"{leaked} of the extra images of {extra.source} are validation or test images: take them out"
        )


def mixed_batches(
    data: ImageData,
    extra: Extra,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augmentation: Augmentation | None = None,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    views: int = 1,
) -> Iterator[Batch]:
    """Batches of an epoch; every one is full. Arguments and guarantees are those of `batches`.

    Random numbers of an image are keyed by the number of its draw in the run, because a batch may contain it twice.

    Raises:
        ValueError: a number outside its range; see `Extra.share_of`.
    """
    check_batches(batch_size, rank, world_size)
    drawn = extra.share_of(batch_size)
    count = batch_count(len(data), batch_size, drop_last=False)
    chosen = augmentation or Augmentation()
    return (
        _mixed(
            data,
            extra.data,
            (batch_size - drawn, drawn),
            epoch * count + number,
            seed,
            chosen,
            rank,
            world_size,
            views,
        )
        for number in range(start, count)
    )


def _mixed(
    data: ImageData,
    extra: ImageData,
    counts: tuple[int, int],
    number: int,
    seed: int,
    augmentation: Augmentation,
    rank: int,
    world_size: int,
    views: int,
) -> Batch:
    """Batch `number` of the run."""
    device = data.device
    places = _passed_through(len(data), counts[0], number, seed).to(device)
    draws = torch.arange(counts[1], device=device) + number * counts[1]
    picked = KeyedGenerator(derive_seed(seed, "extra"), draws).integers(len(extra), 1)[:, 0]
    images = torch.cat([data.pixels(places), extra.pixels(picked)])
    labels = torch.cat([data.labels[places], extra.labels[picked]])
    ids = torch.cat([data.ids[places], extra.ids[picked] + FIRST_ID])
    own = torch.arange(len(ids), device=device) + number * len(ids)
    mine = slice(rank, None, world_size)
    generator = KeyedGenerator(derive_seed(seed, "draw"), own[mine])
    x, *others = augmented(images[mine], augmentation, generator, views)
    return Batch(x, labels[mine], ids[mine], generator, tuple(others))


def _passed_through(length: int, count: int, number: int, seed: int) -> Int64[Tensor, " count"]:
    """Positions of the labelled images of batch `number`, in one shuffled pass after the other."""
    first = number * count
    passes = range(first // length, (first + count - 1) // length + 1)
    order = torch.cat([shuffled(length, seed, "order", turn) for turn in passes])
    start = first - passes[0] * length
    return order[start : start + count]
