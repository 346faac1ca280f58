"""Random crops and mirror images of a whole batch at once, on the batch's device."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from robustly.randomness import KeyedGenerator


@dataclass(frozen=True)
class Augmentation:
    """Zero padding and a random crop, then a mirror image of half of the examples, as usual on CIFAR.

    Args:
        pad_crop: pixels of padding on each side, less than the image's sides; 0 for no crops.
        flip: True mirrors left and right with probability 1/2.

    Raises:
        ValueError: if the padding is negative.
    """

    pad_crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.pad_crop < 0:
            raise ValueError(f"pad_crop is {self.pad_crop}: use pixels of padding, 0 for none")

    def __call__(self, images: UInt8[Tensor, "n c h w"], generator: KeyedGenerator) -> UInt8[Tensor, "n c h w"]:
        """Augmented images; the change of an example depends only on the generator's seed and its id.

        Args:
            images: 8-bit pixels.
            generator: of the same N examples, on the same device.

        Raises:
            ValueError: if the padding is not less than the image's sides.
        """
        height, width = images.shape[2:]
        pad = self.pad_crop
        if pad >= min(height, width):
            raise ValueError(f"pad_crop is {pad}: use less than the image's side, here {height}x{width} pixels")
        if not pad and not self.flip:
            return images
        rows = torch.arange(height, device=images.device).expand(len(images), -1)
        columns = torch.arange(width, device=images.device).expand(len(images), -1)
        if self.flip:
            mirrored = generator.fold("flip").integers(2, 1) == 1
            columns = torch.where(mirrored, columns.flip(1), columns)
        if pad:
            shift = generator.fold("crop").integers(2 * pad + 1, 2)
            rows, columns = rows + shift[:, :1], columns + shift[:, 1:]
        padded = F.pad(images, (pad, pad, pad, pad))
        place = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
        chosen = place.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        return padded.flatten(2).gather(2, chosen).reshape(images.shape)
