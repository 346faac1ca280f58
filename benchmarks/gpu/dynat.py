"""Test DYNAT's claim with its controls at once on one GPU: AT-CE, AT-KL, TRADES and DYNAT with a trained guide.

    python benchmarks/gpu/dynat.py [--data FOLDER] [--seconds 520] [--results FOLDER]
    python benchmarks/gpu/dynat.py --device cpu --limit 96 --seconds 120     # the same steps, tiny, without a GPU

CIFAR-10 from the Parquet files of `$ROBUSTLY_SHARED_DATA/cifar10-jpeg` (JPEG q75: numbers on it do not compare with
published ones), ResNet-18 of half the width, bf16, linf 8/255, PGD-10 in eval mode in every arm, one optimiser.
The arms run at the same time, each in its own process. Their speed together is measured first, for 20 s; number of
images and epochs follow from it, so that all ends within `--seconds`. Then the guide learns for 12 epochs on clean
images, then the arms begin from scratch. A run that is not finished in time is stopped, and its best checkpoint
counts. With `--results`, the table is also written to `dynat_gpu.md` there.
"""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_options import read_options, show

TABLE = "dynat_gpu.md"
GUIDE_EPOCHS = 12
ARM_EPOCHS = (6, 30)
"""Fewest and most epochs of the arms; with fewer, images are left out instead."""
EVALUATED = 0.16
"""Share of the whole time for the evaluation."""
MARGIN = 0.75
"""Share of a period that is planned for; the rest is for starts, validation and errors of the estimate."""
GRACE = 10
"""Seconds for a stopped process to end."""
STEPS = 10
NORMALISATION = {"mean": "[0.4914, 0.4822, 0.4465]", "std": "[0.2471, 0.2435, 0.2616]"}
ARMS: dict[str, tuple[str, dict[str, str]]] = {
    "AT-CE": ("cifar10/pgd_at", {}),
    "AT-KL": ("cifar10/pgd_at", {"method.inner.objective": "kl", "method.inner.start": "gaussian"}),
    "TRADES": ("cifar10/trades", {}),
    "DYNAT, guided": ("cifar10/dynat", {}),
}


@dataclass(frozen=True)
class Scale:
    """Sizes that differ between a GPU and a trial on the CPU."""

    width: str
    batch: int
    timed_images: int
    timed_seconds: float
    held_out: int
    tested: int
    precision: str


SCALES = {
    "cuda": Scale("0.5", 128, 4096, 20, 500, 1000, "bf16-mixed"),
    "cpu": Scale("0.0625", 16, 32, 5, 10, 20, "32-true"),
}


@dataclass(frozen=True)
class Bench:
    """Where all runs take place.

    Args:
        data: folder with `train.parquet` and `test.parquet`.
        out: folder of the runs.
        device: "cuda" or "cpu".
        end: time at which everything has ended, in seconds of `time.monotonic`.
    """

    data: Path
    out: Path
    device: str
    end: float

    @property
    def scale(self) -> Scale:
        return SCALES[self.device]

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def settings(self, recipe: str, images: int, epochs: int) -> dict[str, str]:
        """Settings of a run in place of the recipe's."""
        values = {
            "threat": "linf:8/255",
            "data.source": str(self.data),
            "data.train_limit": str(images),
            "data.validation": str(self.scale.held_out),
            "data.test_limit": str(self.scale.tested),
            "optimizer.learning_rate": "0.1",
            "optimizer.weight_decay": "0.0005",
            "schedule": "{name: one_cycle, peak: 0.3}",
            "training.epochs": str(epochs),
            "training.batch_size": str(self.scale.batch),
            "runtime.device": self.device,
            "runtime.precision": self.scale.precision,
        }
        for role in ("model", "guide") if recipe.endswith("dynat") else ("model",):
            values |= {f"{role}.name": "resnet18", f"{role}.width": self.scale.width}
            values |= {f"{role}.{key}": value for key, value in NORMALISATION.items()}
        if not recipe.endswith("standard"):
            values |= {"method.inner.steps": str(STEPS), "method.inner.step_size": "null"}
            values |= {"method.inner.relative_step_size": "0.25", "method.inner.mode": "eval"}
        return values

    def train(self, folder: Path, recipe: str, settings: dict[str, str]) -> subprocess.Popen[bytes]:
        words = [word for key, value in settings.items() for word in (f"--{key}", value)]
        return started(["train", recipe, "--out", str(folder), *words], folder)


def started(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A process of `robustly`, whose output goes to a file beside the run."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // len(ARMS)))
    log = folder.with_suffix(f".{words[0]}.log")
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "robustly", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )


def rates(folder: Path) -> list[float]:
    """Trained images per second of the finished epochs; of all but the first where there are several."""
    file = folder / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as opened:
        found = [float(row["images_per_second"]) for row in csv.DictReader(opened) if row["images_per_second"]]
    return found[1:] or found


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Stop processes as Ctrl-C does, and kill those that are not gone `GRACE` seconds later."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def finish(processes: dict[Path, subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait at most so many seconds, then stop the rest; a process that failed ends the benchmark."""
    until = time.monotonic() + seconds
    try:
        while any(process.poll() is None for process in processes.values()) and time.monotonic() < until:
            time.sleep(0.2)
        for folder, process in processes.items():
            if process.poll() not in (None, 0):
                sys.exit(f"{folder} failed:\n{newest_log(folder)}")
    finally:
        stop(list(processes.values()))


def newest_log(folder: Path) -> str:
    logs = sorted(folder.parent.glob(f"{folder.name}.*.log"), key=lambda log: log.stat().st_mtime)
    return "\n".join(logs[-1].read_text(errors="replace").splitlines()[-8:]) if logs else "no output"


