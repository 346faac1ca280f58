"""Options that the benchmarks on one GPU have in common."""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Options:
    """Options of a benchmark.

    Args:
        data: folder of the Parquet files of CIFAR-10.
        device: "cuda", or "cpu" for a trial.
        limit: most training images.
        seconds: time for everything.
        out: folder of the runs; None for a temporary one.
        results: folder of the table; None without one.
    """

    data: Path
    device: str
    limit: int
    seconds: float
    out: Path | None
    results: Path | None


def show(lines: list[str], options: Options, table: str) -> None:
    """Print lines, and write them into the folder of results, if one is given."""
    print("\n".join(lines))
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / table).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_options(batches: Mapping[str, int], *, seconds: float, trial: float, table: str) -> Options:
    """Options of the command line; ends with one sentence where they are wrong.

    Args:
        batches: batch size by device.
        seconds: usual time for everything.
        trial: time of a trial on the CPU, as the sentence on a missing GPU proposes it.
        table: name of the file in the folder of results.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder of the Parquet files")
    parser.add_argument("--device", choices=list(batches), default="cuda")
    parser.add_argument("--limit", type=int, default=49_000, help="most training images")
    parser.add_argument("--seconds", type=float, default=seconds, help="time for everything")
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one without it")
    parser.add_argument("--results", type=Path, help=f"folder for {table}")
    given = parser.parse_args()
    data = given.data or Path(os.environ.get("ROBUSTLY_SHARED_DATA", "")) / "cifar10-jpeg"
    fewest = 2 * batches[given.device]
    if not (data / "train.parquet").is_file():
        sys.exit(f"{data} has no train.parquet: give --data FOLDER, or set ROBUSTLY_SHARED_DATA")
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"no CUDA device here: add --device cpu --limit 96 --seconds {trial:g} for a trial of the same steps"
        )
    if given.limit < fewest or given.seconds <= 0:
        sys.exit(f"--limit must be at least {fewest}, and --seconds above 0")
    if given.out is not None and given.out.exists() and any(given.out.iterdir()):
        sys.exit(f"{given.out} is not empty: choose another folder with --out")
    return Options(data.resolve(), given.device, given.limit, given.seconds, given.out, given.results)
