"""Data sets of Hugging Face become images: in memory, streamed, formatted, saved and with transforms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled_pictures import IMAGES, LABELS, NAMES, PIXELS, check
from torch.utils.data import (
    DataLoader,
    Subset,
)

from robustly.data import as_image_data


@pytest.fixture
def farm(datasets: Any) -> Any:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"img": IMAGES, "label": LABELS.tolist()}, features=features)


def test_hugging_face_data_sets(farm: Any, datasets: Any, tmp_path: Path) -> None:
    for data in (farm, farm.with_format("torch"), farm.to_iterable_dataset(), DataLoader(farm, batch_size=4)):
        found = as_image_data(data)
        check(found)
        assert found.classes == tuple(NAMES)
    order = [7, 3, 12]
    check(as_image_data(farm.select(order)), PIXELS[order], LABELS[order])
    check(as_image_data(Subset(farm, order)), PIXELS[order], LABELS[order])
    assert as_image_data(farm.sort("label"), limit=8).labels.bincount().tolist() == [2] * 4
    found = as_image_data(farm, classes=[*reversed(NAMES)])
    check(found, labels=3 - LABELS)
    farm.save_to_disk(tmp_path / "farm")
    check(as_image_data(tmp_path / "farm"))


def test_the_split_of_a_dictionary_of_data_sets(farm: Any, datasets: Any) -> None:
    few = farm.select([3, 4])
    for name in ("test", "validation"):
        check(as_image_data(datasets.DatasetDict({"train": farm, name: few})), PIXELS[3:5], LABELS[3:5])
    check(as_image_data(datasets.DatasetDict({"train": farm})))
    streams = datasets.IterableDatasetDict({"train": farm.to_iterable_dataset(), "test": few.to_iterable_dataset()})
    check(as_image_data(streams), PIXELS[3:5], LABELS[3:5])
    with pytest.raises(ValueError, match="set test_split to one of a, b"):
        as_image_data(datasets.DatasetDict({"a": farm, "b": few}))


def test_transforms_of_hugging_face_data_sets(farm: Any) -> None:
    def halves(rows: dict[str, Any]) -> dict[str, Any]:
        arrays = [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in rows["img"]]
        return {"pixel_values": [array[:, :3] for array in arrays], "label": rows["label"]}

    check(as_image_data(farm.with_transform(halves)), PIXELS[:, :, :3])

    def normalised(rows: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [one * 4 - 2 for one in halves(rows)["pixel_values"]], "label": rows["label"]}

    with pytest.raises(ValueError, match="leave Normalize out"):
        as_image_data(farm.with_transform(normalised))


def test_other_columns_of_hugging_face_data_sets(datasets: Any) -> None:
    words = datasets.Dataset.from_dict({"image": IMAGES, "label": [NAMES[label] for label in LABELS.tolist()]})
    check(as_image_data(words, classes=NAMES))
    with pytest.raises(ValueError, match=r"labels are text.*classes=\[\.\.\.\]"):
        as_image_data(words)
    arrays = datasets.Dataset.from_dict({"pixel_values": PIXELS.tolist(), "labels": LABELS.tolist()})
    check(as_image_data(arrays))
    check(as_image_data(arrays.with_format("torch")))
    with pytest.raises(ValueError, match=r"has no label: its keys are image, not label, .*: set label_column"):
        as_image_data(datasets.Dataset.from_dict({"image": IMAGES}))


def test_columns_are_chosen_by_type_or_by_name(farm: Any) -> None:
    numbered = farm.rename_column("label", "species").add_column("row", list(range(len(farm))))
    check(as_image_data(numbered))  # the only column with class names
    check(as_image_data(numbered, label_column="row", image_column="img"), labels=torch.arange(len(farm)))
    items = [{"photo": image, "kind": label} for image, label in zip(IMAGES, LABELS.tolist(), strict=True)]
    check(as_image_data(items, image_column="photo", label_column="kind"))
    with pytest.raises(ValueError, match=r"no image: its keys are photo, kind, .* set image_column"):
        as_image_data(items)
    with pytest.raises(ValueError, match=r"no column 'kind' \(label_column\)"):
        as_image_data(numbered, label_column="kind")
