"""Examples of a PyTorch data set or loader, read in small batches into 8-bit pixels, in the data set's order."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from robustly.data.items import Reading, check_shape, is_item, is_one_label, labels_of, pair_of, pixels_of
from robustly.data.splits import balanced_order, is_sorted_by_class
from robustly.memory import check_bytes
from robustly.output_text import LONGEST_REASON, typed_line

_ITEMS = 64  # read together
_READ_AGAIN = 3
_PROBES = 20  # labels that show whether a data set is sorted by class
_DEEPEST = 8  # data sets inside of data sets


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples that were read.

    Args:
        pixels: `(N, C, H, W)`.
        labels: class numbers, `(N,)`.
        ids: positions in the data set, `(N,)`.
    """

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Items:
    """Items of a data set that are read together, as distinct from a batch that the user's code made."""

    values: list[Any]


def read_data_set(data: Any, reading: Reading, limit: int | None = None) -> Examples:
    """Examples of a data set with a length and items, or of one that can only be iterated.

    PyTorch's random numbers, which transforms may use, are those of the seed 0; their state is restored at the end.

    Args:
        data: its items are pairs of image and label, or mappings.
        reading: settings of reading.
        limit: number of examples; None is all. Of a data set that is sorted by class, they are from all classes.

    Raises:
        ValueError: an item cannot be read or is not an image with a label.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if not has_positions(data):
            return _read(_chunks(iter(data)), None, reading, limit)
        return _read_positions(data, _positions(data, reading, limit), reading)


def read_loader(loader: "DataLoader[Any]", reading: Reading, limit: int | None = None) -> Examples:
    """Examples of a loader: those of its data set in order, if the loader draws each of them once.

    Shuffling, `drop_last` and the batch size have no effect on the result. The loader's own `collate_fn` and number
    of workers are used. A sampler of another kind is followed as it is, and ids count its examples. Random numbers
    are those of `read_data_set`.

    Args:
        loader: its batches are pairs of images and labels, or mappings.
        reading: settings of reading.
        limit: number of examples; None is all.

    Raises:
        ValueError: as `read_data_set`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        chosen = _drawn_once(loader)
        if chosen is None:
            found = _read(iter(loader), None, reading, limit)
            _warn_of_repetitions(found, reading)
            return found
        data: Any = loader.dataset
        places = Subset(data, chosen.tolist()) if len(chosen) < len(data) else data
        found = _read_positions(places, _positions(places, reading, limit), reading, loader)
        return Examples(found.pixels, found.labels, chosen[found.ids])


def _warn_of_repetitions(found: Examples, reading: Reading) -> None:
    """Warn if many examples repeat earlier ones."""
    count = len(found.labels)
    different = len({(image.numpy().tobytes(), label) for image, label in _each(found)})
    if count - different > 0.05 * count:
        warnings.warn(
            f"{reading.source}: {count - different} of {count} examples repeat earlier ones, so intervals are too "
            "narrow: each worker of a loader reads a whole IterableDataset unless it divides it, and some samplers "
            "draw examples several times",
            stacklevel=3,
        )


def _each(found: Examples) -> Iterator[tuple[Tensor, int]]:
    return zip(found.pixels, found.labels.tolist(), strict=True)


def class_names_of(data: Any) -> tuple[str, ...] | None:
    """Class names that a data set, or the one inside of it, has as `classes` or as a feature of `datasets`."""
    for _ in range(_DEEPEST):
        named = getattr(data, "classes", None)
        if isinstance(named, Sequence) and not isinstance(named, str) and len(named):
            return tuple(", ".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in named)
        features = getattr(data, "features", None)
        for feature in features.values() if isinstance(features, dict) else ():
            if isinstance(getattr(feature, "names", None), list):
                return tuple(str(name) for name in feature.names)
        inner = getattr(data, "dataset", None)
        data = next(iter(getattr(data, "datasets", None) or ()), None) if inner is None else inner
    return None


def has_positions(data: Any) -> bool:
    """True for a data set with a length and items by position."""
    return isinstance(data, Sized) and hasattr(data, "__getitem__") and not isinstance(data, IterableDataset)


def _drawn_once(loader: "DataLoader[Any]") -> Int64[Tensor, " n"] | None:
    """Positions that the loader draws, in order; None if it is followed as it is."""
    sampler = loader.sampler
    if not has_positions(loader.dataset) or type(loader.batch_sampler) not in (BatchSampler, NoneType):
        return None
    if isinstance(sampler, SubsetRandomSampler):
        return torch.tensor(sorted({int(place) for place in sampler.indices}), dtype=torch.int64)
    size = len(loader.dataset)  # type: ignore[arg-type]
    in_order = isinstance(sampler, SequentialSampler)
    permuted = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == size
    return torch.arange(size) if in_order or permuted else None


def _positions(data: Any, reading: Reading, limit: int | None) -> Int64[Tensor, " n"]:
    """The first positions, or some of every class where a data set is sorted by class."""
    size = len(data)
    if size == 0:
        raise ValueError(f"{reading.source}: is empty, there is no example in it")
    if limit is None or limit >= size:
        return torch.arange(size)
    labels = _targets(data)
    if labels is not None:
        return balanced_order(labels, 0, "limit")[:limit] if is_sorted_by_class(labels) else torch.arange(limit)
    probes = _spread(size, min(size, _PROBES))
    return _spread(size, limit) if is_sorted_by_class(_labels_at(data, probes, reading)) else torch.arange(limit)


def _spread(size: int, count: int) -> Int64[Tensor, " count"]:
    """Different positions with equal distances, from the first one to the last one."""
    return torch.linspace(0, size - 1, count, dtype=torch.float64).round().to(torch.int64)


