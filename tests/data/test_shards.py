"""Data sets that stay on the disk: the same examples as in memory, and refusals in one sentence."""

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_tables import encoded, pictures, table
from PIL import Image
from shards import parquet_shards, tar_of, tar_shards

from robustly.data import DataConfig, Splits, as_image_data, batches, load_splits, load_test, row_digests
from robustly.data.augmentation import Augmentation
from robustly.data.decoding import Decoding
from robustly.data.images import ImageData
from robustly.data.parquet_shards import sharded_rows
from robustly.data.table_files import Columns, parquet_files
from robustly.data.tar_shards import tar_files

IMAGES = pictures(31)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTLY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(path: Path, **settings: object) -> DataConfig:
    return DataConfig(str(path), validation=4, test=5, **settings)  # type: ignore[arg-type]


def image_folder(folder: Path, images: np.ndarray) -> Path:  # type: ignore[type-arg]
    for row, image in enumerate(images):
        place = folder / str(row % 3)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:04}.png")
    return folder


def parts(splits: Splits) -> tuple[ImageData, ...]:
    return splits.train, splits.validation, splits.test


@pytest.mark.parametrize("write", [parquet_shards, tar_shards, image_folder])
def test_examples_on_the_disk_are_those_in_memory(
    write: Callable[[Path, np.ndarray], Path],  # type: ignore[type-arg]
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "set", IMAGES)
    inside, outside = (load_splits(config(path, in_memory=kept)) for kept in (True, False))
    for one, other in zip(parts(inside), parts(outside), strict=True):
        assert not one.on_disk
        assert other.on_disk
        assert one.digest() == other.digest()
        assert row_digests(one).sha256() == row_digests(other).sha256()
        assert one.classes == other.classes
    settings = {"seed": 3, "epoch": 1, "augmentation": Augmentation(2, True), "views": 2, "start": 1}
    pairs = zip(batches(inside.train, 8, **settings), batches(outside.train, 8, **settings), strict=True)  # type: ignore[arg-type]
    for a, b in pairs:
        assert all(map(torch.equal, (a.x, a.y, a.ids, *a.other_views), (b.x, b.y, b.ids, *b.other_views)))
    assert torch.equal(load_test(config(path, in_memory=False)).images, inside.test.images)


def test_pictures_of_shards_are_those_written(tmp_path: Path) -> None:
    wanted = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    for path in (parquet_shards(tmp_path / "p", IMAGES), tar_shards(tmp_path / "t", IMAGES, json=True)):
        data = load_splits(config(path, in_memory=False))
        for part in parts(data):
            assert torch.equal(part.images, wanted[part.ids])
            assert torch.equal(part.labels, part.ids % 3)
    assert sorted(data.train.ids.tolist() + data.validation.ids.tolist() + data.test.ids.tolist()) == [*range(31)]


def test_selections(tmp_path: Path) -> None:
    data = load_splits(config(parquet_shards(tmp_path / "set", IMAGES), in_memory=False)).train
    run = data.select(torch.arange(2, 9))
    assert run.on_disk
    assert run.images.data_ptr() == data.images[2:].data_ptr()  # a view: nothing is read
    for index in (torch.tensor([5, 1]), torch.arange(len(data)) % 2 == 0):
        some = data.select(index)
        assert not some.on_disk
        assert torch.equal(some.images, data.images[index])
        assert torch.equal(some.ids, data.ids[index])
    assert data.select(torch.arange(len(data)) > 3).on_disk
    assert torch.equal(data.floats(torch.tensor([3])), data.images[3:4].float() / 255)


def test_the_second_start_reads_the_cache_and_changed_files_do_not(tmp_path: Path, cache: Path) -> None:
    path = parquet_shards(tmp_path / "set", IMAGES)
    first = load_splits(config(path, in_memory=False)).train
    stored = {file: file.stat().st_mtime_ns for file in (cache / "images").glob("*.npy")}
    assert len(stored) == 3
    load_splits(config(path, in_memory=False))
    assert {file: file.stat().st_mtime_ns for file in (cache / "images").glob("*.npy")} == stored
    file = path / "train-00000-of-00003.parquet"
    changed = pictures(31, seed=1)
    pq.write_table(table(changed[:11]), file)
    other = load_splits(config(path, in_memory=False)).train
    assert first.digest() != other.digest()
    own = other.ids < 11
    assert torch.equal(other.images[own], torch.from_numpy(changed).permute(0, 3, 1, 2)[other.ids[own]])


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_cache_files_are_written_again(damage: str, tmp_path: Path, cache: Path) -> None:
    path = tar_shards(tmp_path / "set", IMAGES)
    wanted = load_splits(config(path, in_memory=False)).train.digest()
    for file in [*(cache / "images").glob("*.npy"), *(cache / "indices").glob("*.safetensors")]:
        content = file.read_bytes()
        file.unlink()  # mapped files keep their pages
        file.write_bytes({"cut": content[:-7], "empty": b"", "other": b"x" * len(content)}[damage])
    assert load_splits(config(path, in_memory=False)).train.digest() == wanted


