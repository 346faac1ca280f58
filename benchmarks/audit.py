"""Measure the cost of an audit beside that of its evaluation, for honest `standard` evaluations of 1,000 images.

    ROBUSTLY_SHARED_DATA=FOLDER python benchmarks/audit.py [--out FOLDER] [--count 1000] [--repeats 3]

Trains `mnist5k/pgd_at` and a small network on `cifar10-jpeg/{train,test}.parquet` in FOLDER, where they are not yet
there. Each repeat evaluates and audits both by the command line, in CPU time of one process and one thread. Writes
the medians to `benchmarks/results/audit.md`.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from robustly.cli import main as robustly
from robustly.evaluation import Sampling
from robustly.evidence import read_summary

RESULTS = Path(__file__).parent / "results" / "audit.md"
CIFAR = {
    "threat": "linf:8/255",
    "model.name": "small_cnn",
    "model.width": "1",
    "training.epochs": "6",
    "training.validation_steps": "5",
    "data.train_limit": "10000",
    "data.test_limit": "1000",
    "method.inner.steps": "5",
}


def training(name: str, out: Path) -> list[str]:
    """The command that trains a network."""
    if name == "MNIST":
        return ["train", "mnist5k/pgd_at", "--out", str(out)]
    shared = os.environ.get("ROBUSTLY_SHARED_DATA")
    if not shared or not (Path(shared) / "cifar10-jpeg").is_dir():
        sys.exit("set ROBUSTLY_SHARED_DATA to a folder with cifar10-jpeg/train.parquet and test.parquet")
    settings = [word for key, value in CIFAR.items() for word in (f"--{key}", value)]
    source = str((Path(shared) / "cifar10-jpeg").resolve())
    return ["train", "cifar10/pgd_at", "--out", str(out), "--data.source", source, *settings]


def seconds(words: list[str]) -> float:
    """CPU time of a command."""
    began = time.process_time()
    if robustly(words) != 0:
        sys.exit(f"{' '.join(words[:2])} failed")
    return time.process_time() - began


def row(name: str, folder: Path, count: int, repeats: int) -> str:
    """A line of the table."""
    out = folder / name.lower()
    if not (out / "model.safetensors").exists() and robustly(training(name, out)) != 0:
        sys.exit(f"training of {name} failed")
    words = ["--suite", "standard", "--evaluation.count", str(count), "--overwrite"]
    evaluated, audited = [], []
    for _ in range(repeats):
        evaluated.append(seconds(["evaluate", str(out), *words]))
        audited.append(seconds(["audit", str(out)]))
    standing = read_summary(out / "evaluation").metrics.worst_case.robust
    sample = Sampling().size(standing.hits)
    both = statistics.median(evaluated), statistics.median(audited)
    return (
        f"| {name}, {standing.count:,} images | {100 * standing.share:.1f} % | {sample} of {standing.hits} | "
        f"{both[0]:.0f} s | {both[1]:.0f} s | {both[1] / both[0]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/audit_benchmark"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", default="MNIST,CIFAR-10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [row(name, options.out, options.count, options.repeats) for name in options.networks.split(",")]
    RESULTS.write_text(
        f"# The cost of an audit\n\n`python benchmarks/audit.py`, {datetime.now(UTC):%Y-%m-%d}, PyTorch "
        f"{torch.__version__}, one thread of {platform.machine()}, CPU time, medians of {options.repeats}. The "
        "evaluations are `standard` at the threat of the training; the audits have the default guarantee (2 %, "
        "99 %).\n\n| network | robust | attacked again | evaluate | audit | ratio |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
