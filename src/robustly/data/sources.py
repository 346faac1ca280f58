"""Data sets by name or path: their rows and splits."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustly.data.arrays import npz_rows
from robustly.data.class_names import read_class_names
from robustly.data.config import HUB, STREAM, DataConfig
from robustly.data.corrupted_files import corrupted_rows
from robustly.data.decoding import Decoding, refit
from robustly.data.digests import row_digests
from robustly.data.digits import holds_idx, idx_rows, mnist5k_rows
from robustly.data.domains import DomainRows, all_images, domain_splits, domain_test, matched
from robustly.data.folders import folder_rows
from robustly.data.images import ImageData
from robustly.data.mixing import Extra, check_extra
from robustly.data.rows import Rows
from robustly.data.splits import Chosen, SplitRule, Splits, choose_splits, choose_test
from robustly.data.stored import fingerprint
from robustly.data.table_files import Columns, is_saved, parquet_files
from robustly.data.tar_shards import tar_files, tar_rows
from robustly.evidence.domain_names import Domain, Part
from robustly.settings import nearest

_ALLOWED = (
    "mnist5k, hf:NAME or hf:NAME:CONFIG, hf-stream:NAME, or the path of a .parquet file, a .tar file of "
    "WebDataset, an .npz file, or a folder of Parquet files, of tar files, of IDX files, of images by class, or of "
    "save_to_disk"
)
_CORRUPTED = re.compile(r".+\.npy:[^/\\]*")


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
    chosen = choose_splits(source_parts(config), _rule(config))
    return Splits(*(one.read(config.in_memory) for one in chosen))


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
    found = Chosen(rows, torch.arange(len(rows)), 0, config.extra_source).read(config.in_memory)
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
    return choose_test(source_parts(config), _rule(config)).read(config.in_memory)


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
    if config.source.startswith(HUB):
        return _hub_parts(config, named)
    arrays = _array_parts(config.source, named)
    if arrays:
        return _refitted(arrays, decoding)
    path = Path(config.source).expanduser()
    if not path.exists():
        hint = nearest(config.source, ["mnist5k"])
        raise FileNotFoundError(f"the source {config.source!r} is not a file or folder{hint}: use {_ALLOWED}")
    parts = _table_parts(path, config, named)
    shards = {} if parts else tar_files(path)
    if shards:
        parts = tar_rows(shards, config.label_column, decoding, named)
    if not parts and path.is_dir() and any(entry.is_dir() for entry in path.iterdir()):
        parts = folder_rows(path, decoding)
    if parts:
        return _with_fingerprints(parts, path, config)
    raise ValueError(f"the source {config.source!r} holds no data of a supported format: use {_ALLOWED}")


def _with_fingerprints(parts: dict[str, Rows], path: Path, config: DataConfig) -> dict[str, Rows]:
    """The same parts; if they may be kept on the disk, with the hash of all files of the source."""
    if config.in_memory is True or config.domains is not None:
        return parts
    settings = {"size": config.image_size, "channels": config.channels, "column": config.image_column}
    return {
        part: replace(rows, fingerprint=partial(fingerprint, path, part=part, **settings))
        for part, rows in parts.items()
    }


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
    from robustly.data.streamed import streamed_rows  # noqa: PLC0415

    prefix, _, path = config.source.partition(":")
    name, _, setting = path.partition(":")
    if not name:
        raise ValueError(
            f"the source {config.source!r} names no data set: write {prefix}:NAME or {prefix}:NAME:CONFIG"
        )
    columns, decoding = (
        Columns(config.image_column, config.label_column),
        Decoding(config.image_size, config.channels),
    )
    if not config.source.startswith(STREAM):
        return hub_rows(name, setting or None, columns, decoding, named)
    parts, folder = streamed_rows(name, setting or None, _named_parts(config), columns, decoding, named)
    return _with_fingerprints(parts, folder, config)


def _named_parts(config: DataConfig) -> list[str]:
    """Parts that the settings name, if no others are needed; otherwise none."""
    if config.evaluation_only and config.test_split is not None:
        return [config.test_split]
    both = [config.train_split, config.test_split]
    return [part for part in both if part is not None] if None not in both else []


def _table_parts(path: Path, config: DataConfig, named: int) -> dict[str, Rows]:
    """Parts of tables; empty if there are none at the path."""
    saved = path.is_dir() and is_saved(path)
    files = {} if saved else parquet_files(path) if path.is_dir() or path.suffix == ".parquet" else {}
    if not saved and not files:
        return {}
    from robustly.data.hugging_face import saved_rows  # noqa: PLC0415 (it imports pyarrow, which is slow)
    from robustly.data.parquet_shards import MOST_READ_AT_ONCE, sharded_rows, total_size  # noqa: PLC0415
    from robustly.data.tables import parquet_rows  # noqa: PLC0415

    columns = Columns(config.image_column, config.label_column)
    decoding = Decoding(config.image_size, config.channels)
    if saved:
        return saved_rows(path, columns, decoding, named)
    if config.in_memory is False or total_size(files) > MOST_READ_AT_ONCE:
        return sharded_rows(files, columns, decoding, named)
    return parquet_rows(files, columns, decoding, named)


def _refitted(parts: dict[str, Rows], decoding: Decoding) -> dict[str, Rows]:
    return {part: _refitted_rows(rows, decoding) for part, rows in parts.items()}


def _refitted_rows(rows: Rows, decoding: Decoding) -> Rows:
    def read(index: Int64[Tensor, " m"]) -> UInt8[Tensor, "m c h w"]:
        return refit(rows.read(index), decoding, rows.source)

    return Rows(rows.labels, rows.classes, rows.source, read)
