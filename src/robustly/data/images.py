"""Labelled images: uint8 pixels, labels, and the ids of the examples."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from robustly.data.class_names import ClassNames, are_numbers, renumbered_labels, shown_names

_USUAL_TOLERANCE = 1e-3  # grey levels
_GREY_TOLERANCE = {torch.float16: 0.07}  # rounding of float16 in [0.5, 1] is 2**-12
_OVERSHOOT = 0.25  # of bicubic and Lanczos resizing
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled set of images, all tensors on one device.

    Args:
        images: 8-bit pixels, `(N, C, H, W)` with N >= 1.
        labels: class indices in 0..K-1, `(N,)`.
        ids: distinct numbers that name the examples, `(N,)`; a selection keeps them.
        classes: the K class names.
        source: origin of the images, as printed in reports.
        on_disk: True if the pixels are mapped from a file. They stay there, and `pixels` and `floats` bring those
            of a batch to the device of the labels.

    Raises:
        ValueError: if a type, a shape, a length, a label or an id differs from the above.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    source: str
    on_disk: bool = False

    def __post_init__(self) -> None:
        if self.images.is_floating_point():
            raise ValueError(
                f"{self.source}: images are {self.images.dtype}, not uint8: pass them through ImageData.from_floats"
            )
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(
                f"{self.source}: images are {self.images.dtype} of shape {tuple(self.images.shape)}: "
                "use uint8 (N, C, H, W)"
            )
        if 0 in self.images.shape:
            raise ValueError(f"{self.source}: holds no images, its shape is {tuple(self.images.shape)}")
        for key, value in (("labels", self.labels), ("ids", self.ids)):
            if value.dtype != torch.int64 or value.dim() != 1:
                raise ValueError(
                    f"{self.source}: {key} are {value.dtype} of shape {tuple(value.shape)}: use int64 (N,)"
                )
            if len(value) != len(self.images):
                raise ValueError(f"{self.source}: holds {len(self.images)} images but {len(value)} {key}")
        check_labels(self.labels, self.classes, self.source)
        if not distinct(self.ids):
            raise ValueError(f"{self.source}: ids are not distinct: each example needs its own")

    @classmethod
    def from_floats(
        cls,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        classes: Sequence[str] | None = None,
        *,
        source: str = "memory",
        ids: Int64[Tensor, " n"] | None = None,
    ) -> "ImageData":
        """Images from floats in [0, 1] that are multiples of 1/255, as 8-bit files give them.

        Args:
            images: `(N, C, H, W)`, each value within 0.001/255 of a multiple of 1/255.
            labels: class indices, `(N,)`.
            classes: class names; None names the classes "0", "1", ... up to the largest label, which must be less
                than the number of images.
            source: origin of the images.
            ids: the examples' ids, `(N,)`; None numbers them from 0.

        Raises:
            ValueError: if a pixel is outside [0, 1] or off the 8-bit grid, and as `ImageData` does.
        """
        pixels = to_pixels(images, source)
        names = number_names([labels], source) if classes is None else tuple(classes)
        numbers = torch.arange(len(images), device=images.device) if ids is None else ids
        return cls(pixels, labels, numbers, names, source)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """K, the number of classes, including classes without examples."""
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        """Device of the labels, and of the pixels of every batch."""
        return self.labels.device

    def select(self, index: Int64[Tensor, " m"] | Bool[Tensor, " n"]) -> "ImageData":
        """Examples at some positions, `(M,)`, or under a mask, `(N,)`; they keep their ids.

        Images on the disk stay there if their positions follow each other; others are read into memory.

        Raises:
            ValueError: if nothing is selected, or a position occurs twice.
        """
        place = index.to(self.device)
        labels, ids = self.labels[place], self.ids[place]
        run = _run(index) if self.on_disk else None
        if run is not None:
            return replace(self, images=self.images[run], labels=labels, ids=ids)
        return replace(self, images=self.pixels(place), labels=labels, ids=ids, on_disk=False)

    def widened(self, count: int) -> "ImageData":
        """The same examples with more classes, named by their numbers.

        Args:
            count: number of classes, at least K, such as the number of outputs of a model.

        Raises:
            ValueError: if there are more classes, or they have names other than "0", "1", ..., "K-1".
        """
        if count < self.num_classes:
            raise ValueError(f"{self.source}: has {self.num_classes} classes, more than {count}")
        if not are_numbers(self.classes):
            raise ValueError(
                f"{self.source}: its classes have names ({', '.join(self.classes[:3])}, ...), so those of all "
                f"{count} classes are needed: classes= in Python, --data.classes FILE on the command line"
            )
        return replace(self, classes=tuple(str(number) for number in range(count)))

    def renumbered(self, names: ClassNames) -> "ImageData":
        """The same examples with the class numbers of other names, such as those of a model's outputs.

        Args:
            names: one entry for each class: a name, or several names of the same class. Each class of this data set
                is found among them; classes that are only numbers take the names in order.

        Raises:
            ValueError: if a class is not among the names, or its place is not clear; the nearest name is given.
        """
        labels = renumbered_labels(self.labels, self.classes, names, self.source)
        return replace(self, labels=labels, classes=shown_names(names))

    def to(self, device: torch.device | str) -> "ImageData":
        """The same examples on another device; pixels on the disk stay there."""
        images = self.images if self.on_disk else self.images.to(device)
        return replace(self, images=images, labels=self.labels.to(device), ids=self.ids.to(device))

    def pixels(self, index: Int64[Tensor, " m"] | Bool[Tensor, " n"]) -> UInt8[Tensor, "m c h w"]:
        """8-bit pixels at some positions or under a mask, on the device of the labels."""
        found = self.images[index.to(self.images.device)]
        if found.device.type == "cpu" and self.device.type == "cuda":
            return found.pin_memory().to(self.device, non_blocking=True)  # the host does not wait for the copy
        return found.to(self.device)

    def floats(self, index: Tensor | None = None) -> Float32[Tensor, "m c h w"]:
        """Pixels as float32 in [0, 1], of all examples or of those at `index` (positions or mask)."""
        return to_floats(self.images.to(self.device) if index is None else self.pixels(index))

    def first(self, count: int) -> Float32[Tensor, "m c h w"]:
        """The first images, at most `count`, as float32 in [0, 1], for trials of a model."""
        return to_floats(self.images[:count].to(self.device))

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of images, labels and ids: the same on every device and machine."""
        digest = hashlib.sha256()
        for value in (self.images, self.labels, self.ids):
            digest.update(f"{value.dtype}\x1f{tuple(value.shape)}\x1e".encode())
            digest.update(value.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _run(index: Int64[Tensor, " m"] | Bool[Tensor, " n"]) -> slice | None:
    """Positions that follow each other as a slice; None for others."""
    places = index.nonzero()[:, 0] if index.dtype == torch.bool else index
    if len(places) == 0 or int(places[0]) < 0 or not bool((places.diff() == 1).all()):
        return None
    return slice(int(places[0]), int(places[-1]) + 1)


def distinct(ids: Int64[Tensor, " n"]) -> bool:
    """True if no id occurs twice."""
    return bool((ids.sort().values.diff() != 0).all())


def to_floats(images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
    """Convert 8-bit pixels to float32 in [0, 1], in the contiguous layout."""
    # a conversion alone keeps the strides of images stored as (N, H, W, 1), by which layers choose a layout
    return torch.empty(images.shape, dtype=torch.float32, device=images.device).copy_(images).div_(255)


def to_pixels(images: Float[Tensor, "n ..."], source: str, round_to_8_bits: bool = False) -> UInt8[Tensor, "n ..."]:
    """Convert floats in [0, 1] on the 8-bit grid to 8-bit pixels, for any shape.

    Args:
        images: floats of any precision; those of float16 may be as far off the grid as its rounding, and bfloat16
            is too coarse for it.
        source: the file or data set, for error messages.
        round_to_8_bits: True rounds each value to the nearest multiple of 1/255, however far it is.

    Raises:
        ValueError: if a number is not a float, is NaN, outside [0, 1], or not a multiple of 1/255.
    """
    if not images.is_floating_point():
        raise ValueError(f"{source}: images are {images.dtype}, not floats: give uint8 pixels to ImageData itself")
    if images.numel() == 0:
        raise ValueError(f"{source}: holds no images, its shape is {tuple(images.shape)}")
    _check_range(images, source)
    pixels = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    distance = 0.0
    for start in range(0, len(images), _CHUNK):  # a double of all images would take eight times their memory
        levels = images[start : start + _CHUNK].detach().to(torch.float64, copy=True).mul_(255)
        rounded = levels.round()
        distance = max(distance, float(levels.sub_(rounded).abs_().max()))
        pixels[start : start + _CHUNK] = rounded.clamp_(0, 255)
    if distance > _GREY_TOLERANCE.get(images.dtype, _USUAL_TOLERANCE) and not round_to_8_bits:
        raise ValueError(
            f"{source}: pixels are up to {distance:.3g} grey levels off the multiples of 1/255: images are kept in "
            "8 bits, so round them, which round_to_8_bits=True does in Python, or give them as uint8"
        )
    return pixels


def _check_range(images: Tensor, source: str) -> None:
    lowest, highest = (float(value) for value in images.detach().aminmax())
    slack = _USUAL_TOLERANCE / 255
    if lowest >= -slack and highest <= 1 + slack:
        return
    if math.isnan(lowest):  # the smallest of values with a NaN is NaN
        wrong = torch.stack([image.isnan().any() for image in images]).nonzero().flatten()
        raise ValueError(
            f"{source}: {len(wrong)} of {len(images)} images hold NaN, the first is image {int(wrong[0])}: "
            "pixels are numbers in [0, 1]"
        )
    hint = ": did you mean to divide by 255?"
    if lowest > -_OVERSHOOT and highest < 1 + _OVERSHOOT:
        hint = ", as resizing makes them: clip them with clamp(0, 1)"
    elif lowest < 0 or highest <= 10:
        hint = (
            ", as if they were normalised: leave Normalize out of the transforms, and put mean and std into the "
            "model with robustly.wrap(model, mean=..., std=...)"
        )
    elif highest > 255:
        hint = ""
    raise ValueError(f"{source}: pixels lie in [{lowest:g}, {highest:g}], not in [0, 1]{hint}")


def check_labels(labels: Int64[Tensor, " n"], classes: Sequence[str], source: str) -> None:
    """Reject labels outside 0..K-1.

    Raises:
        ValueError: if there are no labels, or one is outside.
    """
    if len(labels) == 0:
        raise ValueError(f"{source}: is empty, there is no example in it")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= len(classes):
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"{source}: holds the label {wrong}, but with {len(classes)} classes labels are 0..{len(classes) - 1}"
        )


def number_names(labels: Sequence[Int64[Tensor, " _"]], source: str, most: int = 0) -> tuple[str, ...]:
    """Names "0", "1", ... of classes without names, up to the largest label of all parts.

    Args:
        labels: labels of the parts.
        source: the file or data set, for error messages.
        most: number of classes that are allowed even if there are fewer rows.

    Raises:
        ValueError: if there are no rows, a label is negative, or there would be more classes than rows and `most`.
    """
    rows = sum(len(part) for part in labels)
    if rows == 0:
        raise ValueError(f"{source}: is empty, there is no example in it")
    lowest = min(int(part.min()) for part in labels if len(part))
    largest = max(int(part.max()) for part in labels if len(part))
    if lowest < 0:
        raise ValueError(f"{source}: holds the label {lowest}: labels are integers 0..K-1")
    if largest >= max(rows, most):
        raise ValueError(
            f"{source}: holds the label {largest} but only {rows} examples: labels are integers 0..K-1, with at "
            "most as many classes as examples unless the class names are given"
        )
    return tuple(str(number) for number in range(largest + 1))


def class_numbers(labels: Sequence[Int64[Tensor, " _"]], source: str, most: int = 0) -> tuple[str, ...]:
    """Names of the classes of data without class names; warns where labels are 1..K, which are meant as 0..K-1.

    Labels of -1 are missing. The arguments and other errors are those of `number_names`.

    Raises:
        ValueError: if all labels are missing.
    """
    given = [part[part != -1] for part in labels]
    if any(len(part) for part in labels) and not any(len(part) for part in given):
        raise ValueError(f"{source}: all labels are -1 or null, which means that they are missing")
    names = number_names(given, source, most)
    present = torch.cat([part.bincount(minlength=len(names))[None] for part in given if len(part)]).sum(0) > 0
    if len(names) > 2 and not bool(present[0]) and bool(present[1:].all()):
        warnings.warn(
            f"{source}: the smallest label is 1, so class 0 has no example among {len(names)} classes: "
            "subtract 1 from labels that begin at 1",
            stacklevel=2,
        )
    return names