def test_auto_follows_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_shards(tmp_path / "set", IMAGES)
    assert not load_splits(config(path)).train.on_disk
    monkeypatch.setattr("robustly.data.stored.free_bytes", lambda: 2 * 108.0 * 22 - 1)
    assert not load_splits(config(path)).train.on_disk  # because it is small
    monkeypatch.setattr("robustly.data.stored._ALWAYS", 0)
    splits = load_splits(config(path))
    assert len(splits.train) == 22
    assert [part.on_disk for part in parts(splits)] == [True, False, False]


def test_row_groups_are_read_in_any_order(tmp_path: Path) -> None:
    images = pictures(300, side=2)
    path = parquet_shards(tmp_path / "set", images, shards=2, group=140)
    rows = sharded_rows(parquet_files(path), Columns(), Decoding())["train"]
    index = torch.tensor([299, 3, 150, 3, 149, 70, 0])
    assert torch.equal(rows.read(index), torch.from_numpy(images).permute(0, 3, 1, 2)[index])
    assert torch.equal(rows.read(torch.tensor([2])), torch.from_numpy(images).permute(0, 3, 1, 2)[2:3])
    assert rows.classes == ("cat", "dog", "owl")


def refused(path: Path, **settings: object) -> str:
    with pytest.raises(ValueError) as caught:
        load_splits(config(path, **({"in_memory": False} | settings)))
    words = str(caught.value)
    assert "\n" not in words
    return words


def test_refused_sources(tmp_path: Path) -> None:
    assert "needs Parquet files" in refused(Path("mnist5k"))
    with pytest.raises(ValueError, match="several domains are always kept in memory"):
        DataConfig(domains={"a": "x", "b": "y"}, leave_out="a", in_memory=False)
    with pytest.raises(ValueError, match="use auto, true or false"):
        DataConfig(in_memory="never")  # type: ignore[arg-type]
    path = parquet_shards(tmp_path / "sizes", IMAGES)
    pq.write_table(table(pictures(10, side=7)), path / "train-00001-of-00003.parquet")
    assert "set image_size to resize all images" in refused(path)
    assert load_splits(config(path, in_memory=False, image_size=5)).train.shape == (3, 5, 5)
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    unlabelled = pa.array([row % 3 if row else None for row in range(31)], pa.int64())
    pq.write_table(table(IMAGES, label=unlabelled), nameless / "shard.parquet")
    assert "1 of 31 rows have no label" in refused(nameless)
    pq.write_table(table(IMAGES).drop_columns(["label"]), nameless / "shard.parquet")
    assert "has no column of integers 0..K-1" in refused(nameless)
    (nameless / "shard.parquet").write_bytes((path / "train-00000-of-00003.parquet").read_bytes()[:-9])
    assert "is damaged or not a Parquet file" in refused(nameless)


def test_refused_tar_files(tmp_path: Path) -> None:
    picture = encoded(IMAGES[0])
    full = {f"{row}.{kind}": content for row in range(31) for kind, content in (("png", picture), ("cls", b"0"))}

    def words(members: dict[str, bytes], **settings: object) -> str:
        return refused(tar_of(tmp_path / "set" / "some.tar", members), **settings)

    assert "1 of 31 rows have no label" in words({name: one for name, one in full.items() if name != "3.cls"})
    assert "the example '3' has no image" in words({name: one for name, one in full.items() if name != "3.png"})
    several = dict([*list(full.items())[:6], ("2.jpg", picture), *list(full.items())[6:]])
    assert "the example '2' has several images" in words(several)
    assert "is there twice" in words(full | {"0.jpg": picture})
    assert "holds the label 'cat': labels are integers" in words(full | {"3.cls": b"cat"})
    assert "holds the label '-2'" in words(full | {"3.cls": b"-2"})
    assert "is not a readable image" in words(full | {"3.png": b"no picture"})
    assert "is empty" in words({"readme.txt": b"0"})
    no_key = {
        "3.json" if name == "3.cls" else name: b"{}" if name == "3.cls" else one for name, one in full.items()
    }
    assert "1 of 31 rows have no label" in words(no_key)
    file = tar_of(tmp_path / "set" / "some.tar", full)
    content = file.read_bytes()
    for cut in (1024 + 100, 1024 + 512, 20 * 512 + 30, 3):
        file.write_bytes(content[:cut])
        assert "is cut off" in refused(file) or "is damaged" in refused(file)
    file.write_bytes(gzip.compress(content))
    assert "compressed" in refused(file)


