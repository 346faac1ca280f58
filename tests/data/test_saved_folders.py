"""Folders that `datasets` wrote with `save_to_disk`, read without it; test splits without labels."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_tables import CLASSES, encoded, pictures, table
from PIL import Image

from robustly.data import DataConfig, load_splits, load_test


def data_set(datasets: Any, count: int, seed: int = 0) -> Any:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {
        "img": [Image.fromarray(image) for image in pictures(count, seed=seed)],
        "label": [row % 3 for row in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def expected(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(pictures(count, seed=seed)).permute(0, 3, 1, 2)


def test_a_saved_data_set(tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set(datasets, 40).select(range(5, 35)).save_to_disk(tmp_path / "saved", num_shards=3)
    monkeypatch.setitem(sys.modules, "datasets", None)
    data = load_test(DataConfig(source=str(tmp_path / "saved"), evaluation_only=True))
    assert torch.equal(data.images, expected(40)[5:35])
    assert (data.classes, data.labels.tolist()) == (CLASSES, [row % 3 for row in range(5, 35)])


def test_a_saved_data_set_with_splits(tmp_path: Path, datasets: Any) -> None:
    splits = {"train": data_set(datasets, 20), "test": data_set(datasets, 6, seed=1)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    found = load_splits(DataConfig(source=str(tmp_path / "saved")))
    assert torch.equal(found.test.images, expected(6, seed=1))
    assert torch.equal(found.train.images, expected(20)[found.train.ids])


def test_saved_folders_that_are_refused(tmp_path: Path, datasets: Any) -> None:
    data_set(datasets, 6).save_to_disk(tmp_path / "a")
    (arrow,) = (tmp_path / "a").glob("*.arrow")
    content = arrow.read_bytes()

    def refused(words: str) -> None:
        with pytest.raises(ValueError, match=words):
            load_test(DataConfig(source=str(tmp_path / "a")))

    arrow.write_bytes(content[:300])
    refused(r"\.arrow: is missing, damaged or not an Arrow file")
    arrow.unlink()
    refused(r"\.arrow: is missing, damaged")
    (tmp_path / "a" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../x.arrow"}]}))
    refused(r"a/x\.arrow: is missing")  # never outside the folder
    (tmp_path / "a" / "state.json").write_text(json.dumps({"_data_files": "x"}))
    refused("lists no data files")
    (tmp_path / "a" / "dataset_dict.json").write_text("{}")
    refused("lists no splits")


def test_a_saved_path_is_never_opened(tmp_path: Path, datasets: Any) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "secret.png")
    data_set(datasets, 6).save_to_disk(tmp_path / "a")
    (arrow,) = (tmp_path / "a").glob("*.arrow")
    cells = pa.array(
        [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 6,
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    columns = pa.table({"img": cells, "label": [0, 1] * 3})
    with pa.ipc.new_stream(str(arrow), columns.schema) as stream:
        stream.write_table(columns)
    with pytest.raises(ValueError, match="row 0: holds no image"):
        load_test(DataConfig(source=str(tmp_path / "a"), evaluation_only=True))


@pytest.mark.parametrize(
    "labels", [pa.array([-1] * 6), pa.array([None] * 6, pa.int32()), pa.array([None] * 6), None]
)
@pytest.mark.parametrize("named", [True, False])
def test_a_hidden_test_split(tmp_path: Path, labels: Any, named: bool) -> None:
    pq.write_table(table(pictures(30), named), tmp_path / "train.parquet")
    pq.write_table(table(pictures(9, seed=1), named), tmp_path / "validation.parquet")
    test = table(pictures(6, seed=2), named).drop_columns("label")
    pq.write_table(test if labels is None else test.append_column("label", labels), tmp_path / "test.parquet")
    splits = load_splits(DataConfig(source=str(tmp_path), test_split="validation"))
    assert torch.equal(splits.test.images, expected(9, seed=1))
    assert splits.test.classes == (CLASSES if named else ("0", "1", "2"))
    for settings in ({}, {"evaluation_only": True}):
        with pytest.raises(ValueError, match=r"6 of 6 rows have no label.*set test_split to another split"):
            load_test(DataConfig(source=str(tmp_path), **settings))


def test_one_missing_label_is_counted(tmp_path: Path) -> None:
    blobs = pa.array([encoded(image) for image in pictures(6)])
    pq.write_table(pa.table({"image": blobs, "label": [0, 1, None, 0, 1, 0]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="1 of 6 rows have no label"):
        load_test(DataConfig(source=str(tmp_path / "a.parquet")))


def test_a_hidden_test_part_of_an_archive(tmp_path: Path) -> None:
    images = pictures(30)
    np.savez(
        tmp_path / "a.npz", x_train=images, y_train=np.arange(30) % 3, x_test=images[:4], y_test=np.full(4, -1)
    )
    splits = load_splits(DataConfig(source=str(tmp_path / "a.npz"), test_split="train"))
    assert splits.train.classes == ("0", "1", "2")
