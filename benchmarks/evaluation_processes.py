"""Time of `robustly evaluate` in two processes against one, with the same evidence.

Both run in turn, as commands of their own, with one thread for each process: the small CNN and a narrow ResNet-18
on MNIST digits. The time is that of the whole command, and that of the attacks and the curve alone, which the
evaluation measures.

    python benchmarks/evaluation_processes.py --out FOLDER [--rounds 2] [--count 1000]
"""

import argparse
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from robustly.files import write_text

RESULTS = Path(__file__).parent / "results" / "evaluation_processes.md"
MODELS = ("small_cnn", "resnet18")
STORED = ("evidence.parquet", "adversarial.safetensors")


def command(*words: str) -> tuple[float, str]:
    """Seconds and output of a command of the package."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "robustly", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - began, done.stdout


def trained(model: str, folder: Path) -> Path:
    """A run of a model, trained for one epoch if it is not there."""
    run = folder / model
    if not (run / "model.safetensors").is_file():
        width = ["--model.width", "0.25"] if model == "resnet18" else []
        words = ["--model.name", model, *width, "--threat", "linf:0.1", "--training.epochs", "2"]
        words += ["--method.inner.steps", "5", "--training.validation_steps", "5"]
        command("train", "mnist5k/pgd_at", *words, "--data.test", "1000", "--out", str(run))
    return run


def seconds_of(run: Path, processes: int, suite: str, count: int) -> tuple[float, float]:
    """Seconds of a command, and of its attacks and curve."""
    words = ["--suite", suite, "--evaluation.batch_size", "25", "--evaluation.count", str(count)]
    whole, shown = command(
        "evaluate",
        str(run),
        *words,
        "--runtime.processes",
        str(processes),
        "--as",
        f"of_{processes}",
        "--overwrite",
    )
    found = re.search(r"curve took ([\d.]+) s", " ".join(shown.split()))
    assert found is not None, shown
    return whole, float(found[1])


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--suite", default="apgd")
    options = parser.parse_args()
    rows = []
    for model in MODELS:
        run = trained(model, options.out)
        times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for processes, found in times.items():
                found.append(seconds_of(run, processes, options.suite, options.count))
        same = all(
            (run / "evaluation_of_1" / name).read_bytes() == (run / "evaluation_of_2" / name).read_bytes()
            for name in STORED
        )
        one, two = ([statistics.median(column) for column in zip(*times[n], strict=True)] for n in (1, 2))
        rows.append(
            f"| {model} | {one[0]:.1f} | {two[0]:.1f} | {one[0] / two[0]:.2f} | {one[1]:.1f} | {two[1]:.1f} "
            f"| {one[1] / two[1]:.2f} | {'yes' if same else 'NO'} |"
        )
    columns = ["model", "command, 1 process (s)", "2 (s)", "ratio", "attacks and curve, 1 (s)", "2 (s)", "ratio"]
    text = "\n".join(
        [
            "# One evaluation in two processes",
            "",
            f"Suite `{options.suite}` on {options.count} MNIST digits in batches of 25, one thread for each "
            f"process, medians of {options.rounds} alternating runs. The time of a command includes its start.",
            "",
            f"| {' | '.join([*columns, 'same evidence'])} |",
            f"| {' | '.join(['---'] * 8)} |",
            *rows,
            "",
            f"`python benchmarks/evaluation_processes.py`, {datetime.date.today()}, torch {torch.__version__}, "
            f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores.",
            "",
        ]
    )
    write_text(RESULTS, text)
    print(text)


if __name__ == "__main__":
    main()
