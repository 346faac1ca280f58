"""Data that would be read in another sense than its author meant."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustly.data import DataConfig, ImageData, load_test


def array_data(folder: Path, shape: tuple[int, ...], first_label: int = 0) -> ImageData:
    images = np.zeros((12, *shape), np.uint8)
    np.savez(folder / "a.npz", images=images, labels=np.arange(12) % 3 + first_label)
    return load_test(DataConfig(source=str(folder / "a.npz"), evaluation_only=True))


def folder_data(root: Path, *names: str) -> ImageData:
    for name in names:
        (root / name).mkdir(parents=True)
        for place in range(2):
            Image.new("L", (8, 8)).save(root / name / f"{place}.png")
    return load_test(DataConfig(source=str(root), evaluation_only=True))


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((64, 64, 13), (13, 64, 64)),
        ((13, 64, 64), (13, 64, 64)),
        ((20, 30, 4), (4, 20, 30)),
        ((4, 20, 30), (4, 20, 30)),
        ((64, 4, 4), (64, 4, 4)),
        ((8, 8, 3), (3, 8, 8)),
    ],
)
def test_channels_are_the_axis_that_is_shorter(
    tmp_path: Path, shape: tuple[int, ...], read: tuple[int, ...]
) -> None:
    assert array_data(tmp_path, shape).shape == read


def test_labels_from_one_are_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"a\.npz: the smallest label is 1, so class 0 has no example among 4"):
        assert array_data(tmp_path, (8, 8), first_label=1).num_classes == 4


@pytest.mark.parametrize(("train", "test"), [("Training", "Testing"), ("Train", "TEST"), ("train", "Test")])
def test_folders_with_names_like_splits_are_refused(tmp_path: Path, train: str, test: str) -> None:
    with pytest.raises(ValueError, match=r"rename the folder \w+ to (train|test): splits are named train, test"):
        folder_data(tmp_path, *(f"{part}/{name}" for part in (train, test) for name in "ab"))


def test_classes_may_have_such_names_and_folders_of_archives_are_skipped(tmp_path: Path) -> None:
    assert folder_data(tmp_path / "a", "Testing", "b").classes == ("Testing", "b")
    assert folder_data(tmp_path / "b", "x", "y", "__MACOSX/x").classes == ("x", "y")