def _labels_at(data: Any, places: Int64[Tensor, " n"], reading: Reading) -> Int64[Tensor, " n"]:
    pairs = [pair_of(_item(data, place, reading), reading) for place in places.tolist()]
    return labels_of([label for _, label in pairs], reading)


def _targets(data: Any) -> Int64[Tensor, " n"] | None:
    """Labels of all items, which many data sets have as `targets`; None if they are unknown."""
    if isinstance(data, Subset):
        inner = _targets(data.dataset)
        return None if inner is None else inner[torch.tensor(list(data.indices), dtype=torch.int64)]
    given = getattr(data, "targets", None)
    if not isinstance(given, Tensor | Sequence) or isinstance(given, str) or len(given) != len(data):
        return None
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        return None
    plain = labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool
    return labels.to(torch.int64) if plain and int(labels.min()) >= 0 else None


def _read_positions(
    data: Any, positions: Int64[Tensor, " n"], reading: Reading, loader: "DataLoader[Any] | None" = None
) -> Examples:
    """Examples at some positions, with the `collate_fn` and the workers of the user's loader."""
    order = positions.tolist()
    collate = None if loader is None or loader.collate_fn is default_collate else loader.collate_fn
    if loader is not None and loader.num_workers:
        batches: Iterable[Any] = DataLoader(
            Subset(data, order),
            batch_size=_ITEMS,
            collate_fn=collate or Items,
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
    else:
        gather = collate or Items
        groups = [order[start : start + _ITEMS] for start in range(0, len(order), _ITEMS)]
        batches = (gather([_item(data, place, reading) for place in group]) for group in groups)
    found = _read(iter(batches), len(order), reading, None)
    if collate is None:
        _check_again(data, order[:_READ_AGAIN], found, reading)
    return Examples(found.pixels, found.labels, positions)


def _check_again(data: Any, order: list[int], found: Examples, reading: Reading) -> None:
    """Warn if the first items differ when they are read again."""
    again, _ = _batch(Items([_item(data, place, reading) for place in order]), reading, 0)
    if not torch.equal(again.cpu(), found.pixels[: len(order)].cpu()):
        warnings.warn(
            f"{reading.source}: its first images differ when they are read again, so its transforms are random: "
            "evaluate on images without random augmentation",
            stacklevel=2,
        )


class ItemError(ValueError):
    """An item that the user's code does not return; the message names it."""


def _item(data: Any, place: int, reading: Reading) -> Any:
    try:
        return data[place]
    except Exception as error:  # of the user's code
        raise ItemError(f"{reading.source}: item {place} cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if "Original Traceback" in str(error):  # of a worker; the last line has the error itself
        return str(error).strip().splitlines()[-1][:LONGEST_REASON]
    return typed_line(error)


def _chunks(items: Iterator[Any]) -> Iterator[Any]:
    """Items in lists; batches as they are."""
    for item in items:
        yield Items([item, *itertools.islice(items, _ITEMS - 1)]) if is_item(item) else item


def _read(batches: Iterator[Any], count: int | None, reading: Reading, limit: int | None) -> Examples:
    """Examples of batches; `count` is their number if it is known, so that one tensor is filled."""
    parts: list[UInt8[Tensor, "n c h w"]] = []
    labels: list[Int64[Tensor, " n"]] = []
    filled = 0
    while limit is None or filled < limit:
        batch = _next(batches, reading, filled)
        if batch is None:
            break
        pixels, numbers = _batch(batch, reading, filled)
        check_bytes((count or filled + len(pixels)) * pixels[0].numel(), reading.source)
        if parts:
            check_shape(pixels, parts[0], filled, 0, reading.source)
        elif count is not None:
            parts = [pixels.new_empty((count, *pixels.shape[1:]), device="cpu")]
            labels = [numbers.new_empty(count)]
        if count is None:
            parts.append(pixels.cpu())
            labels.append(numbers)
        elif filled + len(pixels) <= count:
            place = slice(filled, filled + len(pixels))
            parts[0][place], labels[0][place] = pixels, numbers
        filled += len(pixels)
    if not labels:
        raise ValueError(f"{reading.source}: is empty, there is no example in it")
    if count is not None and filled != count:
        raise ValueError(f"{reading.source}: its collate_fn makes {filled} examples of {count} items")
    everything = torch.cat(parts) if len(parts) > 1 else parts[0]
    return Examples(everything[:limit], torch.cat(labels)[:limit], torch.arange(len(everything[:limit])))


def _next(batches: Iterator[Any], reading: Reading, filled: int) -> Any:
    try:
        return next(batches, None)
    except ItemError:
        raise
    except Exception as error:  # of the user's code, of collate_fn or of a worker
        hint = ": resize all images, or set image_size" if "equal size" in str(error) else ""
        raise ItemError(
            f"{reading.source}: cannot be read after {filled} examples ({_reason(error)}){hint}"
        ) from error


def _batch(batch: Any, reading: Reading, first: int) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    """Pixels and labels of items, of a list of them, of a batch, or of one item."""
    is_list = isinstance(batch, list) and bool(batch) and all(is_item(one) for one in batch)
    if isinstance(batch, Items) or is_list:
        pairs = [pair_of(one, reading) for one in (batch if is_list else batch.values)]
        images, labels = [image for image, _ in pairs], [label for _, label in pairs]
    else:
        images, labels = pair_of(batch, reading)
        if is_one_label(labels):
            images, labels = [images], [labels]
    pixels, numbers = pixels_of(images, reading, first), labels_of(labels, reading)
    if len(pixels) != len(numbers):
        raise ValueError(f"{reading.source}: a batch has {len(pixels)} images but {len(numbers)} labels")
    return pixels, numbers
