"""Any labelled images as `ImageData`: tensors, arrays, data sets and loaders of PyTorch and Hugging Face, files."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from robustly.data.class_names import ClassNames, listed_names, read_class_names, shown_names, unique_names
from robustly.data.config import DataConfig
from robustly.data.decoding import Decoding
from robustly.data.images import ImageData, class_numbers, number_names
from robustly.data.items import IMAGE_KEYS, LABEL_KEYS, Reading, is_item, labels_of, pair_of, pixels_of
from robustly.data.rows import Rows
from robustly.data.sources import source_parts
from robustly.data.splits import SplitRule, choose_test, tested_part
from robustly.data.table_files import Columns
from robustly.data.torch_data import Examples, class_names_of, has_positions, read_data_set, read_loader

MOST_CLASSES = 100_000
"""Largest number of classes without names, which the largest label states."""
_LOOKED_AT = 1024
_ACCEPTED = (
    "ImageData, (x, y) of tensors or arrays, a Dataset or DataLoader of PyTorch, a Dataset or DatasetDict of "
    "Hugging Face, a list of (image, label), or a name or path as of --data.source"
)


def as_image_data(
    data: Any,
    *,
    classes: Sequence[str | Sequence[str]] | Mapping[Any, Any] | str | Path | None = None,
    round_to_8_bits: bool = False,
    limit: int | None = None,
    source: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageData:
    """Labelled images of any usual kind as 8-bit pixels, in the order of the data.

    Args:
        data: one of

            - `ImageData`, which is returned as it is;
            - `(x, y)`: images `(N, C, H, W)`, `(N, H, W, C)` or `(N, H, W)`, as tensors, arrays, or lists of
              tensors, arrays or Pillow images; and labels of any integer type, `(N,)` or `(N, 1)`;
            - a PyTorch `Dataset`, or a list, of (image, label) or of mappings with the keys image (or pixel_values)
              and label, read item by item;
            - a PyTorch `DataLoader`, whose data set is read in order, whatever its shuffling;
            - a Hugging Face `Dataset`, or a `DatasetDict`, of which the test split is used, or else the validation
              split, or else the only one;
            - text or a path: everything that `DataConfig.source` takes, of which the same split is used; of
              `mnist5k` the 1,000 test digits of `load_test`.

            Pixels are uint8, or floats in [0, 1] on the 8-bit grid, without normalisation.
        classes: class names in the order of the model's outputs, as a list, a mapping such as `id2label`, or a file
            for `read_class_names`. Classes with names are found among them. None takes the names of the data.
        round_to_8_bits: True rounds floats to multiples of 1/255, False refuses floats that are not on this grid.
        limit: largest number of examples; None is all. The first ones are kept, or some of every class where the
            data are sorted by class.
        source: name of the data in reports and error messages; None takes that of the data.
        image_size: side in pixels that images are resized to (shorter side, bicubic, then the centre).
        channels: 1 converts images to grey, 3 to colour.
        image_column: the column, or key of items, with the images; None finds it by its type or name.
        label_column: the column, or key of items, with the labels; None finds it by its type or name.

    Raises:
        ValueError: the data are of another kind, or are not images with class numbers; the message states the
            remedy.
        FileNotFoundError: a path does not exist.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ValueError(f"limit is {limit}: use a whole number of at least 1 example, or leave it out")
    names = _names(classes)
    reading = Reading(
        source or _name_of(data),
        round_to_8_bits,
        Decoding(image_size, channels),
        columns=Columns(image_column, label_column),
    )
    if isinstance(data, ImageData):
        found = _limited(data, limit)
    elif isinstance(data, str | Path):
        found = _of_source(str(data), reading, limit)
    elif _is_hugging_face(data):
        found = _of_hugging_face(data, reading, limit, names)
    else:
        own = class_names_of(data)
        found = _named(_read(data, _with_numbers(reading, own or names), limit), own, names, reading)
    _warn_of_pixels(found)
    if names is not None and found.classes != shown_names(names):
        found = found.renumbered(names)
    return found if source is None else replace(found, source=source)


def _warn_of_pixels(data: ImageData) -> None:
    """Warn of images that are black, as floats in [0, 1] converted to bytes are, or that are all the same."""
    if len(data) < 2:
        return
    some = data.images[:_LOOKED_AT] if data.on_disk else data.images
    if int(some.max()) <= 1:
        warnings.warn(
            f"{data.source}: no pixel is larger than {int(some.max())} of 255, so all images are black: "
            "bytes run from 0 to 255; multiply floats in [0, 1] by 255 first, or give them as they are",
            stacklevel=3,
        )
    elif bool((some == some[:1]).all()):
        warnings.warn(f"{data.source}: all {len(data)} images are the same", stacklevel=3)


def _read(data: Any, reading: Reading, limit: int | None) -> Examples:
    """Examples of tensors, arrays, data sets or loaders."""
    if isinstance(data, TensorDataset) and len(data.tensors) >= 2:
        data = data.tensors[:2]
    if isinstance(data, DataLoader):
        return read_loader(data, reading, limit)
    pair = _pair(data, reading)
    if pair is not None:
        return _of_pair(*pair, reading, limit)
    has_items = isinstance(data, Dataset | Iterable) or has_positions(data)
    if isinstance(data, Tensor | np.ndarray | Mapping | bytes) or not has_items:
        raise ValueError(f"data are of the type {type(data).__name__}: give {_ACCEPTED}")
    return read_data_set(data, reading, limit)


