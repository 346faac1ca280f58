"""Folders of image files, one folder for each class."""

import warnings
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

    Classes are the names of the folders of all parts in alphabetical order, or in numerical order if all of them
    are numbers. A part may lack a class, or have an empty folder of it. Rows are sorted by class, then by file
    name. Folders and files whose name starts with a dot, and `__MACOSX`, are skipped.

    Raises:
        ValueError: if there are no such folders, a class has no image in any part, or `train` lacks the folder of a
            class.
    """
    parts = [folder for folder in _subfolders(root) if folder.name in _PARTS]
    _check_names_of_splits(root)
    if parts and len(parts) != len(_subfolders(root)):
        other = next(folder.name for folder in _subfolders(root) if folder.name not in _PARTS)
        raise ValueError(f"{root}: holds both {parts[0].name}, a split, and {other}: use either splits or classes")
    roots = {folder.name: folder for folder in parts} or {"all": root}
    files = {
        part: {folder.name: _image_files(folder) for folder in _subfolders(folder)}
        for part, folder in roots.items()
    }
    classes = _ordered({name for found in files.values() for name in found})
    if not classes:
        raise ValueError(f"{root}: holds no folder of images: use one folder for each class")
    for name in classes:
        if not any(found.get(name) for found in files.values()):
            place = next(roots[part] / name for part, found in files.items() if name in found)
            raise ValueError(
                f"{place}: holds no image: use files {', '.join(_SUFFIXES)}, one folder for each class"
            )
    lacking = [name for name in classes if "train" in files and name not in files["train"]]
    if lacking:
        raise ValueError(
            f"{roots['train']}: its class folders differ from those of the other splits, it lacks "
            f"{', '.join(lacking)}: name the folders alike, or make an empty one"
        )
    return {part: _part_rows(roots[part], found, classes, decoding) for part, found in files.items()}


def _check_names_of_splits(root: Path) -> None:
    """Refuse folders such as `Training` that hold folders, which would be taken for classes without images."""
    for folder in _subfolders(root):
        meant = _LIKE_PARTS.get(folder.name.lower())
        if meant is not None and folder.name not in _PARTS and _subfolders(folder) and not _own_files(folder):
            raise ValueError(
                f"{root}: rename the folder {folder.name} to {meant}: splits are named {', '.join(_PARTS)}"
            )


def _subfolders(root: Path) -> list[Path]:
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", _MAC))]
    return sorted(folders)


def _ordered(names: set[str]) -> tuple[str, ...]:
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _part_rows(root: Path, files: dict[str, list[Path]], classes: tuple[str, ...], decoding: Decoding) -> Rows:
    paths = [path for name in classes for path in files.get(name, [])]
    labels = torch.tensor([label for label, name in enumerate(classes) for _ in files.get(name, [])])

    def read(index: torch.Tensor) -> torch.Tensor:
        chosen = (paths[row] for row in index.tolist())
        return decode_images((EncodedImage(path, str(path)) for path in chosen), decoding)

    return Rows(labels.to(torch.int64), classes, str(root), read)


def _image_files(folder: Path) -> list[Path]:
    deeper = [
        inner for inner in _subfolders(folder) if any(one.suffix.lower() in _SUFFIXES for one in inner.iterdir())
    ]
    found = _own_files(folder)
    if found and deeper:
        warnings.warn(
            f"{deeper[0]}: its images are not read, because they are in a folder inside of a class: move them into "
            f"{folder}",
            stacklevel=2,
        )
    return found


def _own_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )
