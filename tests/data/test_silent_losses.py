"""Data that would be read, but not as meant, get a sentence."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from robustly.data import as_image_data

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)
Y = torch.arange(6)


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(image, int(label)) for image, label in zip(X, Y, strict=True)])


def test_floats_that_were_cast_to_bytes_are_named() -> None:
    with pytest.warns(UserWarning, match=r"larger than \d of 255.*multiply"):
        as_image_data((X.to(torch.uint8), Y))


def test_images_that_are_all_the_same_are_named() -> None:
    with pytest.warns(UserWarning, match="all 6 images are the same"):
        as_image_data((torch.ones_like(X), Y))


def test_a_stream_that_every_worker_reads_is_named() -> None:
    assert len(as_image_data(DataLoader(Stream(), batch_size=3))) == 6
    with pytest.warns(UserWarning, match="6 of 12 examples repeat earlier ones"):
        as_image_data(DataLoader(Stream(), batch_size=3, num_workers=2))


def test_labels_of_other_types_get_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"whole numbers become by \.long\(\)"):
        as_image_data((X, Y.float()))
    words = np.array(["a", "b", "c", "a", "b", "c"], dtype=object)
    with pytest.raises(ValueError, match="give the class names"):
        as_image_data((X, words))
    assert as_image_data((X, words), classes=["c", "b", "a"]).labels.tolist() == [2, 1, 0, 2, 1, 0]


def test_images_in_folders_inside_of_a_class_are_named(tmp_path: Path) -> None:
    for place, name in enumerate(("a/1.png", "b/2.png", "b/more/3.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((X[place, 0] * 255).byte().numpy()).save(tmp_path / name)
    with pytest.warns(UserWarning, match="more: its images are not read"):
        assert len(as_image_data(tmp_path)) == 2
