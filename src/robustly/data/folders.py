"""Folders of image files, one folder for each class."""

from pathlib import Path

import torch

from robustly.data.decoding import IMAGE_SUFFIXES as _SUFFIXES
from robustly.data.decoding import Decoding, EncodedImage, decode_images
from robustly.data.rows import Rows

_PARTS = ("train", "test", "validation", "valid", "val")
_LIKE_PARTS = {"training": "train", "testing": "test", **{part: part for part in _PARTS}}
_MAC = "__MACOSX"  # of archives made on a Mac


def folder_rows(root: Path, decoding: Decoding) -> dict[str, Rows]:
    """Parts of `root/train/CLASS/*.png` and `root/test/CLASS/*.png`, or one part of `root/CLASS/*.png`.

    Classes are the folders' names in alphabetical order, or in numerical order if all of them are numbers. Rows are
    sorted by class, then by file name. Folders and files whose name starts with a dot, and
    `__MACOSX`, are skipped.

    Raises:
        ValueError: if there are no such folders, a class has no image, or two parts have different classes.
    """
    parts = [folder for folder in _subfolders(root) if folder.name in _PARTS]
    _check_names_of_splits(root)
    if parts and len(parts) != len(_subfolders(root)):
        other = next(folder.name for folder in _subfolders(root) if folder.name not in _PARTS)
        raise ValueError(f"{root}: holds both {parts[0].name}, a split, and {other}: use either splits or classes")
    rows = {folder.name: _part_rows(folder, decoding) for folder in parts} or {"all": _part_rows(root, decoding)}
    first = next(iter(rows.values()))
    for part in rows.values():
        if part.classes != first.classes:
            strange = sorted(set(part.classes) ^ set(first.classes))
            raise ValueError(
                f"{part.source}: its class folders differ from those of {first.source}: {', '.join(strange)}"
            )
    return rows


def _check_names_of_splits(root: Path) -> None:
    """Refuse folders such as `Training` that hold folders, which would be taken for classes without images."""
    for folder in _subfolders(root):
        meant = _LIKE_PARTS.get(folder.name.lower())
        if meant is not None and folder.name not in _PARTS and _subfolders(folder) and not _image_files(folder):
            raise ValueError(
                f"{root}: rename the folder {folder.name} to {meant}: splits are named {', '.join(_PARTS)}"
            )


def _subfolders(root: Path) -> list[Path]:
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", _MAC))]
    if folders and all(folder.name.isdecimal() for folder in folders):
        return sorted(folders, key=lambda folder: (int(folder.name), folder.name))
    return sorted(folders)


def _part_rows(root: Path, decoding: Decoding) -> Rows:
    folders = _subfolders(root)
    files = [_image_files(folder) for folder in folders]
    for folder, found in zip(folders, files, strict=True):
        if not found:
            raise ValueError(
                f"{folder}: holds no image: use files {', '.join(_SUFFIXES)}, one folder for each class"
            )
    if not folders:
        raise ValueError(f"{root}: holds no folder of images: use one folder for each class")
    paths = [path for found in files for path in found]
    labels = torch.tensor([label for label, found in enumerate(files) for _ in found])

    def read(index: torch.Tensor) -> torch.Tensor:
        chosen = (paths[row] for row in index.tolist())
        return decode_images((EncodedImage(path, str(path)) for path in chosen), decoding)

    return Rows(labels, tuple(folder.name for folder in folders), str(root), read)


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )
