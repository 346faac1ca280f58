"""Folders of corrupted images in the layouts of CIFAR-10-C and ImageNet-C, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustly.data import ImageData
from robustly.data.corrupted_files import open_corrupted

EACH = 4


@pytest.fixture
def clean() -> ImageData:
    pixels = torch.zeros(EACH, 3, 8, 10, dtype=torch.uint8)
    return ImageData(pixels, torch.tensor([0, 1, 2, 1]), torch.arange(EACH), ("ant", "bee", "cat"), "clean")


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Two corruptions of four images: each pixel is 10 times the severity plus the number of the image."""
    levels = 10 * np.arange(1, 6)[:, None] + np.arange(EACH)
    pixels = np.broadcast_to(levels.reshape(-1, 1, 1, 1), (5 * EACH, 8, 10, 3)).astype(np.uint8)
    np.save(tmp_path / "fog.npy", pixels)
    np.save(tmp_path / "gaussian_noise.npy", pixels + 100)
    np.save(tmp_path / "labels.npy", np.tile(np.array([0, 1, 2, 1], np.uint8), 5))
    return tmp_path


def test_arrays_are_read_by_severity_in_the_order_of_the_paper(arrays: Path, clean: ImageData) -> None:
    files = open_corrupted(arrays, clean)
    assert files.names == ("gaussian_noise", "fog")
    assert files.count == EACH
    for severity in (1, 5):
        read = files.read("fog", severity)
        assert read.images.shape == (EACH, 3, 8, 10)
        assert read.images[:, 0, 0, 0].tolist() == [10 * severity + number for number in range(EACH)]
        assert read.labels.tolist() == [0, 1, 2, 1]
    assert int(files.read("gaussian_noise", 2).images[3, 2, 7, 9]) == 123
    assert open_corrupted(arrays, clean, 2).read("fog", 3).images[:, 0, 0, 0].tolist() == [30, 31]


def test_labels_of_one_severity_are_enough(arrays: Path, clean: ImageData) -> None:
    np.save(arrays / "labels.npy", np.array([2, 1, 0, 1]))
    assert open_corrupted(arrays, clean).read("fog", 4).labels.tolist() == [2, 1, 0, 1]


def test_the_digest_changes_with_the_files(arrays: Path, clean: ImageData) -> None:
    before = open_corrupted(arrays, clean).digest
    assert open_corrupted(arrays, clean).digest == before
    (arrays / "fog.npy").unlink()
    assert open_corrupted(arrays, clean).digest != before


@pytest.mark.parametrize(
    ("name", "array", "problem"),
    [
        (
            "fog.npy",
            np.zeros((20, 3, 8, 10), np.uint8),
            r"fog.npy: holds uint8 of shape \(20, 3, 8, 10\), but the mo",
        ),
        ("fog.npy", np.zeros((20, 8, 10, 3)), r"fog.npy: holds float64 of shape \(20, 8, 10, 3\)"),
        ("fog.npy", np.zeros((19, 8, 10, 3), np.uint8), r"fog.npy: has shape \(19, 8, 10, 3\): .* multiple of 5"),
        ("fog.npy", np.zeros((10, 8, 10, 3), np.uint8), r"fog.npy: has shape \(10, .* gaussian_noise.npy has 20"),
        ("fog.npy", np.array([{}]), r"fog.npy: is damaged, not a NumPy array, or holds Python objects"),
        ("labels.npy", np.zeros((20, 1), np.uint8), r"labels.npy: holds uint8 of shape \(20, 1\): labels are int"),
        ("labels.npy", np.full(20, 7), r"labels.npy: holds the label 7, but the model has 3 classes"),
        ("labels.npy", np.zeros(7, int), r"labels.npy: has shape \(7,\), but there are 4 images of each severity"),
        ("labels.npy", np.arange(20) % 3, r"labels.npy: the labels of the five severities differ"),
    ],
)
def test_arrays_that_do_not_fit_are_named_with_their_shape(
    arrays: Path, clean: ImageData, name: str, array: np.ndarray, problem: str
) -> None:
    np.save(arrays / name, array)
    with pytest.raises(ValueError, match=problem) as caught:
        open_corrupted(arrays, clean)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_off_is_refused(arrays: Path, clean: ImageData) -> None:
    content = (arrays / "fog.npy").read_bytes()
    (arrays / "fog.npy").write_bytes(content[:-50])
    with pytest.raises(ValueError, match=r"fog.npy: is damaged"):
        open_corrupted(arrays, clean)


def test_folders_without_corruptions_are_refused(tmp_path: Path, clean: ImageData) -> None:
    with pytest.raises(ValueError, match="there is no such folder of corrupted images"):
        open_corrupted(tmp_path / "nowhere", clean)
    with pytest.raises(ValueError, match=r"has neither labels.npy \(as CIFAR-10-C\) nor folders gaussian_noise"):
        open_corrupted(tmp_path, clean)
    np.save(tmp_path / "labels.npy", np.zeros(5, int))
    with pytest.raises(ValueError, match=r"has labels.npy but none of the files gaussian_noise"):
        open_corrupted(tmp_path, clean)


def pictures(root: Path, names: tuple[str, ...], size: tuple[int, int] = (8, 8)) -> None:
    for severity in range(1, 6):
        for number, name in enumerate(names):
            folder = root / "fog" / str(severity) / name
            folder.mkdir(parents=True)
            for image in range(2):
                level = 40 * severity + 10 * number + image
                Image.new("RGB", size, (level, level, level)).save(folder / f"{image}.png")


@pytest.fixture
def square() -> ImageData:
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    return ImageData(pixels, torch.tensor([0, 1]), torch.arange(2), ("ant", "bee", "cat"), "clean")


def test_folders_of_classes_are_read_by_name_or_by_order(tmp_path: Path, square: ImageData) -> None:
    pictures(tmp_path / "named", ("bee", "cat"))
    files = open_corrupted(tmp_path / "named", square)
    assert (files.names, files.count) == (("fog",), 4)
    read = files.read("fog", 2)
    assert read.labels.tolist() == [1, 1, 2, 2]
    assert read.images[:, 0, 0, 0].tolist() == [80, 81, 90, 91]
    spread = open_corrupted(tmp_path / "named", square, 2).read("fog", 2)  # one of each class
    assert spread.labels.tolist() == [1, 2]
    pictures(tmp_path / "numbered", ("n01", "n02", "n03"), (16, 12))
    numbered = open_corrupted(tmp_path / "numbered", square).read("fog", 1)
    assert numbered.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert numbered.images.shape == (6, 3, 8, 8)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path, square: ImageData) -> None:
    pictures(tmp_path / "two", ("n01", "n02"))
    with pytest.raises(
        ValueError, match=r"has 2 class folders such as n01, but the model has 3 classes such as ant"
    ):
        open_corrupted(tmp_path / "two", square)
    pictures(tmp_path / "lacking", ("ant", "bee"))
    (tmp_path / "lacking" / "fog" / "3" / "bee" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"fog/3: its classes or their numbers of images differ from those of .*1"):
        open_corrupted(tmp_path / "lacking", square)
    pictures(tmp_path / "four", ("ant",))
    (tmp_path / "four" / "fog" / "5").rename(tmp_path / "four" / "fog" / "six")
    with pytest.raises(ValueError, match=r"fog/5: there is no such folder"):
        open_corrupted(tmp_path / "four", square)
