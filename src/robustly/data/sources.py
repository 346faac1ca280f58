"""Data sets by name or path: their settings in a configuration file, and the splits."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustly.data.arrays import npz_rows
from robustly.data.augmentation import Augmentation
from robustly.data.class_names import read_class_names
from robustly.data.corrupted_files import corrupted_rows
from robustly.data.decoding import Decoding, refit
from robustly.data.digests import row_digests
from robustly.data.digits import holds_idx, idx_rows, mnist5k_rows
from robustly.data.domains import DomainRows, all_images, check_left_out, domain_splits, domain_test, matched
from robustly.data.folders import folder_rows
from robustly.data.images import ImageData
from robustly.data.mixing import Extra, check_extra
from robustly.data.rows import Rows
from robustly.data.splits import SplitRule, Splits, choose_splits, choose_test
from robustly.data.table_files import Columns, is_saved, parquet_files
from robustly.evidence.domain_names import Domain, Part, domain_title, parse_domains
from robustly.settings import nearest

_ALLOWED = (
    "mnist5k, hf:NAME or hf:NAME:CONFIG, or the path of a .parquet file, an .npz file, or a folder of "
    "Parquet files, of IDX files, of images by class, or of save_to_disk"
)
_CORRUPTED = re.compile(r".+\.npy:[^/\\]*")


@dataclass(frozen=True)
class DataConfig:
    """A data set and its splits.

    Args:
        source: `mnist5k`; `hf:uoft-cs/cifar10` or `hf:NAME:CONFIG`; or the path of a `.parquet` file, an
            `.npz` file, or a folder with Parquet files, MNIST's IDX files, or images by class, or that `datasets`
            wrote with `save_to_disk`; or `FOLDER/fog.npy:3`, an array of CIFAR-10-C at a severity.
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


def load_splits(config: DataConfig) -> Splits:
    """Training, validation and test examples, on the CPU; the same for the same settings and files.

    A source's own test split is kept. Ids are row numbers in the source. Those of test rows continue after those of
    training rows, whatever the limits.

    Raises:
        ValueError: if the source is unknown or damaged, or lacks what the settings require.
        FileNotFoundError: if a path or the file of `mnist5k` does not exist.
    """
    if config.domains is not None:
        return domain_splits(read_domains(config), str(config.leave_out))
    train, validation, test = choose_splits(source_parts(config), _rule(config))
    return Splits(train.read(), validation.read(), test.read())


def load_extra(config: DataConfig, splits: Splits) -> Extra | None:
    """Extra images that are mixed into the training; None without an extra source.

    Raises:
        ValueError: as `load_splits`; images of another shape or number of classes, or held-out ones among them.
        FileNotFoundError: as `load_splits`.
    """
    if config.extra_source is None:
        return None
    parts = source_parts(replace(config.of_domain(Domain("extra", config.extra_source)), expected_classes=None))
    rows = parts["train"] if "train" in parts else next(iter(parts.values()))
    if config.domains is not None:
        rows = rows.renumbered(splits.train.classes)  # of which the first domain gives the order
    rows.check()
    everything = torch.arange(len(rows))
    found = ImageData(rows.read(everything), rows.labels, everything, rows.classes, config.extra_source)
    if config.domains is not None:
        leaked = int(row_digests(found).found_in(row_digests(load_left_out(config))).sum())
        if leaked:
            raise ValueError(
                f"{leaked} of the extra images of {config.extra_source} are of the left-out domain "
                f"{config.leave_out}: take them out"
            )
    held_out = (splits.validation, splits.test, splits.source_test)
    check_extra(found, splits.train, tuple(part for part in held_out if part is not None))
    return Extra(found, config.extra_fraction)


def load_left_out(config: DataConfig) -> ImageData:
    """Every image of the left-out domain, whatever its split; labels that are missing are 0.

    Raises:
        ValueError: as `load_splits`.
        FileNotFoundError: as `load_splits`.
    """
    return all_images(next(one for one in read_domains(config) if one.domain.name == config.leave_out))


def load_test(config: DataConfig, part: Part = "target") -> ImageData:
    """Test examples of `load_splits`; nothing else is decoded.

    Args:
        config: settings of the data.
        part: with domains, the test examples of the left-out one ("target") or of the others ("source").

    Raises:
        ValueError: as `load_splits`.
        FileNotFoundError: as `load_splits`.
    """
    if config.domains is not None:
        return domain_test(read_domains(config), str(config.leave_out), part)
    return choose_test(source_parts(config), _rule(config)).read()


def read_domains(config: DataConfig) -> list[DomainRows]:
    """The rows of all domains, with the same class numbers; no image is decoded.

    Raises:
        ValueError: as `load_splits`; domains with different classes.
        FileNotFoundError: as `load_splits`.
    """
    found = []
    for place, domain in enumerate(config.named_domains, 1):
        one = config.of_domain(domain)
        rule = replace(_rule(one), source=f"{domain.source} (domain {domain.name})")
        found.append(DomainRows(domain, place, source_parts(one), rule))
    return matched(found, str(config.leave_out))