def test_links_and_paths_of_tar_files_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(IMAGES[0]))
    file = tmp_path / "set.tar"
    with tarfile.open(file, "w") as archive:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    tar = file.read_bytes()
    assert str(secret).encode() in tar
    assert "is empty, there is no example" in refused(file)


def test_a_full_or_missing_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_shards(tmp_path / "set", IMAGES)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUSTLY_CACHE", str(tmp_path / "file" / "inside"))
    assert "set the variable ROBUSTLY_CACHE to a folder on another disk" in refused(path)
    monkeypatch.setenv("ROBUSTLY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    assert "GiB are free" in refused(path)
    assert not list((tmp_path / "cache" / "images").glob("*.npy*"))


def test_names_of_tar_files(tmp_path: Path) -> None:
    def found(*names: str) -> dict[str, list[str]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
        return {part: [file.name for file in group] for part, group in tar_files(folder).items()}

    assert found("imagenet-train-0001.tar", "imagenet-train-0000.tar", "imagenet-validation-00.tar") == {
        "train": ["imagenet-train-0000.tar", "imagenet-train-0001.tar"],
        "validation": ["imagenet-validation-00.tar"],
    }
    assert found("a.tar", "train-0.tar") == {"all": ["a.tar", "train-0.tar"]}
    assert found("train/0.tar", "test/0.tar") == {"train": ["0.tar"], "test": ["0.tar"]}
    assert found("constrained.tar") == {"all": ["constrained.tar"]}
    assert found("cat/0.png") == {}
    assert found("train.tar", "train/cat/0.png") == {}


def test_tables_beside_folders_of_classes_are_not_the_data(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "set", IMAGES)
    (path / "notes.parquet").write_bytes(b"")
    (path / "all.tar").write_bytes(b"")
    assert load_splits(config(path)).train.classes == ("0", "1", "2")


def test_the_door_reads_shards(tmp_path: Path) -> None:
    data = as_image_data(tar_shards(tmp_path / "set", IMAGES))
    assert len(data) == 31
    assert torch.equal(data.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2)[data.ids])


def test_data_sets_of_the_hub_stay_on_the_disk(datasets: Any, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    columns = {
        "image": [{"bytes": encoded(image), "path": None} for image in IMAGES],
        "label": [k % 3 for k in range(31)],
    }
    made = datasets.Dataset.from_dict(columns, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, setting: {"train": made})
    inside, outside = (load_splits(config(Path("hf:a"), in_memory=kept)).train for kept in (True, False))
    assert (inside.on_disk, outside.on_disk) == (False, True)
    assert inside.digest() == outside.digest()
    small = load_splits(config(Path("hf:a"), in_memory=False, image_size=4)).train
    assert small.shape == (3, 4, 4)
    assert len(list((cache / "images").glob("*.npy"))) == 6


def test_a_stream_is_saved_as_shards_as_the_documentation_says(datasets: Any, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/own.md").read_text()
    code = (
        text.split("```python\nfrom datasets import Dataset, Image\n")[1]
        .split("```")[0]
        .replace('f"', 'f"{place}/')
    )
    columns = {
        "image": [{"bytes": encoded(image), "path": None} for image in IMAGES],
        "label": [k % 3 for k in range(31)],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    stream = datasets.Dataset.from_dict(columns, features=features).to_iterable_dataset()
    (tmp_path / "shards").mkdir()
    names = {"Dataset": datasets.Dataset, "Image": datasets.Image, "stream": stream, "place": tmp_path}
    exec(code.replace("10_000", "10"), names)  # noqa: S102 (the snippet of this repository)
    assert len(list((tmp_path / "shards").glob("*.parquet"))) == 4
    data = load_splits(config(tmp_path / "shards", in_memory=False)).train
    assert torch.equal(data.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2)[data.ids])
