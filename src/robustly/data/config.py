"""Settings of a data set, or of several domains, and of the splits."""

from dataclasses import dataclass, replace
from typing import Literal

from robustly.data.augmentation import Augmentation
from robustly.data.decoding import Decoding
from robustly.data.domains import check_left_out
from robustly.evidence.domain_names import Domain, Part, domain_title, parse_domains

STREAM = "hf-stream:"
"""Begins the name of a data set of Hugging Face that is streamed."""
HUB = ("hf:", STREAM)


def hub_path(source: str) -> str | None:
    """NAME or NAME:CONFIG of a data set of Hugging Face; None for another source."""
    return source.partition(":")[2] if source.startswith(HUB) else None


@dataclass(frozen=True)
class DataConfig:
    """A data set and its splits.

    Args:
        source: `mnist5k`; `hf:uoft-cs/cifar10` or `hf:NAME:CONFIG`; `hf-stream:NAME`, which is streamed;
            or the path of a `.parquet` file, a `.tar` file of WebDataset, an `.npz` file, or a folder with Parquet
            files, tar files, MNIST's IDX files, or images by class, or that `datasets` wrote with `save_to_disk`;
            or `FOLDER/fog.npy:3`, an array of CIFAR-10-C at a severity.
        domains: several sources of the same classes, as `NAME=SOURCE,NAME=SOURCE`, a list of `NAME=SOURCE`, or a
            mapping from names to sources; `source` is not used then. All other settings hold for each of them.
            Classes are matched by name.
        leave_out: name of the domain that is not trained or selected on (the target); the others are the sources.
        classes: file of the class names in the order of a model's outputs (see `read_class_names`), for data with
            some of a model's classes or with another order; None takes the classes of the source.
        expected_classes: number of classes that the other settings are for, at least 2; a source with another
            number is refused. None allows any number.
        image_column: the column of images in tables; None finds it by its type.
        label_column: the column of labels in tables; None finds it by its type.
        train_split: the source's split for training; None is "train", or the only one there is.
        test_split: the source's split for tests; None is "test", or, where there is none, a part of the training
            rows.
        validation: number of examples held out of the training split to select models on, in proportion of
            the classes; at least 1. None is a tenth of the rows, or one of each class if that is more, and at most
            500.
        test: number of test examples where the source has no test split; None is a fifth of its rows.
        train_limit: number of training examples to use; None is all.
        test_limit: number of test examples to use; None is all.
        subset: examples that a limit keeps of an official split: "first" in the source's order, or
            "balanced", drawn in proportion of the classes. None is "balanced" for a split that is sorted by class,
            such as a folder of images, and "first" for others.
        split_seed: the seed of every choice above.
        evaluation_only: True uses all rows of a source that is not trained on: its test split, or else its
            validation split, or else the only part that it has.
        image_size: side in pixels that images are resized to (shorter side, bicubic, then the centre).
        channels: 1 converts images to grey, 3 to colour; None keeps those of the source.
        pad_crop: pixels of zero padding for random crops in training; 0 for none, 4 is usual on CIFAR.
        flip: True mirrors half of the training images.
        in_memory: True keeps decoded images in memory; False keeps them in files of the user's cache, from which
            batches are read, so that a data set may be larger than memory; "auto" does so for a split that would
            fill more than half of the free memory. The results are the same. False needs Parquet files, tar files
            of WebDataset, a folder of images, or one that `save_to_disk` wrote.
        extra_source: more training images (generated, or labelled by a network), written like `source`; all of its
            training rows are used, and it has the same columns, classes and number of channels.
        extra_fraction: their share of each batch, in (0, 1); 0.7 is usual for a million generated images.

    Raises:
        ValueError: for a number outside its range.
    """

    source: str = "mnist5k"
    classes: str | None = None
    expected_classes: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    validation: int | None = None
    test: int | None = None
    train_limit: int | None = None
    test_limit: int | None = None
    subset: Literal["first", "balanced"] | None = None
    split_seed: int = 0
    evaluation_only: bool = False
    image_size: int | None = None
    channels: int | None = None
    pad_crop: int = 0
    flip: bool = False
    extra_source: str | None = None
    extra_fraction: float = 0.7
    in_memory: bool | Literal["auto"] = "auto"
    domains: str | tuple[str, ...] | dict[str | int, str] | None = None
    leave_out: str | int | None = None

    def __post_init__(self) -> None:
        self._use_domains()
        if self.validation is not None and self.validation < 1:
            raise ValueError(
                f"validation is {self.validation}: hold out at least 1 example, as models are never selected "
                "on test examples"
            )
        counts = {"test": self.test, "train_limit": self.train_limit, "test_limit": self.test_limit}
        for key, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{key} is {count}: use at least 1 example, or leave it out")
        if self.in_memory not in (True, False, "auto"):
            raise ValueError(f"in_memory is {self.in_memory!r}: use auto, true or false")
        if self.in_memory is False and self.domains is not None:
            raise ValueError("in_memory is false, but several domains are always kept in memory: leave it out")
        if self.expected_classes is not None and self.expected_classes < 2:
            raise ValueError(f"expected_classes is {self.expected_classes}: use at least 2, or null for any number")
        if self.subset not in (None, "first", "balanced"):
            raise ValueError(f"subset is {self.subset!r}: use first or balanced")
        if not 0 < self.extra_fraction < 1:
            raise ValueError(f"extra_fraction must lie between 0 and 1, got {self.extra_fraction}")
        Decoding(self.image_size, self.channels)
        Augmentation(self.pad_crop, self.flip)

    def _use_domains(self) -> None:
        """Check the domains, and replace them by a tuple of texts and the source by their names."""
        if self.domains is None:
            if self.leave_out is not None:
                raise ValueError(
                    f"leave_out is {str(self.leave_out)[:60]!r}, but there are no domains: set domains too"
                )
            return
        domains = parse_domains(self.domains)
        left_out = None if self.leave_out is None else str(self.leave_out)
        check_left_out(domains, left_out)
        object.__setattr__(self, "domains", tuple(map(str, domains)))
        object.__setattr__(self, "leave_out", left_out)
        object.__setattr__(self, "source", domain_title(domains, str(left_out)))

    @property
    def named_domains(self) -> tuple[Domain, ...]:
        """The domains; empty without them."""
        return () if self.domains is None else parse_domains(self.domains)

    def of_domain(self, domain: Domain) -> "DataConfig":
        """The settings of one domain alone."""
        return replace(self, source=domain.source, domains=None, leave_out=None)

    def tested_title(self, part: Part) -> str:
        """Name of the tested data in reports: the source, or the domains of a part."""
        if self.domains is None:
            return self.source
        return domain_title(self.named_domains, str(self.leave_out), part)

    @property
    def augmentation(self) -> Augmentation:
        """Augmentation of training images."""
        return Augmentation(self.pad_crop, self.flip)
