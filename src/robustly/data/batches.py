"""Batches of an epoch: a keyed order, divided among processes, resumable at any batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from robustly.data.augmentation import Augmentation
from robustly.data.images import ImageData, to_floats
from robustly.randomness import KeyedGenerator, derive_seed, shuffled


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one process in one step.

    Args:
        x: images in [0, 1], `(N, C, H, W)`.
        y: labels, `(N,)`.
        ids: the examples' ids, `(N,)`.
        generator: random numbers for these examples in this epoch; fold it for each purpose.
        other_views: more copies of the images, augmented independently of `x` and of each other.
    """

    x: Float32[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]
    generator: KeyedGenerator
    other_views: tuple[Float32[Tensor, "n c h w"], ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the batch."""
        return self.x, self.y, self.ids, self.generator.ids, *self.other_views

    def select(self, rows: Tensor) -> "Batch":
        """The examples at some rows."""
        views = tuple(view[rows] for view in self.other_views)
        return Batch(self.x[rows], self.y[rows], self.ids[rows], self.generator.select(rows), views)


def batch_count(examples: int, batch_size: int, drop_last: bool) -> int:
    """Number of global batches of an epoch: the same for every process."""
    return examples // batch_size if drop_last else -(-examples // batch_size)


def batches(
    data: ImageData,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augmentation: Augmentation | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    views: int = 1,
) -> Iterator[Batch]:
    """Batches of an epoch, on the data's device.

    The order depends only on (seed, epoch), and an example's random numbers only on (seed, epoch, id). The number
    of processes and of finished batches therefore changes nothing.

    Args:
        data: the examples.
        batch_size: examples in a global batch, over all processes; at least `world_size`.
        seed: the run's seed.
        epoch: number of the epoch, from 0.
        augmentation: applied to the 8-bit images; None for none.
        shuffle: True permutes the examples; False keeps the data's order.
        drop_last: True omits a last batch that is not full.
        rank: number of this process among `world_size`: it gets every `world_size`-th example of each global batch.
            In a last batch with fewer examples than processes, the others get a batch without examples.
        world_size: number of processes.
        start: number of global batches to skip, which were finished before an interruption.
        views: independently augmented copies of each image, at least 1; the first does not depend on their number.

    Raises:
        ValueError: at the call, if a number is outside its range, or `drop_last` leaves no batch at all.
    """
    check_batches(batch_size, rank, world_size)
    count = batch_count(len(data), batch_size, drop_last)
    if count == 0:
        raise ValueError(
            f"batch_size is {batch_size} but there are {len(data)} examples, and drop_last leaves no batch: "
            "lower batch_size"
        )
    if not 0 <= start <= count:
        raise ValueError(f"start is {start}: an epoch has {count} batches, so use 0 to {count}")
    order = shuffled(len(data), seed, "order", epoch) if shuffle else torch.arange(len(data))
    order = order.to(data.device)
    chosen = augmentation or Augmentation()
    stream = derive_seed(seed, "epoch", epoch)
    return (
        _batch(
            data, order[number * batch_size : (number + 1) * batch_size][rank::world_size], stream, chosen, views
        )
        for number in range(start, count)
    )


def check_batches(batch_size: int, rank: int, world_size: int) -> None:
    """Reject numbers of images and processes that do not fit together.

    Raises:
        ValueError: a rank outside 0..world_size-1, or fewer images than processes.
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of {world_size} processes: use 0 to {max(world_size - 1, 0)}")
    if batch_size < world_size:
        raise ValueError(f"batch_size is {batch_size}: use at least 1 for each of {world_size} processes")


def _batch(
    data: ImageData, places: Int64[Tensor, " n"], stream: int, augmentation: Augmentation, views: int
) -> Batch:
    ids = data.ids[places]
    generator = KeyedGenerator(stream, ids)
    x, *others = augmented(data.pixels(places), augmentation, generator, views)
    return Batch(x, data.labels[places], ids, generator, tuple(others))


def augmented(
    images: UInt8[Tensor, "n c h w"], augmentation: Augmentation, generator: KeyedGenerator, views: int
) -> list[Float32[Tensor, "n c h w"]]:
    """Independently augmented copies of images in [0, 1]; the first one does not depend on their number.

    Args:
        images: 8-bit pixels.
        augmentation: random changes of the images.
        generator: random numbers of the same N examples.
        views: number of copies, at least 1.
    """
    draws = [generator.fold("augmentation", *([view] if view else [])) for view in range(views)]
    return [to_floats(augmentation(images, drawn)) for drawn in draws]
