"""Image sets in memory: what is refused at the door, and what survives selection and copying."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from robustly.data import ImageData


def made(count: int = 6, classes: int = 3) -> ImageData:
    pixels = torch.arange(count * 2 * 3 * 4).reshape(count, 2, 3, 4) % 256
    labels = torch.arange(count) % classes
    return ImageData(pixels.to(torch.uint8), labels, torch.arange(count) * 10, ("a", "b", "c"), "made")


def test_properties() -> None:
    data = made()
    assert (len(data), data.shape, data.num_classes) == (6, (2, 3, 4), 3)
    assert torch.equal(data.floats(), data.images.float() / 255)
    assert torch.equal(data.floats(torch.tensor([4, 1])), data.images[[4, 1]].float() / 255)


def test_selection_keeps_ids() -> None:
    data = made()
    assert data.select(torch.tensor([4, 1])).ids.tolist() == [40, 10]
    masked = data.select(data.labels == 2)
    assert masked.ids.tolist() == [20, 50]
    assert torch.equal(masked.images, data.images[[2, 5]])
    with pytest.raises(ValueError, match="holds no images"):
        data.select(torch.zeros(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="not distinct"):
        data.select(torch.tensor([1, 1]))


def test_digest_is_of_content() -> None:
    data = made()
    assert data.digest() == made().digest() == data.to("cpu").digest()
    strided = replace(data, images=data.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
    assert strided.digest() == data.digest()
    for change in (
        replace(data, images=data.images ^ 1),
        replace(data, labels=data.labels.flip(0)),
        replace(data, ids=data.ids + 1),
        replace(data, images=data.images.reshape(6, 2, 4, 3)),
    ):
        assert change.digest() != data.digest()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.rand(6, 2, 3, 4)}, "pass them through ImageData.from_floats"),
        ({"images": torch.zeros(6, 2, 3, 4, dtype=torch.int32)}, "use uint8"),
        ({"images": torch.zeros(6, 3, 4, dtype=torch.uint8)}, r"use uint8 \(N, C, H, W\)"),
        ({"images": torch.zeros(0, 2, 3, 4, dtype=torch.uint8)}, "holds no images"),
        ({"images": torch.zeros(5, 2, 3, 4, dtype=torch.uint8)}, "5 images but 6 labels"),
        ({"labels": torch.zeros(6)}, "labels are torch.float32"),
        ({"labels": torch.zeros(6, 1, dtype=torch.int64)}, r"use int64 \(N,\)"),
        ({"labels": torch.full((6,), 3)}, r"the label 3, but with 3 classes labels are 0\.\.2"),
        ({"labels": torch.full((6,), -1)}, "the label -1"),
        ({"ids": torch.zeros(6, dtype=torch.int64)}, "not distinct"),
        ({"ids": torch.arange(5)}, "6 images but 5 ids"),
    ],
)
def test_what_is_refused(changes: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=f"made: .*{words}"):
        replace(made(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_on_the_grid_become_the_same_pixels(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    data = ImageData.from_floats(levels.to(dtype) / 255, torch.tensor([0]))
    assert torch.equal(data.images, levels)
    assert (data.classes, data.ids.tolist(), data.source) == (("0",), [0], "memory")
    assert torch.equal(data.floats(), levels.float() / 255)
    beyond = (levels.to(dtype) / 255 - 0.5) * (1 + 1e-6) + 0.5  # by the rounding of arithmetic
    assert torch.equal(ImageData.from_floats(beyond, torch.tensor([0])).images, levels)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (torch.full((1, 1, 2, 2), 200.0), "did you mean to divide by 255"),
        (torch.full((1, 1, 2, 2), -0.1), r"not in \[0, 1\], as resizing .* clamp\(0, 1\)"),
        (torch.full((1, 1, 2, 2), float("nan")), "1 of 1 images hold NaN, the first is image 0"),
        (torch.full((1, 1, 2, 2), -1.5), r"normalised: leave Normalize out .* robustly\.wrap\(model, mean="),
        (torch.full((1, 1, 2, 2), 0.5), "0.5 grey levels off"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "give uint8 pixels to ImageData"),
        (torch.zeros(0, 1, 2, 2), "holds no images"),
    ],
)
def test_floats_that_are_refused(pixels: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ImageData.from_floats(pixels, torch.zeros(len(pixels), dtype=torch.int64))
