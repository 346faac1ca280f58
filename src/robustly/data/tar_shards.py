"""Tar files of WebDataset: `KEY.jpg` and `KEY.cls` (or `KEY.json`) one after the other.

Headers are read once; the place of every image and its label are kept in the user's cache. Images are then read
where they lie, nothing is extracted, and no code or pickled object is read.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from robustly.data.decoding import IMAGE_SUFFIXES, Decoding, EncodedImage, decode_images
from robustly.data.images import class_numbers
from robustly.data.rows import MISSING, Rows
from robustly.data.stored import cache_folder, files_digest
from robustly.data.table_files import check_numbers, has_folders
from robustly.documents import parse_json
from robustly.files import whole_file

_PART_FILE = re.compile(r"(?:.*[-_.])?(train|test|validation|valid|val)(?:[-_.].*)?\.tar")
_PARTS = ("train", "test", "validation", "valid", "val")
_USUAL_LABELS = ("label", "labels", "cls", "class")
_MOST_LABEL_BYTES = 1 << 20
_BLOCK = 512
_LARGEST = 1 << 62


def tar_files(path: Path) -> dict[str, list[Path]]:
    """Tar files of each part.

    A file is one part, "all". A folder, or its subfolder `data`, may hold `train-000000.tar`,
    `imagenet-validation-01.tar`, ..., or folders `train`, `test`, ... of tar files. Other names are one
    part, "all". Tar files beside folders are not read, because those may be their content.

    Raises:
        ValueError: a numbered file (`train-000000-of-000002.tar`) is missing.
    """
    if path.is_file():
        return {"all": [path]} if path.suffix == ".tar" else {}
    for folder in (path, path / "data"):
        files = sorted(folder.glob("*.tar"))
        if files and has_folders(folder):
            files = []  # archives beside what was unpacked from them
        matches = [_PART_FILE.fullmatch(file.name) for file in files]
        parts: dict[str, list[Path]] = {}
        for file, match in zip(files, matches, strict=True):
            parts.setdefault(match[1] if match is not None and all(matches) else "all", []).append(file)
        if parts:
            check_numbers(files)
            return parts
        deeper = {part: sorted((folder / part).glob("*.tar")) for part in _PARTS}
        if any(deeper.values()):
            check_numbers([file for group in deeper.values() for file in group])
            return {part: group for part, group in deeper.items() if group}
    return {}


def tar_rows(
    files: dict[str, list[Path]], label_key: str | None, decoding: Decoding, named: int = 0
) -> dict[str, Rows]:
    """Parts of tar files of WebDataset.

    Args:
        files: files of each part.
        label_key: key of the label in `.json`; None is label, labels, cls or class.
        decoding: settings of decoding.
        named: number of classes that are named elsewhere.

    Raises:
        ValueError: naming the file, if one is damaged or compressed, or an example has no image, several images, or
            a label that is not a whole number.
    """
    places = {part: _places(group, label_key) for part, group in files.items()}
    labels = {part: torch.from_numpy(found.labels) for part, found in places.items()}
    sources = {part: str(group[0] if len(group) == 1 else group[0].parent) for part, group in files.items()}
    classes = class_numbers(list(labels.values()), next(iter(sources.values())), named)
    return {
        part: Rows(labels[part], classes, sources[part], _Shards(tuple(files[part]), found, decoding).read)
        for part, found in places.items()
    }


@dataclass(frozen=True, eq=False)
class _Places:
    """Of each example the number of its file, the first byte and the bytes of its image, and its label, `(N,)`."""

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Shards:
    files: tuple[Path, ...]
    places: _Places
    decoding: Decoding

    def read(self, index: Int64[Tensor, " m"]) -> UInt8[Tensor, "m c h w"]:
        """Images at some positions, in their order."""
        if bool((index.diff() >= 0).all()):
            return decode_images(self._encoded(index.tolist()), self.decoding)
        order = index.argsort(stable=True)
        return decode_images(self._encoded(index[order].tolist()), self.decoding)[order.argsort()]

    def _encoded(self, rows: list[int]) -> Iterator[EncodedImage]:
        opened: tuple[int, IO[bytes]] | None = None
        try:
            for row in rows:
                shard, start = int(self.places.shards[row]), int(self.places.starts[row])
                if opened is None or opened[0] != shard:
                    if opened is not None:
                        opened[1].close()
                    opened = shard, self.files[shard].open("rb")
                opened[1].seek(start)
                content = opened[1].read(int(self.places.sizes[row]))
                yield EncodedImage(content, f"{self.files[shard]} row {row} (byte {start})")
        except OSError as error:
            raise ValueError(f"{self.files[0].parent}: a tar file cannot be read ({error})") from error
        finally:
            if opened is not None:
                opened[1].close()


def _places(files: list[Path], label_key: str | None) -> _Places:
    """Places of all images, from the cache if the files are those of the time before."""
    file = cache_folder() / "indices" / f"{files_digest(files)[:32]}-{label_key or ''}.safetensors"
    names = tuple(_Places.__dataclass_fields__)
    try:
        kept = load_file(file)
        found = _Places(*(kept[name] for name in names))
        if all(getattr(found, name).dtype == np.int64 and getattr(found, name).ndim == 1 for name in names):
            return found
    except (OSError, KeyError, SafetensorError):
        pass  # there is none yet, or it is damaged
    found = _read_places(files, label_key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            temporary.write_bytes(save({name: getattr(found, name) for name in names}))
    except OSError:
        pass  # the cache only saves time
    return found


def _read_places(files: list[Path], label_key: str | None) -> _Places:
    columns: list[tuple[int, int, int, int]] = []
    for shard, file in enumerate(files):
        for key, image, label in _examples(file, label_key):
            if image is None:
                raise ValueError(f"{file}: the example {key!r} has no image ({', '.join(IMAGE_SUFFIXES)})")
            columns.append((shard, *image, MISSING if label is None else label))
    if not columns:
        raise ValueError(f"{files[0]}: is empty, there is no example in it")
    return _Places(*(np.ascontiguousarray(one) for one in np.array(columns, np.int64).T))


def _examples(file: Path, label_key: str | None) -> Iterator[tuple[str, tuple[int, int] | None, int | None]]:
    """Key, place of the image (first byte, bytes) and label of the examples of a file, in order."""
    seen: set[str] = set()
    current: str | None = None
    image: tuple[int, int] | None = None
    label: int | None = None
    for member, archive in _members(file):
        key, _, kind = _split(member.name)
        is_image, is_label = f".{kind}" in IMAGE_SUFFIXES, kind in ("cls", "json")
        if not is_image and not is_label:
            continue
        if key != current:
            if current is not None:
                yield current, image, label
            if key in seen:
                raise ValueError(f"{file}: the example {key!r} is there twice, or its files are apart")
            seen.add(key)
            current, image, label = key, None, None
        if is_image:
            if image is not None:
                raise ValueError(f"{file}: the example {key!r} has several images")
            image = member.offset_data, member.size
        else:
            found = _label(archive, member, kind, label_key, file)
            label = label if found is None else found
    if current is not None:
        yield current, image, label


def _split(name: str) -> tuple[str, str, str]:
    """Key and kind of a member: its path up to the first dot of its name, and what follows, in lower case."""
    path = PurePosixPath(name)
    stem, dot, kind = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, dot, kind.lower()


def _members(file: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Files in a tar file, in order.

    Raises:
        ValueError: the file is compressed, damaged or cut off.
    """
    size = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isreg():
                    if member.sparse is not None or end > size:
                        raise ValueError(f"{file}: is cut off or damaged at {member.name!r}")
                    yield member, archive
            with file.open("rb") as content:
                content.seek(end)
                if content.read(_BLOCK) != bytes(_BLOCK):
                    raise ValueError(f"{file}: is cut off or damaged: it has no end-of-archive mark")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{file}: is damaged, compressed or not a tar file ({error})") from error


def _label(
    archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str, label_key: str | None, file: Path
) -> int | None:
    """Label of a member; None for JSON without one."""
    where = f"{file} ({member.name})"
    if member.size > _MOST_LABEL_BYTES:
        raise ValueError(f"{where}: is larger than {_MOST_LABEL_BYTES:,} bytes, the limit for a label")
    stream = archive.extractfile(member)
    content = b"" if stream is None else stream.read()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{where}: is not text") from None
    value: object = text.strip()
    if kind == "json":
        found = parse_json(text, where)
        keys = _USUAL_LABELS if label_key is None else (label_key,)
        value = found if not isinstance(found, dict) else next((found[key] for key in keys if key in found), None)
        if value is None:
            return None
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < _LARGEST:
        raise ValueError(f"{where}: holds the label {str(value)[:40]!r}: labels are integers 0..K-1")
    return value
