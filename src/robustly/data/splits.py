"""Training, validation and test rows: disjoint, and fixed before any training."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from robustly.data.images import ImageData, distinct
from robustly.data.rows import Rows
from robustly.data.stored import is_too_large, stored_images
from robustly.randomness import shuffled

MOST_VALIDATION = 500
"""Largest number of validation examples that is chosen without a setting."""
_TEST_LIKE = ("validation", "valid", "val")


@dataclass(frozen=True, eq=False)
class Splits:
    """Sets of examples of the same classes and shape that have no id in common.

    Args:
        train: examples that the model is trained on.
        validation: examples that checkpoints and settings are selected on.
        test: examples of the reported results; with domains, those of the left-out one.
        source_test: with domains, test examples of the others; else None.

    Raises:
        ValueError: if two sets share an id, or classes or shapes differ.
    """

    train: ImageData
    validation: ImageData
    test: ImageData
    source_test: ImageData | None = None

    def __post_init__(self) -> None:
        others = [part for part in (self.validation, self.test, self.source_test) if part is not None]
        for part in others:
            if part.shape != self.train.shape:
                raise ValueError(
                    f"images of {part.source} have the shape {part.shape} but those of {self.train.source} "
                    f"{self.train.shape}: set image_size or channels to make them equal"
                )
            if part.classes != self.train.classes:
                raise ValueError(
                    f"{part.source} has the classes {', '.join(part.classes[:10])} "
                    f"but {self.train.source} has {', '.join(self.train.classes[:10])}"
                )
        ids = torch.cat([self.train.ids, *(part.ids for part in others)])
        if not distinct(ids):
            raise ValueError(f"{self.train.source}: train, validation and test share examples")


@dataclass(frozen=True)
class SplitRule:
    """Rule of the splits of a source; the arguments are those of `DataConfig`."""

    source: str
    train_split: str | None
    test_split: str | None
    validation: int | None
    test: int | None
    train_limit: int | None
    test_limit: int | None
    subset: str | None
    split_seed: int
    evaluation_only: bool


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some rows of a source: positions in `rows`, `(M,)`, and the first number of their ids."""

    rows: Rows
    positions: Int64[Tensor, " m"]
    first_id: int
    name: str

    def read(self, in_memory: bool | Literal["auto"] = "auto") -> ImageData:
        """Decode the images of the rows.

        Args:
            in_memory: as `DataConfig.in_memory`.

        Raises:
            ValueError: an image cannot be decoded, or rows of this kind cannot be kept on the disk.
        """
        on_disk = in_memory is False or (in_memory == "auto" and is_too_large(self.rows, self.positions))
        if on_disk and self.rows.fingerprint is None:
            raise ValueError(
                f"{self.name}: data.in_memory is false, which needs Parquet files, tar files of WebDataset, a "
                "folder of images, or one of save_to_disk: save the data as one of them, or leave it out"
            )
        return ImageData(
            images=stored_images(self.rows, self.positions, self.name)
            if on_disk
            else self.rows.read(self.positions),
            labels=self.rows.labels[self.positions],
            ids=self.positions + self.first_id,
            classes=self.rows.classes,
            source=self.name,
            on_disk=on_disk,
        )


def balanced_order(labels: Int64[Tensor, " n"], *key: int | str) -> Int64[Tensor, " n"]:
    """A keyed permutation of which every prefix has the classes in proportion."""
    order = shuffled(len(labels), *key)
    counts = labels.bincount()
    by_class = labels[order].argsort(stable=True)
    starts = counts.cumsum(0) - counts
    share = torch.empty(len(labels), dtype=torch.float64)
    place = torch.arange(len(labels)) - starts.repeat_interleave(counts)
    share[by_class] = (place.to(torch.float64) + 0.5) / counts.repeat_interleave(counts)
    return order[share.argsort(stable=True)]


def choose_test(parts: Mapping[str, Rows], rule: SplitRule) -> Chosen:
    """Rows of the test split.

    Raises:
        ValueError: if the rule requires parts or numbers of rows that the source does not have.
    """
    train, test = _official(parts, rule)
    if test is not None:
        positions = _limited(test, torch.arange(len(test)), rule.test_limit, "test_limit", rule)
        return Chosen(test, positions, 0 if train is None else len(train), f"{rule.source} test")
    return _own_splits(_required(train), rule)[2]


def choose_splits(parts: Mapping[str, Rows], rule: SplitRule) -> tuple[Chosen, Chosen, Chosen]:
    """Rows of the training, the validation and the test split. Official test rows are never trained on.

    Raises:
        ValueError: if the rule requires parts or numbers of rows that the source does not have.
    """
    if rule.evaluation_only:
        raise ValueError(f"{rule.source}: evaluation_only is set, so there is nothing to train on: leave it out")
    train, test = _official(parts, rule)
    if test is None:
        return _own_splits(_required(train), rule)
    source = _required(train)
    order = balanced_order(source.labels, rule.split_seed, "split")
    held_out = _validation(source, 0, rule)
    rest = order[held_out:].sort().values
    kept = _limited(source, rest, rule.train_limit, "train_limit", rule)
    return (
        Chosen(source, kept, 0, f"{rule.source} train"),
        Chosen(source, order[:held_out], 0, f"{rule.source} validation"),
        choose_test(parts, rule),
    )