def measured_rate(bench: Bench) -> tuple[float, float]:
    """Images per second of the slowest arm while all run, and seconds until all had begun."""
    began = time.monotonic()
    places = {name: bench.out / "timing" / f"arm{place}" for place, name in enumerate(ARMS)}
    processes = {
        places[name]: bench.train(
            places[name], recipe, bench.settings(recipe, bench.scale.timed_images, 1000) | changes
        )
        for name, (recipe, changes) in ARMS.items()
    }
    latest = began + 0.4 * bench.left
    try:
        while not all(rates(folder) for folder in processes):
            failed = [folder for folder, process in processes.items() if process.poll() is not None]
            if failed:
                sys.exit(f"{failed[0]} failed:\n{newest_log(failed[0])}")
            if time.monotonic() > latest:
                sys.exit(f"no arm ended an epoch of {bench.scale.timed_images} images in the time for it")
            time.sleep(0.2)
        starting = time.monotonic() - began
        time.sleep(bench.scale.timed_seconds)
        found = {name: statistics.median(rates(folder)) for name, folder in places.items()}
    finally:
        stop(list(processes.values()))
    print("together: " + ", ".join(f"{name} {rate:.0f} images/s" for name, rate in found.items()), flush=True)
    return min(found.values()), starting


def planned_images(rate: float, seconds: float, most: int, batch: int) -> int:
    """Images with which guide and arms fit into the time.

    A step of the guide is a forward and a backward pass, one of the `STEPS` + 1 of an arm, and the guide is alone.
    """
    per_image = (ARM_EPOCHS[0] + GUIDE_EPOCHS / (STEPS + 1)) / rate
    return max(2 * batch, min(most, int(seconds / per_image)))


def trained(bench: Bench, rate: float, starting: float, limit: int) -> tuple[dict[str, Path], int, int]:
    """Train the guide and then the arms; returns the folders, images and epochs."""
    evaluation = max(EVALUATED * bench.left, 1.5 * starting) + GRACE
    batch = bench.scale.batch
    images = planned_images(rate, MARGIN * (bench.left - evaluation - 2 * starting), limit, batch)
    guide = bench.out / "runs" / "guide"
    print(f"guide: {GUIDE_EPOCHS} epochs of {images:,} images", flush=True)
    settings = bench.settings("cifar10/standard", images, GUIDE_EPOCHS)
    finish({guide: bench.train(guide, "cifar10/standard", settings)}, bench.left / 2)
    weights = guide / "model.safetensors"
    if not weights.is_file():
        sys.exit(f"the guide was not finished in half of the time:\n{newest_log(guide)}")
    seconds = MARGIN * (bench.left - evaluation - starting)
    epochs = min(max(int(seconds * rate / images), 1), ARM_EPOCHS[1])
    print(f"arms: {epochs} epochs of {images:,} images", flush=True)
    folders = {name: bench.out / "runs" / f"arm{place}" for place, name in enumerate(ARMS)}
    processes = {}
    for name, (recipe, changes) in ARMS.items():
        arm = bench.settings(recipe, images, epochs) | changes
        arm |= {"guide.weights": str(weights)} if recipe.endswith("dynat") else {}
        processes[folders[name]] = bench.train(folders[name], recipe, arm)
    finish(processes, bench.left - evaluation)
    return {"guide (clean training)": guide, **folders}, images, epochs


def evaluated(bench: Bench, folders: dict[str, Path]) -> list[str]:
    """Evaluate all runs at the same time; returns the lines of the table."""
    options = ["--suite", "pgd_20", "--evaluation.curve", "off"]
    processes = {folder: started(["evaluate", str(folder), *options], folder) for folder in folders.values()}
    finish(processes, max(bench.left - GRACE, GRACE))
    lines = ["| arm | clean | PGD-20 | epochs | minutes | images/s |", "| --- | --- | --- | --- | --- | --- |"]
    for name, folder in folders.items():
        file = folder / "evaluation" / "summary.json"
        if not file.is_file():
            lines.append(f"| {name} | not evaluated in time | | | | |")
            continue
        summary = json.loads(file.read_text(encoding="utf-8"))
        shares = (summary["clean"]["accuracy"], summary["attacks"]["pgd_20"]["accuracy"])
        with (folder / "metrics.csv").open(encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        minutes = json.loads((folder / "status.json").read_text(encoding="utf-8"))["seconds"] / 60
        lines.append(
            f"| {name} | {100 * shares[0]:.1f} | {100 * shares[1]:.1f} | {len(rows)} | {minutes:.1f} | "
            f"{statistics.median(rates(folder)):.0f} |"
        )
    return lines


def main() -> None:
    began = time.monotonic()
    batches = {device: scale.batch for device, scale in SCALES.items()}
    options = read_options(batches, seconds=520, trial=120, table=TABLE)
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)).resolve()
        bench = Bench(options.data, out, options.device, began + options.seconds)
        rate, starting = measured_rate(bench)
        folders, images, epochs = trained(bench, rate, starting, options.limit)
        table = evaluated(bench, folders)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU (a trial of the steps, not a result)"
    about = (
        f"CIFAR-10 (JPEG q75), {images:,} images, {epochs} epochs, ResNet-18 of width {bench.scale.width}, "
        f"PGD-{STEPS} in eval mode, {bench.scale.precision}, linf 8/255; {bench.scale.tested:,} test images, one "
        f"seed; the four arms at the same time on one {name}; torch {torch.__version__}; "
        f"{time.monotonic() - began:.0f} s in all."
    )
    lines = ["# DYNAT and its controls on one GPU", "", about, "", *table, "", "`python benchmarks/gpu/dynat.py`"]
    show(lines, options, TABLE)


if __name__ == "__main__":
    main()
