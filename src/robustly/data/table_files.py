"""Tables in a folder: Parquet files by part, folders of `save_to_disk`, and names of columns."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PART_FILE = re.compile(r"(train|test|validation|valid|val)(-\d+-of-\d+)?\.parquet")
_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?P<between>-of-)(?P<count>\d+)(?P<after>\D*)")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; None finds them by their types."""

    image: str | None = None
    label: str | None = None


def parquet_files(path: Path) -> dict[str, list[Path]]:
    """Parquet files of each part.

    A file is one part, "all". A folder, or its subfolder `data`, may hold `train.parquet`, `test.parquet`,
    `train-00000-of-00002.parquet`, ...; Parquet files of other names are one part, "all", unless there are
    folders beside them. Without such files the result is empty.

    Raises:
        ValueError: a numbered file is missing.
    """
    if path.is_file():
        return {"all": [path]}
    for folder in (path, path / "data"):
        parts: dict[str, list[Path]] = {}
        files = sorted(folder.glob("*.parquet"))
        for file in files:
            match = _PART_FILE.fullmatch(file.name)
            if match:
                parts.setdefault(match[1], []).append(file)
        if not parts and files and not has_folders(folder):
            parts = {"all": files}
        if parts:
            check_numbers([file for group in parts.values() for file in group])
            return parts
    return {}


def check_numbers(files: Sequence[Path]) -> None:
    """Refuse numbered files, such as `train-00000-of-00002.parquet`, of which one is missing.

    Raises:
        ValueError: naming it.
    """
    found: dict[tuple[Path, str, int, str], dict[int, re.Match[str]]] = {}
    for file in files:
        match = _NUMBERED.fullmatch(file.name)
        if match:
            key = file.parent, match["before"], int(match["count"]), match["after"]
            found.setdefault(key, {})[int(match["number"])] = match
    for (folder, before, count, after), numbers in found.items():
        first = 1 if count in numbers else 0
        missing = next((number for number in range(first, first + count) if number not in numbers), None)
        if missing is not None:
            one = next(iter(numbers.values()))
            name = f"{before}{missing:0{len(one['number'])}}{one['between']}{one['count']}{after}"
            raise ValueError(
                f"{folder}: holds {len(numbers)} of {count} numbered files, and not {name}: copy it again, or "
                "number those that are there anew"
            )


def has_folders(path: Path) -> bool:
    """True for a folder that has folders in it, which may be those of classes."""
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir())


def is_saved(folder: Path) -> bool:
    """True for a folder that `datasets` wrote with `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
