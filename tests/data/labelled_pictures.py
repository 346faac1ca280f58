"""The same labelled pictures as tensors, as Pillow images and as a data set, and a check of equality."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from robustly.data import ImageData

COUNT = 24
PIXELS = torch.randint(0, 256, (COUNT, 3, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(COUNT) % 4
IMAGES = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in PIXELS]
NAMES = ["ant", "bee", "cow", "dog"]


def check(data: ImageData, pixels: Tensor = PIXELS, labels: Tensor = LABELS) -> None:
    assert torch.equal(data.images, pixels)
    assert torch.equal(data.labels, labels)
    assert data.images.is_contiguous()


class Pictures(Dataset[Any]):
    """Items of a function; counts the reads."""

    def __init__(self, image: Callable[[int], Any], labels: Any = LABELS, form: str = "tuple") -> None:
        self.image, self.labels, self.form, self.reads = image, labels, form, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> Any:
        self.reads += 1
        if not 0 <= place < len(self):
            raise IndexError(place)
        image, label = self.image(place), self.labels[place]
        return {"tuple": (image, label), "triple": (image, label, "x"), "dict": {"img": image, "labels": label}}[
            self.form
        ]


FORMS: dict[str, Callable[[int], Any]] = {
    "uint8": lambda place: PIXELS[place],
    "floats": lambda place: PIXELS[place].float() / 255,
    "pillow": lambda place: IMAGES[place],
    "numpy HWC": lambda place: np.asarray(IMAGES[place]),
    "lists": lambda place: PIXELS[place].tolist(),
    "a batch of one": lambda place: PIXELS[place][None],
}