def _required(rows: Rows | None) -> Rows:
    if rows is None:
        raise ValueError("the source has no rows to train on")
    return rows


def _official(parts: Mapping[str, Rows], rule: SplitRule) -> tuple[Rows | None, Rows | None]:
    """Training rows and official test rows; the latter are None where a part of the former is held out instead."""
    for key, name in (("train_split", rule.train_split), ("test_split", rule.test_split)):
        if name is not None and name not in parts:
            raise ValueError(f"{rule.source}: has no split {name!r} ({key}): it has {', '.join(parts)}")
    only = next(iter(parts)) if len(parts) == 1 else None
    test_name = rule.test_split or ("test" if "test" in parts else None)
    train_name = rule.train_split or only or "train"
    if rule.evaluation_only:
        name = rule.test_split or tested_part(parts, rule.source)
        return None, _labelled(parts, name, "test_split")
    if train_name not in parts:
        raise ValueError(f"{rule.source}: has no split 'train': set train_split to one of {', '.join(parts)}")
    train = _labelled(parts, train_name, "train_split")
    if test_name is None or test_name == train_name:
        return train, None
    if rule.test is not None:
        raise ValueError(
            f"{rule.source}: has its own test split of {len(parts[test_name])} examples, "
            "so test must not be set: set it to null, and use test_limit for fewer"
        )
    return train, _labelled(parts, test_name, "test_split")


def tested_part(parts: Collection[str], source: str) -> str:
    """Name of the part that a model is evaluated on: test, or else validation, or else the only part.

    Raises:
        ValueError: there is none, so that `test_split` is needed.
    """
    found = list(parts) if len(parts) == 1 else [part for part in ("test", *_TEST_LIKE) if part in parts]
    if not found:
        raise ValueError(f"{source}: set test_split to one of {', '.join(parts)}")
    return found[0]


def _labelled(parts: Mapping[str, Rows], name: str, key: str) -> Rows:
    """A part whose labels are complete."""
    rows = parts[name]
    try:
        rows.check()
    except ValueError as error:
        others = [part for part, other in parts.items() if other.has_all_labels]
        if rows.has_all_labels or not others:
            raise
        raise ValueError(f"{error}: set {key} to another split ({', '.join(others)})") from None
    return rows


def _own_splits(rows: Rows, rule: SplitRule) -> tuple[Chosen, Chosen, Chosen]:
    """Test rows first, then validation, so that the size of the validation set does not change the test set."""
    tested = max(1, len(rows) // 5) if rule.test is None else rule.test
    validation = _validation(rows, tested, rule)
    order = balanced_order(rows.labels, rule.split_seed, "split")
    test, held_out, train = order.tensor_split((tested, tested + validation))
    return (
        Chosen(rows, _limit(train, rule.train_limit, "train_limit", rule), 0, f"{rule.source} train"),
        Chosen(rows, held_out, 0, f"{rule.source} validation"),
        Chosen(rows, _limit(test, rule.test_limit, "test_limit", rule), 0, f"{rule.source} test"),
    )


def _validation(rows: Rows, test: int, rule: SplitRule) -> int:
    """Number of validation examples: that of the rule, or a share of the rows.

    The share is a tenth, at least one example of each class as long as that is not more than a fifth, and at most
    `MOST_VALIDATION`.
    """
    if rule.validation is not None:
        count = rule.validation
    else:
        present = int((rows.labels.bincount() > 0).sum())
        count = min(MOST_VALIDATION, max(1, len(rows) // 10, min(present, len(rows) // 5)))
    if count + test >= len(rows):
        remedy = "lower validation or test, or set them to null, which takes shares of the rows"
        if rule.validation is None and rule.test is None:
            remedy = "set evaluation_only to evaluate on all of them"
        raise ValueError(
            f"{rule.source}: {count} validation and {test} test examples leave none of its {len(rows)} "
            f"to train on: {remedy}"
        )
    return count


def _limit(positions: Tensor, limit: int | None, key: str, rule: SplitRule) -> Tensor:
    if limit is not None and limit > len(positions):
        raise ValueError(f"{rule.source}: {key} is {limit} but the split has only {len(positions)} examples")
    return positions if limit is None else positions[:limit]


def _limited(rows: Rows, positions: Tensor, limit: int | None, key: str, rule: SplitRule) -> Tensor:
    """The first examples in the source's order, or as many in proportion of the classes."""
    kept = _limit(positions, limit, key, rule)
    if len(kept) == len(positions):
        return positions
    labels = rows.labels[positions]
    if rule.subset == "balanced" or (rule.subset is None and is_sorted_by_class(labels)):
        return positions[balanced_order(labels, rule.split_seed, key)[:limit]]
    if is_sorted_by_class(labels) and labels[-1] > labels[len(kept) - 1]:
        raise ValueError(
            f"{rule.source}: is sorted by class, so its first {limit} examples ({key}) lack classes: "
            "set subset to balanced"
        )
    return kept


def is_sorted_by_class(labels: Int64[Tensor, " n"]) -> bool:
    """True if the first rows would lack classes: the labels of at least two classes do not decrease."""
    return bool((labels.diff() >= 0).all()) and bool(labels[-1] > labels[0])
