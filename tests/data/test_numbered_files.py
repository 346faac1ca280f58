"""A numbered file of a data set that is missing is named; a set that is whole is read."""

from pathlib import Path

import pytest

from robustly.data.table_files import parquet_files
from robustly.data.tar_shards import tar_files


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
        ["train-1-of-2.parquet", "train-2-of-2.parquet"],
        ["train-00000-of-00002.tar", "train-00001-of-00002.tar"],
        ["a-1.tar", "a-3.tar"],
        ["data/train.parquet", "data/test.parquet"],
    ],
)
def test_whole_sets_and_files_without_a_count_are_read(names: list[str], tmp_path: Path) -> None:
    found = (parquet_files if names[0].endswith("parquet") else tar_files)(made(tmp_path, *names))
    assert sorted(str(file.relative_to(tmp_path)) for group in found.values() for file in group) == sorted(names)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (
            ["train-00000-of-00002.parquet", "test.parquet"],
            "1 of 2 numbered files, and not train-00001-of",
        ),
        (["train-00001-of-00002.parquet"], "not train-00000-of-00002.parquet|not train-00002-of-00002.parquet"),
        (["data/train-1-of-3.parquet", "data/train-3-of-3.parquet"], "not train-2-of-3.parquet"),
        (["s-000-of-003.tar", "s-002-of-003.tar"], "2 of 3 numbered files, and not s-001-of-003.tar"),
        (["train/s-0-of-2.tar", "test/s-0-of-1.tar"], "not s-1-of-2.tar"),
    ],
)
def test_a_missing_one_is_named(names: list[str], missing: str, tmp_path: Path) -> None:
    find = parquet_files if names[0].endswith("parquet") else tar_files
    with pytest.raises(ValueError, match=missing):
        find(made(tmp_path, *names))
