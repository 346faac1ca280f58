"""Streams of Hugging Face, from folders of this machine in the place of the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_tables import CLASSES, encoded, pictures, table
from torch import Tensor

from robustly.data import DataConfig, ImageData, load_splits, load_test, streamed

IMAGES = pictures(40)
PIXELS = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)


@pytest.fixture
def source(tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setenv("ROBUSTLY_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "data", IMAGES)
    return f"hf-stream:{tmp_path / 'data'}"


def write(folder: Path, images: Any, words: bool = False) -> None:
    import datasets

    folder.mkdir(exist_ok=True)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    features |= {"words": datasets.Value("string")} if words else {}
    for part, content in {"train": images, "test": pictures(5, seed=1)}.items():
        columns = {"words": pa.array([f"picture {row}" for row in range(len(content))])} if words else {}
        made = table(content, **columns).replace_schema_metadata(datasets.Features(features).arrow_schema.metadata)
        pq.write_table(made, folder / f"{part}.parquet", row_group_size=9)


def config(source: str, **settings: Any) -> DataConfig:
    return DataConfig(source=source, **{"validation": 3, **settings})


def same(found: ImageData, pixels: Tensor) -> bool:
    return torch.equal(found.floats(), (pixels[found.ids] / 255).float())


def copies(tmp_path: Path) -> list[str]:
    return sorted(file.name for file in (tmp_path / "cache" / "streams").rglob("*.parquet"))


@pytest.mark.parametrize("in_memory", [True, False, "auto"])
def test_a_stream_has_the_splits_of_the_downloaded_data(source: str, in_memory: Any) -> None:
    splits = load_splits(config(source, in_memory=in_memory))
    other = load_splits(config(source.replace("hf-stream:", "hf:")))
    for found, expected in zip(
        (splits.train, splits.validation, splits.test), (other.train, other.validation, other.test), strict=True
    ):
        assert found.digest() == expected.digest()
        assert found.classes == CLASSES
    assert splits.train.on_disk is (in_memory is False)


def test_a_stream_is_read_once(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_splits(config(source)).train
    monkeypatch.setattr(streamed, "_rest", lambda *given: pytest.fail("the stream is read again"))
    assert load_splits(config(source)).train.digest() == first.digest()
    write(tmp_path / "data", IMAGES[:20])  # another version
    monkeypatch.undo()
    monkeypatch.setenv("ROBUSTLY_CACHE", str(tmp_path / "cache"))
    assert len(load_splits(config(source)).train) == 17


def ending_after(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the connection end when some rows have been read."""
    convert: Callable[[Any], Any] = streamed._with_bytes
    left = [2 * rows]

    def cell_of(cell: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("the server is gone")
        return convert(cell)

    monkeypatch.setattr(streamed, "_with_bytes", cell_of)


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "SHARD_ROWS", 8)
    monkeypatch.setattr(streamed, "_ROWS_AT_ONCE", 4)


def test_an_interrupted_stream_goes_on_behind_its_last_shard(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    with monkeypatch.context() as patch:
        ending_after(30, patch)
        with pytest.raises(ValueError, match=r"ended early \(.*the server is gone.*what has been copied stays"):
            load_splits(config(source))
    assert len(copies(tmp_path)) == 3  # of 8 rows each
    with monkeypatch.context() as patch:
        ending_after(1 + 16, patch)  # the last row of the copy, to compare, and those behind it
        found = load_splits(config(source, train_split="train", test_split="train", test=5))
    assert same(found.train, PIXELS)
    assert len(copies(tmp_path)) == 5


def test_a_stream_whose_order_changed_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    with monkeypatch.context() as patch:
        ending_after(30, patch)
        with pytest.raises(ValueError, match="ended early"):
            load_splits(config(source))
    monkeypatch.setattr(streamed, "_streams", reversed_streams(streamed._streams, tmp_path))
    with pytest.raises(ValueError, match=r"its order has changed since 24 rows were copied: remove .*streams"):
        load_splits(config(source))


def reversed_streams(usual: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """The streams of the same data in another order, under the same mark."""

    def streams(name: str, setting: str | None, source: str) -> Any:
        _, mark = usual(name, setting, source)
        write(tmp_path / "turned", IMAGES[::-1].copy())
        return usual(str(tmp_path / "turned"), setting, source)[0], mark

    return streams


def test_a_stream_without_labels_is_refused_before_it_is_copied(source: str, tmp_path: Path) -> None:
    content = table(IMAGES, named=False).drop_columns(["label"])
    for part in ("train", "test"):
        pq.write_table(content, tmp_path / "data" / f"{part}.parquet")
    with pytest.raises(ValueError, match=r"\(train\): has no column of integers 0..K-1: its columns are image"):
        load_splits(config(source))
    assert copies(tmp_path) == []


def test_only_the_named_parts_are_copied(source: str, tmp_path: Path) -> None:
    data = load_test(config(source, test_split="test", evaluation_only=True))
    assert len(data) == 5
    assert copies(tmp_path) == ["test-00000.parquet"]
    with pytest.raises(ValueError, match="has no part 'tests': its parts are train, test"):
        load_test(config(source, test_split="tests", evaluation_only=True))


def test_files_of_a_folder_of_images(tmp_path: Path, source: str) -> None:
    for row, image in enumerate(IMAGES[:12]):
        for part in ("train", "test"):
            folder = tmp_path / "pictures" / part / CLASSES[row % 3]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row:02}.png").write_bytes(encoded(image))
    found = load_splits(config(f"hf-stream:{tmp_path / 'pictures'}"))
    assert found.train.classes == CLASSES
    order = sorted(range(12), key=lambda row: (row % 3, row))  # class by class
    assert same(found.train, PIXELS[order])


def test_a_stream_that_is_empty_or_not_there_is_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="hf-stream:nobody/no-such-data-set cannot be streamed"):
        load_splits(config("hf-stream:nobody/no-such-data-set"))
    with pytest.raises(ValueError, match="names no data set: write hf-stream:NAME"):
        load_splits(config("hf-stream:"))
    monkeypatch.setattr(streamed, "_read", lambda stream, source: iter(()))
    with pytest.raises(ValueError, match=r"\(train\): is empty"):
        load_splits(config(source))


def test_a_disk_that_cannot_be_written_to_is_named(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUSTLY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"its copy cannot be kept in .*set the variable ROBUSTLY_CACHE"):
        load_splits(config(source))


def test_other_columns_are_not_copied(source: str, tmp_path: Path) -> None:
    write(tmp_path / "data", IMAGES, words=True)
    assert same(load_splits(config(source)).train, PIXELS)
    for file in (tmp_path / "cache" / "streams").rglob("train*.parquet"):
        assert sorted(pq.read_schema(file).names) == ["image", "label"]
