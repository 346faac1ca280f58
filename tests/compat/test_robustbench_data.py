"""`load_cifar10` and `load_cifar100` read local files of every kind, and run nothing that is in them."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from robustly.compat.robustbench import RobustBenchError, load_cifar10, load_cifar100
from robustly.compat.robustbench.pickled_batches import BatchError, read_batch

ROWS = np.random.default_rng(0).integers(0, 256, (7, 3072), dtype=np.uint8)
LABELS = [3, 9, 0, 1, 7, 2, 5]


def python_2_pickle(rows: NDArray[np.uint8], labels: list[int], key: bytes = b"labels") -> bytes:
    """The bytes of the published files: protocol 2 of Python 2, whose texts are byte strings."""

    def text(content: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(content)) + content

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        b"(K\x01(" + b"M" + struct.pack("<H", len(rows)) + b"M" + struct.pack("<H", rows.shape[1]) + b"t"
        b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"I00\n" + text(rows.tobytes()) + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    entries = text(b"data") + array + text(key) + numbers + text(b"batch_label") + text(b"testing batch 1 of 1")
    return b"\x80\x02}(" + entries + b"u."


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def check(found: tuple[torch.Tensor, torch.Tensor], count: int = 7) -> None:
    images, labels = found
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert labels.tolist() == LABELS[:count]
    expected = ROWS[:count].reshape(-1, 3, 32, 32).astype(np.float32) / 255
    assert np.array_equal(images.numpy(), expected)


def test_the_pickle_of_python_2_is_the_one_that_numpy_reads() -> None:
    content = pickle.loads(python_2_pickle(ROWS, LABELS), encoding="bytes")  # noqa: S301
    assert np.array_equal(content[b"data"], ROWS)
    assert content[b"labels"] == LABELS


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "", "cifar10/cifar-10-batches-py"])
def test_the_python_version_is_read(folder: str, tmp_path: Path) -> None:
    written(tmp_path / folder / "test_batch", python_2_pickle(ROWS, LABELS))
    check(load_cifar10(data_dir=tmp_path))
    check(load_cifar10(3, tmp_path), 3)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_python_3_are_read(protocol: int, order: Any, tmp_path: Path) -> None:
    batch = {"data": np.array(ROWS, order=order), "labels": LABELS}
    written(tmp_path / "test_batch", pickle.dumps(batch, protocol))
    check(load_cifar10(data_dir=tmp_path))


def test_cifar100_has_its_own_names_and_fine_labels(tmp_path: Path) -> None:
    batch = {b"data": ROWS, b"coarse_labels": [1] * 7, b"fine_labels": LABELS}
    written(tmp_path / "cifar-100-python" / "test", pickle.dumps(batch))
    check(load_cifar100(data_dir=tmp_path))


def test_the_binary_versions_are_read(tmp_path: Path) -> None:
    rows = b"".join(bytes([label]) + row.tobytes() for label, row in zip(LABELS, ROWS, strict=True))
    written(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", rows)
    check(load_cifar10(data_dir=tmp_path))
    rows = b"".join(bytes([0, label]) + row.tobytes() for label, row in zip(LABELS, ROWS, strict=True))
    written(tmp_path / "cifar-100-binary" / "test.bin", rows)
    check(load_cifar100(data_dir=tmp_path))
    written(tmp_path / "cifar-100-binary" / "test.bin", rows[:-1])
    with pytest.raises(RobustBenchError, match="is damaged"):
        load_cifar100(data_dir=tmp_path)


def test_images_by_class_are_read(tmp_path: Path) -> None:
    for label in range(10):
        folder = tmp_path / "cifar10" / "test" / str(label)
        folder.mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), label, np.uint8)).save(folder / "0.png")
    images, labels = load_cifar10(data_dir=tmp_path)
    assert labels.tolist() == list(range(10))
    assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)
    with pytest.raises(RobustBenchError, match="100 classes, not 10"):
        load_cifar100(data_dir=tmp_path / "cifar10")
    with pytest.raises(ValueError, match="n_examples is 11 but the split has only 10"):
        load_cifar10(11, tmp_path)


def test_transforms_get_pictures(tmp_path: Path) -> None:
    written(tmp_path / "test_batch", python_2_pickle(ROWS, LABELS))

    def halved(picture: Image.Image) -> torch.Tensor:
        assert picture.size == (32, 32)
        return torch.from_numpy(np.asarray(picture)[::2, ::2].copy())

    images, _ = load_cifar10(2, tmp_path, transforms_test=halved)
    assert images.shape == (2, 16, 16, 3)
    assert images[1, 3, 5].tolist() == ROWS[1].reshape(3, 32, 32)[:, 6, 10].tolist()
    with pytest.raises(RobustBenchError, match="must return tensors, got Image"):
        load_cifar10(2, tmp_path, transforms_test=lambda picture: picture)  # type: ignore[arg-type, return-value]
    with pytest.raises(RobustBenchError, match="must be a function"):
        load_cifar10(2, tmp_path, "Res224")  # type: ignore[arg-type]


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("harmed",)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps({"data": Harmful()}), "mkdir, which is never called"),
        (b"cbuiltins\neval\n(Vprint(1)\ntR.", "eval, which is never called"),
        (pickle.dumps({"data": ROWS.astype(np.float32), "labels": LABELS}), "another type than uint8"),
        (pickle.dumps({"data": np.array([print], dtype=object)}), "print, which is never called"),
        (pickle.dumps({"data": np.array([[]], dtype=object)}), "another type than uint8"),
        (pickle.dumps([1, 2]), "holds list, not a dictionary"),
        (python_2_pickle(ROWS, LABELS)[:-300], "damaged"),
        (b"", "damaged"),
        (b"<html>", "damaged"),
        (b"\x80\x04Pab\n.", "damaged"),
        (b"cnumpy\nndarray\n)R(lp0\n.", "damaged"),
    ],
)
def test_other_pickles_run_nothing(
    content: bytes, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "test_batch", content)
    with pytest.raises(BatchError, match=sentence) as error:
        read_batch(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({"data": ROWS[:, :100], "labels": LABELS}, "3072 bytes"),
        ({"data": ROWS, "labels": LABELS[:3]}, "a number for each image"),
        ({"data": ROWS, "labels": ["cat"] * 7}, "a number for each image"),
        ({"data": ROWS, "fine_labels": LABELS}, "'labels'"),
        ({"data": ROWS, "labels": [10] * 7}, "labels of CIFAR-10 are 0 to 9"),
    ],
)
def test_batches_that_do_not_fit_get_a_sentence(batch: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    written(tmp_path / "test_batch", pickle.dumps(batch))
    with pytest.raises(RobustBenchError, match=sentence):
        load_cifar10(data_dir=tmp_path)


def test_absence_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUSTLY_SHARED_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="has no CIFAR-10, and robustly downloads nothing: put"):
        load_cifar10(data_dir=tmp_path)
    written(tmp_path / "cifar-10-python.tar.gz", b"")
    with pytest.raises(FileNotFoundError, match=r"tar -xzf .*cifar-10-python\.tar\.gz"):
        load_cifar10(data_dir=tmp_path)
    for count in (0, -1, 2.5, True):
        with pytest.raises(RobustBenchError, match="n_examples must be"):
            load_cifar10(count, tmp_path)  # type: ignore[arg-type]
    written(tmp_path / "test_batch", python_2_pickle(ROWS, LABELS))
    with pytest.raises(RobustBenchError, match="fewer than n_examples=8"):
        load_cifar10(8, tmp_path)


def test_shared_images_are_read_with_a_warning(shared_data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="compressed as JPEG") as found:
        images, labels = load_cifar10(20, tmp_path)
    assert found[0].filename == __file__
    assert images.shape == (20, 3, 32, 32)
    assert len(labels.unique()) > 4
    with pytest.raises(FileNotFoundError, match="CIFAR-100"):
        load_cifar100(data_dir=tmp_path)
