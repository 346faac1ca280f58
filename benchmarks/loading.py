"""Measure images per second of loading with random crops and mirror images, from memory and from the disk.

    python benchmarks/loading.py [--count 20000] [--batch 128]

Random pixels of CIFAR's shape, one thread. Compared are the batches of `robustly` with images in memory, and with
images that stay on the disk (`data.in_memory: false`), decoded once from Parquet and tar shards, with the floor: an
index of random positions and a conversion to floats. Every row is CPU time, the best of five passes.
Writes `benchmarks/results/loading.md`.
"""

import argparse
import io
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from robustly.data import Augmentation, DataConfig, ImageData, batches, load_splits

RESULTS = Path(__file__).parent / "results" / "loading.md"
BAR = 60_000
PASSES = 5
SHARDS = 4


def write_shards(images: np.ndarray, folder: Path) -> dict[str, Path]:  # type: ignore[type-arg]
    """The same PNG files as Parquet shards and as tar files of WebDataset."""
    places = {"Parquet": folder / "parquet", "tar": folder / "tar"}
    for place in places.values():
        place.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(images)), SHARDS)):
        files = []
        for row in rows:
            stream = io.BytesIO()
            Image.fromarray(images[row]).save(stream, "PNG")
            files.append(stream.getvalue())
        table = pa.table({"image": files, "label": pa.array([int(row) % 10 for row in rows])})
        pq.write_table(table, places["Parquet"] / f"shard-{number}.parquet", row_group_size=1000)
        with tarfile.open(places["tar"] / f"shard-{number}.tar", "w") as archive:
            for row, content in zip(rows, files, strict=True):
                for kind, part in (("png", content), ("cls", b"%d" % (row % 10))):
                    member = tarfile.TarInfo(f"{row:06}.{kind}")
                    member.size = len(part)
                    archive.addfile(member, io.BytesIO(part))
    return places


def rate(work: Callable[[], None], count: int, passes: int = PASSES) -> float:
    """Images per second of CPU time, the best of some passes."""
    best = float("inf")
    for _ in range(passes):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return count / best


def epoch_of(data: ImageData, batch: int, augmentation: Augmentation) -> Callable[[], None]:
    """One epoch of batches."""

    def work() -> None:
        for _ in batches(data, batch, seed=0, epoch=0, augmentation=augmentation):
            pass

    return work


def floor_of(images: Tensor, batch: int) -> Callable[[], None]:
    """Random positions, converted to floats."""
    order = torch.randperm(len(images))

    def work() -> None:
        for places in torch.split(order, batch):
            images.index_select(0, places).float().div_(255)

    return work


def measure(count: int, batch: int, folder: Path) -> list[tuple[str, float]]:
    """Names and images per second."""
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    usual = Augmentation(4, True)
    held: dict[str, ImageData] = {}
    rows: list[tuple[str, float]] = []
    for name, place in write_shards(images, folder).items():

        def load(place: Path = place, kept: bool = False, name: str = name) -> None:
            config = DataConfig(str(place), validation=1, test=1, in_memory=kept)
            held["memory" if kept else name] = load_splits(config).train

        rows.append((f"{name} shards, decoded once at the first start", rate(load, count, 1)))
        if "memory" not in held:
            load(kept=True)
    number = len(held["memory"])
    rows.insert(
        0, ("floor: random positions, conversion to floats", rate(floor_of(held["memory"].images, batch), number))
    )
    rows.insert(1, ("in memory, no augmentation", rate(epoch_of(held["memory"], batch, Augmentation()), number)))
    rows.insert(2, ("in memory, crop and flip", rate(epoch_of(held["memory"], batch, usual), number)))
    for name in ("Parquet", "tar"):
        work = epoch_of(held[name], batch, usual)
        rows.insert(-2, (f"{name} shards on the disk, crop and flip", rate(work, number)))
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROBUSTLY_CACHE"] = f"{folder}/cache"
        rows = measure(options.count, options.batch, Path(folder))
    floor = rows[0][1]
    lines = [
        "# Loading images",
        "",
        "| images of 32x32x3 | images per second | time / floor |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {name} | {value:,.0f} | {floor / value:.2f} |" for name, value in rows]
    lines += [
        "",
        f"The bar is {BAR:,} images per second with crop and flip on one core. CPU time of one thread, the best of",
        f"{PASSES} passes over {options.count:,} random images in batches of {options.batch}; decoding has one",
        "pass and counts the time of all its threads. Files on the disk are in the system's file cache, as after",
        "a first epoch.",
        f"torch {torch.__version__}, {platform.machine()}, {date.today():%Y-%m-%d}. `python benchmarks/loading.py`",
        "",
    ]
    text = "\n".join(lines)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
