"""Tables of encoded images: Parquet files as people write them, and Hugging Face data sets."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from picture_tables import CLASSES, encoded, pictures, table

from robustly.data import DataConfig, load_splits, load_test


def config(source: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(source=str(source), **{"validation": 3, **settings})


def channels_first(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def refused(source: Path | str, words: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=words):
        load_splits(config(source, **settings))


@pytest.mark.parametrize("names", [("train", "test"), ("train-00000-of-00001", "test-00000-of-00001")])
@pytest.mark.parametrize("subfolder", ["", "data"])
def test_parquet_folder(tmp_path: Path, names: tuple[str, str], subfolder: str) -> None:
    (tmp_path / subfolder).mkdir(exist_ok=True)
    images = {"train": pictures(12), "test": pictures(5, seed=1)}
    for name in names:
        pq.write_table(table(images[name.partition("-")[0]]), tmp_path / subfolder / f"{name}.parquet")
    splits = load_splits(config(tmp_path))
    assert splits.train.classes == CLASSES
    assert torch.equal(splits.test.images, channels_first(images["test"]))
    assert splits.test.ids.tolist() == [12, 13, 14, 15, 16]
    assert torch.equal(splits.train.images, channels_first(images["train"])[splits.train.ids])
    assert torch.equal(splits.train.labels, splits.train.ids % 3)


def test_parquet_shards_are_read_in_order(tmp_path: Path) -> None:
    images = pictures(150)
    pq.write_table(table(images[:99]), tmp_path / "train-00000-of-00002.parquet", row_group_size=7)
    pq.write_table(table(images[99:]), tmp_path / "train-00001-of-00002.parquet")
    splits = load_splits(config(tmp_path))
    for data in (splits.train, splits.validation, splits.test):
        assert torch.equal(data.images, channels_first(images)[data.ids])


def test_single_parquet_file_without_names(tmp_path: Path) -> None:
    images = pictures(20, channels=1)
    blobs = pa.array([encoded(image) for image in images])
    made = pa.table({"png": blobs, "digit": pa.array([row % 4 for row in range(20)], pa.int32())})
    pq.write_table(made, tmp_path / "a.parquet")
    splits = load_splits(config(tmp_path / "a.parquet"))
    assert splits.train.classes == ("0", "1", "2", "3")
    assert torch.equal(splits.train.images, channels_first(images)[splits.train.ids])


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        (
            {"label": pa.array(["x"] * 12)},
            {},
            r"no column of integers 0\.\.K-1: its columns are .*label \(string\)",
        ),
        (
            {"label": pa.array(["x"] * 12)},
            {"label_column": "label"},
            r"'label' \(label_column\) holds string",
        ),
        ({"label": pa.array([7] * 12)}, {}, r"label 7, but with 3 classes"),
        ({"label": pa.array([None] * 12, pa.int64())}, {}, "12 of 12 rows have no label"),
        ({"image": pa.array([1.0] * 12)}, {}, r"no column of encoded images"),
        ({}, {"image_column": "img"}, r"no column 'img' \(image_column\): its columns are image"),
        ({"image": pa.array([b"no image"] * 12)}, {}, r"a\.parquet row \d+: is not a readable image"),
        ({"image": pa.array([None] * 12, pa.binary())}, {}, r"row \d+: holds no image"),
    ],
)
def test_parquet_that_is_refused(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    pq.write_table(table(pictures(12), **changes), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", words, **settings)


def test_parquet_columns_that_could_be_either(tmp_path: Path) -> None:
    numbers = pa.array([row % 2 for row in range(12)])
    made = table(pictures(12), named=False).drop_columns("label")
    pq.write_table(made.append_column("coarse", numbers).append_column("fine", numbers), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "coarse, fine could all be the labels: set label_column")
    assert load_splits(config(tmp_path / "a.parquet", label_column="fine")).train.num_classes == 2


def test_damaged_and_empty_parquet(tmp_path: Path) -> None:
    pq.write_table(table(pictures(12)), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:500])
    refused(tmp_path / "a.parquet", r"a\.parquet: is damaged or not a Parquet file")
    pq.write_table(table(pictures(12)).slice(0, 0), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", r"b\.parquet: is empty")


def test_unequal_images_need_a_size(tmp_path: Path) -> None:
    blobs = [encoded(pictures(1, side=5 + row % 2, seed=row)[0]) for row in range(20)]
    labels = pa.array([row % 2 for row in range(20)])
    pq.write_table(pa.table({"image": pa.array(blobs), "label": labels}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "pixels but .* set image_size")
    assert load_splits(config(tmp_path / "a.parquet", image_size=4)).train.shape == (3, 4, 4)


def test_mixed_colours_need_channels(tmp_path: Path) -> None:
    blobs = [encoded(pictures(1, channels=1 if row % 2 else 3, seed=row)[0]) for row in range(20)]
    labels = pa.array([row % 2 for row in range(20)])
    pq.write_table(pa.table({"image": pa.array(blobs), "label": labels}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "set channels to 1 or 3")
    for channels in (1, 3):
        assert load_splits(config(tmp_path / "a.parquet", channels=channels)).train.shape == (channels, 6, 6)


def test_hub_without_datasets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf:uoft-cs/cifar10", r"pip install 'robustly\[hf\]'")


def test_hub_data_set(tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = {"train": pictures(12), "test": pictures(5, seed=1)}
    for name, values in images.items():
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
        rows = {
            "img": [{"bytes": encoded(value), "path": None} for value in values],
            "label": [row % 3 for row in range(len(values))],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    splits = load_splits(config(f"hf:{tmp_path}"))
    assert splits.train.classes == CLASSES
    assert torch.equal(splits.test.images, channels_first(images["test"]))
    assert torch.equal(splits.train.images, channels_first(images["train"])[splits.train.ids])
    refused("hf:nobody/no-such-data-set", "hf:nobody/no-such-data-set cannot be loaded")


class StandInSplit:
    """A split of `datasets`, which has a table in the format "arrow" and the features of its columns."""

    def __init__(self, content: pa.Table) -> None:
        self.content = content
        self.features = SimpleNamespace(arrow_schema=content.schema)

    def with_format(self, kind: str) -> pa.Table:
        assert kind == "arrow"
        return self.content.replace_schema_metadata(None)


def test_numbered_labels_with_names_of_their_own_are_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = pa.array([0, 40, 90] * 4, pa.int64())  # more classes than rows
    made = table(pictures(12), named=False, label=labels)
    pq.write_table(made, tmp_path / "train.parquet")
    (tmp_path / "names.txt").write_text("".join(f"name {number}\n" for number in range(100)))
    hub = SimpleNamespace(load_dataset=lambda name, setting: {"train": StandInSplit(made)})
    monkeypatch.setitem(sys.modules, "datasets", hub)
    for source in ("hf:some/data", str(tmp_path / "train.parquet")):
        refused(source, "the label 90 but only 12 examples", evaluation_only=True)
        data = load_test(config(source, classes=str(tmp_path / "names.txt"), evaluation_only=True))
        assert torch.equal(data.images, channels_first(pictures(12)))
        assert (len(data.classes), data.classes[90], data.labels[:3].tolist()) == (100, "name 90", [0, 40, 90])


def test_a_failing_hub_without_a_message_is_named_by_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, setting: str | None) -> None:
        raise ConnectionError

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    refused("hf:some/data", r"hf:some/data cannot be loaded \(ConnectionError\)")


@pytest.mark.slow
@pytest.mark.skipif("ROBUSTLY_SHARED_DATA" not in os.environ, reason="ROBUSTLY_SHARED_DATA names no folder of data")
def test_shared_cifar10() -> None:
    source = Path(os.environ["ROBUSTLY_SHARED_DATA"]) / "cifar10-jpeg"
    splits = load_splits(config(source, validation=1000, train_limit=2000))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2000, 1000, 10_000)
    assert splits.test.labels.bincount().tolist() == [1000] * 10
    assert splits.validation.labels.bincount().tolist() == [100] * 10
    assert splits.train.classes[3] == "cat"
    # the statistics that the data's README states for its training images
    mean = splits.train.floats().mean((0, 2, 3))
    assert mean.tolist() == pytest.approx([0.4913, 0.4821, 0.4465], abs=0.01)
    assert load_test(config(source, test_limit=5)).ids.tolist() == [50_000, 50_001, 50_002, 50_003, 50_004]