def _pair(data: Any, reading: Reading) -> tuple[Any, Any] | None:
    """Images and labels of `(x, y)` or of a mapping of both; None for other data."""
    usual = (*IMAGE_KEYS, *LABEL_KEYS, reading.columns.image, reading.columns.label)
    if isinstance(data, Mapping) and any(key in data for key in usual):
        return pair_of(data, reading)
    if isinstance(data, tuple | list) and len(data) >= 2 and not is_item(data[0]):
        if not isinstance(data[0], Tensor | np.ndarray | list | tuple):
            return None
        if len(data) > 2:
            raise ValueError(f"{reading.source}: is a {type(data).__name__} of {len(data)} values: give (x, y)")
        return data[0], data[1]
    return None


def _of_pair(x: Any, y: Any, reading: Reading, limit: int | None) -> Examples:
    labels = labels_of(y, reading)
    if len(x) != len(labels):
        raise ValueError(f"{reading.source}: holds {len(x)} images but {len(labels)} labels")
    positions = torch.arange(len(labels))
    if limit is not None and limit < len(labels):
        names = number_names([labels], reading.source, MOST_CLASSES)
        rows = Rows(labels, names, reading.source, lambda index: index)
        positions = choose_test({"all": rows}, _rule(reading.source, limit)).positions
        chosen = positions.tolist()
        x = x[chosen] if isinstance(x, Tensor | np.ndarray) else [x[place] for place in chosen]
    return Examples(pixels_of(x, reading), labels[positions], positions)


def _with_numbers(reading: Reading, names: ClassNames | None) -> Reading:
    return reading if names is None else replace(reading, numbers=unique_names(names))


def _named(found: Examples, own: tuple[str, ...] | None, names: ClassNames | None, reading: Reading) -> ImageData:
    """The examples with the class names that they have, or that are given, or that are numbers."""
    labels, ids = found.labels.to(found.pixels.device), found.ids.to(found.pixels.device)
    classes = own or (
        class_numbers([labels], reading.source, MOST_CLASSES) if names is None else shown_names(names)
    )
    return ImageData(found.pixels, labels, ids, classes, reading.source)


def _of_source(text: str, reading: Reading, limit: int | None) -> ImageData:
    config = DataConfig(
        source=text,
        image_column=reading.columns.image,
        label_column=reading.columns.label,
        image_size=reading.decoding.image_size,
        channels=reading.decoding.channels,
    )
    parts = source_parts(config, named=MOST_CLASSES)
    return _chosen(parts, replace(_rule(text, None), evaluation_only=text != "mnist5k"), limit)


def _of_hugging_face(data: Any, reading: Reading, limit: int | None, names: ClassNames | None) -> ImageData:
    splits = data if isinstance(data, Mapping) else {"all": data}
    part = tested_part(splits, reading.source)
    split = splits[part]
    if not _is_table_of_images(split):
        own = class_names_of(split)
        return _named(read_data_set(split, _with_numbers(reading, own or names), limit), own, names, reading)
    from robustly.data.hugging_face import data_set_rows  # noqa: PLC0415 (it imports pyarrow, which is slow)

    rows = data_set_rows({part: split}, reading.source, reading.columns, reading.decoding, MOST_CLASSES)
    return _chosen(rows, _rule(reading.source, None), limit)


def _chosen(parts: Mapping[str, Rows], rule: SplitRule, limit: int | None) -> ImageData:
    whole = choose_test(parts, rule)
    if limit is None or limit >= len(whole.positions):
        return whole.read()
    return choose_test(parts, replace(rule, test_limit=limit)).read()


def _is_table_of_images(split: Any) -> bool:
    """True for a data set with files of images and integer labels in a table, without a transform of the user."""
    features = getattr(split, "features", None) or {}
    if not hasattr(split, "with_format") or not has_positions(split) or split.format["type"] == "custom":
        return False
    kinds = {type(feature).__name__ for feature in features.values()}
    numbers = [str(getattr(feature, "dtype", "")) for feature in features.values()]
    return "Image" in kinds and ("ClassLabel" in kinds or any("int" in number for number in numbers))


def _limited(data: ImageData, limit: int | None) -> ImageData:
    if limit is None or limit >= len(data):
        return data
    rows = Rows(data.labels.cpu(), data.classes, data.source, lambda index: index)
    return data.select(choose_test({"all": rows}, _rule(data.source, limit)).positions)


def _rule(source: str, limit: int | None) -> SplitRule:
    """The rule of data that are only evaluated."""
    return SplitRule(source, None, None, None, None, None, limit, None, 0, True)


def _names(given: Any) -> tuple[tuple[str, ...], ...] | None:
    if given is None:
        return None
    return read_class_names(given) if isinstance(given, str | Path) else listed_names(given, "classes")


def _is_hugging_face(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "datasets"


def _name_of(data: Any) -> str:
    """Name of the data in reports: that of the data set, of its type, or "memory"."""
    if _is_hugging_face(data):
        split = next(iter(data.values()), None) if isinstance(data, Mapping) else data
        info = getattr(split, "info", None)
        return str(getattr(info, "dataset_name", None) or getattr(info, "builder_name", None) or "data set")
    if isinstance(data, ImageData):
        return data.source
    if isinstance(data, Tensor | np.ndarray | list | tuple | TensorDataset | Mapping):
        return "memory"
    inner = getattr(data, "dataset", None)
    return type(data).__name__ if inner is None else _name_of(inner)
