"""Small files that would fill the memory once decoded, and labels that no data set has."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from robustly import memory
from robustly.data import DataConfig, load_test
from robustly.data.images import number_names
from robustly.models.weights import read_weights
from robustly.threats import parse_threat

MIB = 2**20


@pytest.fixture
def one_mebibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.VARIABLE, str(1 / 1024))


def refused(file: Path, **settings: object) -> str:
    with pytest.raises(ValueError) as error:
        load_test(DataConfig(source=str(file), **settings))  # type: ignore[arg-type]
    return str(error.value)


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def write_zip(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def npy(shape: tuple[int, ...], kind: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + content


def test_a_small_archive_with_large_arrays_is_refused(tmp_path: Path, one_mebibyte: None) -> None:
    arrays = {"images": np.zeros((2048, 32, 32), np.uint8), "labels": np.zeros(2048, np.int64)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    said = refused(tmp_path / "a.npz")
    assert "a.npz: needs 0.00197 GiB of memory, more than the limit of 0.000976562 GiB" in said
    assert memory.VARIABLE in said


def test_a_header_that_states_more_than_the_archive_holds_is_refused(tmp_path: Path) -> None:
    members = {"images.npy": npy((10**9, 32, 32), "u1", bytes(1024)), "labels.npy": npy((1,), "i8", bytes(8))}
    said = refused(write_zip(tmp_path / "a.npz", members))
    assert "its header states 1024000000000 bytes of values, but 1024 follow" in said


def test_a_mask_whose_header_states_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.npy").write_bytes(npy((10**7, 10**7), "f4", bytes(16)))
    with pytest.raises(ValueError, match="states 400000000000000 bytes"):
        parse_threat(f"linf:8/255@{tmp_path / 'mask.npy'}")


def test_an_image_of_many_pixels_is_refused_undecoded(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png(10_000, 8_000))
    said = refused(tmp_path, evaluation_only=True)
    assert "it has 10000 x 8000 pixels, more than the limit of 50,000,000" in said
    with pytest.raises(ValueError, match="image_size is 100000: it has"):
        DataConfig(image_size=100_000)


def test_images_that_are_large_together_are_refused(tmp_path: Path, one_mebibyte: None) -> None:
    for place in range(6):
        folder = tmp_path / str(place % 2)
        folder.mkdir(exist_ok=True)
        (folder / f"{place}.png").write_bytes(png(512, 512))
    assert "0.png and 5 more images of its size: needs" in refused(tmp_path, evaluation_only=True)
    assert load_test(DataConfig(source=str(tmp_path), evaluation_only=True, image_size=16)).shape == (1, 16, 16)


def test_a_table_of_a_repeated_image_is_refused(tmp_path: Path, one_mebibyte: None) -> None:
    picture = png(8, 8) + bytes(10_000)
    table = pa.table({"image": [picture] * 3000, "label": [0, 1, 2] * 1000})
    pq.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < MIB
    assert "more than the limit" in refused(tmp_path / "a.parquet")


def test_a_gzip_file_that_unpacks_to_more_than_its_header_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">4i", 2051, 1, 4, 4)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(50 * MIB)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 1) + b"\0")
    assert "its header gives (1, 4, 4) bytes but 17 follow" in refused(tmp_path)
    header = struct.pack(">4i", 2051, 2**30, 2**10, 2**10)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header))
    assert "more than the limit of 16 GiB" in refused(tmp_path)


def test_compressed_weights_are_refused(tmp_path: Path, one_mebibyte: None) -> None:
    file = write_zip(tmp_path / "a.pt", {"archive/data.pkl": b"", "archive/data/0": bytes(2 * MIB)})
    with pytest.raises(ValueError, match="more than the limit"):
        read_weights(file)


@pytest.mark.parametrize("given", ["", "none", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.VARIABLE, given)
    with pytest.raises(ValueError, match="should be a number of GiB such as 64"):
        memory.most_bytes()


@pytest.mark.parametrize("label", [10**12, 2**62, 20, -1, -(2**63)])
def test_labels_that_no_data_set_has_are_refused(tmp_path: Path, label: int) -> None:
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    labels[3] = label
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    assert f"holds the label {label}" in refused(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=images, labels=labels, classes=np.array(["x", "y"]))
    assert f"holds the label {label}, but with 2 classes" in refused(tmp_path / "a.npz")
    pq.write_table(pa.table({"image": [png(8, 8)] * 20, "label": labels}), tmp_path / "a.parquet")
    assert f"holds the label {label}" in refused(tmp_path / "a.parquet")


def test_labels_of_other_types_are_refused(tmp_path: Path) -> None:
    images = np.zeros((20, 8, 8), np.uint8)
    for labels, words in (
        (np.full(20, 2**63, np.uint64), "holds the label 9223372036854775808"),
        (np.zeros(20), "holds float64"),
        (np.array(["a"] * 20), "holds <U1"),
        (np.zeros((20, 2), np.int64), "one integer for each image"),
        (np.zeros((), np.int64), "one integer for each image"),
        (np.zeros(20, bool), "holds bool"),
    ):
        np.savez(tmp_path / "a.npz", images=images, labels=labels)
        assert words in refused(tmp_path / "a.npz")


def test_as_many_classes_as_rows_are_allowed() -> None:
    assert number_names([torch.tensor([0]), torch.tensor([1])], "x") == ("0", "1")
    with pytest.raises(ValueError, match="holds the label 2 but only 2 examples"):
        number_names([torch.tensor([0]), torch.tensor([2])], "x")
    with pytest.raises(ValueError, match="is empty"):
        number_names([torch.tensor([], dtype=torch.int64)], "x")