def check_sources(config: DataConfig) -> None:
    """Read the labels of a source, or of all domains, and check their classes; no image is decoded.

    Raises:
        ValueError: as `load_splits`.
        FileNotFoundError: as `load_splits`.
    """
    if config.domains is None:
        source_parts(config)
    else:
        read_domains(config)


def _rule(config: DataConfig) -> SplitRule:
    return SplitRule(
        source=config.source,
        train_split=config.train_split,
        test_split=config.test_split,
        validation=config.validation,
        test=config.test,
        train_limit=config.train_limit,
        test_limit=config.test_limit,
        subset=config.subset,
        split_seed=config.split_seed,
        evaluation_only=config.evaluation_only,
    )


def source_parts(config: DataConfig, named: int = 0) -> dict[str, Rows]:
    """Parts of a source, such as "train" and "test", or one part "all"; images are decoded when they are used.

    Args:
        config: settings of the data.
        named: number of classes that are named elsewhere.

    Raises:
        ValueError: as `load_splits`.
        FileNotFoundError: as `load_splits`.
    """
    if config.classes is None:
        parts = _read_parts(config, named)
    else:
        names = read_class_names(config.classes)
        parts = {part: rows.renumbered(names) for part, rows in _read_parts(config, len(names)).items()}
    for rows in parts.values():
        _check_number_of_classes(config, len(rows.classes))
    return parts


def _check_number_of_classes(config: DataConfig, found: int) -> None:
    """Refuse data of another number of classes than the settings expect.

    Raises:
        ValueError: another number.
    """
    if config.expected_classes not in (None, found):
        raise ValueError(
            f"the source {config.source!r} has {found} classes, but the recipe is for {config.expected_classes} "
            f"(data.expected_classes): if that is on purpose, add --data.expected_classes {found}"
        )


def _read_parts(config: DataConfig, named: int) -> dict[str, Rows]:
    """Parts with the classes of the source; `named` is the number of classes that are named elsewhere."""
    decoding = Decoding(config.image_size, config.channels)
    if config.source.startswith("hf:"):
        return _hub_parts(config, named)
    arrays = _array_parts(config.source, named)
    if arrays:
        return _refitted(arrays, decoding)
    path = Path(config.source).expanduser()
    if not path.exists():
        hint = nearest(config.source, ["mnist5k"])
        raise FileNotFoundError(f"the source {config.source!r} is not a file or folder{hint}: use {_ALLOWED}")
    tables = _table_parts(path, config, named)
    if tables:
        return tables
    if path.is_dir() and any(entry.is_dir() for entry in path.iterdir()):
        return folder_rows(path, decoding)
    raise ValueError(f"the source {config.source!r} holds no data of a supported format: use {_ALLOWED}")


def _array_parts(source: str, named: int) -> dict[str, Rows]:
    """Parts of a source that holds arrays of decoded images; empty if it is of another kind."""
    if source == "mnist5k":
        return mnist5k_rows()
    if _CORRUPTED.fullmatch(source):
        return corrupted_rows(source, named)
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".npz":
        return npz_rows(path, named)
    return idx_rows(path, named) if path.is_dir() and holds_idx(path) else {}


def _hub_parts(config: DataConfig, named: int) -> dict[str, Rows]:
    from robustly.data.hugging_face import hub_rows  # noqa: PLC0415 (it imports pyarrow, which is slow)

    name, _, setting = config.source.removeprefix("hf:").partition(":")
    if not name:
        raise ValueError(f"the source {config.source!r} names no data set: write hf:NAME or hf:NAME:CONFIG")
    columns = Columns(config.image_column, config.label_column)
    return hub_rows(name, setting or None, columns, Decoding(config.image_size, config.channels), named)


def _table_parts(path: Path, config: DataConfig, named: int) -> dict[str, Rows]:
    """Parts of tables; empty if there are none at the path."""
    saved = path.is_dir() and is_saved(path)
    files = {} if saved else parquet_files(path) if path.is_dir() or path.suffix == ".parquet" else {}
    if not saved and not files:
        return {}
    from robustly.data.hugging_face import saved_rows  # noqa: PLC0415 (it imports pyarrow, which is slow)
    from robustly.data.tables import parquet_rows  # noqa: PLC0415

    columns = Columns(config.image_column, config.label_column)
    decoding = Decoding(config.image_size, config.channels)
    return saved_rows(path, columns, decoding, named) if saved else parquet_rows(files, columns, decoding, named)


def _refitted(parts: dict[str, Rows], decoding: Decoding) -> dict[str, Rows]:
    return {part: _refitted_rows(rows, decoding) for part, rows in parts.items()}


def _refitted_rows(rows: Rows, decoding: Decoding) -> Rows:
    def read(index: Int64[Tensor, " m"]) -> UInt8[Tensor, "m c h w"]:
        return refit(rows.read(index), decoding, rows.source)

    return Rows(rows.labels, rows.classes, rows.source, read)
