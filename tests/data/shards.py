"""Sources of the same pictures: Parquet shards, tar files of WebDataset, and a folder of images."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from picture_tables import encoded, table


def parquet_shards(folder: Path, images: NDArray[np.uint8], shards: int = 3, group: int = 5) -> Path:
    folder.mkdir(parents=True)
    made = table(images)
    size = -(-len(images) // shards)
    for number in range(shards):
        name = f"train-{number:05}-of-{shards:05}.parquet"
        pq.write_table(made.slice(number * size, size), folder / name, row_group_size=group)
    return folder


def tar_of(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def tar_shards(folder: Path, images: NDArray[np.uint8], shards: int = 3, json: bool = False) -> Path:
    size = -(-len(images) // shards)
    for number in range(shards):
        members: dict[str, bytes] = {}
        for row in range(number * size, min(len(images), (number + 1) * size)):
            label = b'{"label": %d}' % (row % 3) if json else b"%d\n" % (row % 3)
            members |= {f"a/{row:04}.png": encoded(images[row]), f"a/{row:04}.{'json' if json else 'cls'}": label}
        tar_of(folder / f"train-{number:06}.tar", members)
    return folder
