"""Four adversarial-training methods and none, on CIFAR-10 images, at one small budget.

    ROBUSTLY_SHARED_DATA=FOLDER python benchmarks/cifar10_small.py [--out FOLDER]

FOLDER holds `cifar10-jpeg/{train,test}.parquet` (CIFAR-10, JPEG q75: numbers on it are not comparable with
published ones). Takes about half an hour on two cores. Trains the shipped `cifar10/...` recipes with a ResNet-18
of a quarter of the width, 20,000 images, 8 epochs, PGD-5, all else alike; evaluates clean, PGD-20 and C&W on
1,000 test images; writes `benchmarks/results/cifar10_small.md` and, into the folder of the runs, a report that
compares them. Runs that are finished are kept, a run that was stopped goes on where it was.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import torch

from robustly.cli import main as robustly

METHODS = ("standard", "pgd_at", "trades", "dynat", "dynat_inner")
TITLES = {
    "standard": "standard",
    "pgd_at": "PGD-AT",
    "trades": "TRADES",
    "dynat": "DYNAT",
    "dynat_inner": "DYNAT-Inner",
}
NORMALISATION = {"mean": "[0.4914, 0.4822, 0.4465]", "std": "[0.2471, 0.2435, 0.2616]"}
RESULTS = Path(__file__).parent / "results" / "cifar10_small.md"


def settings(method: str, data: Path) -> list[str]:
    """What every method has in common."""
    values = {
        "threat": "linf:8/255",
        "data.source": str(data),
        "data.train_limit": "20000",
        "data.test_limit": "1000",
        "model.name": "resnet18",
        "model.width": "0.25",
        **{f"model.{key}": value for key, value in NORMALISATION.items()},
        "optimizer.learning_rate": "0.1",
        "optimizer.weight_decay": "0.0005",
        "schedule": "{name: one_cycle, peak: 0.3}",
        "training.epochs": "8",
        "runtime.precision": "bf16-mixed",
        "evaluation.suite": "dynat",
    }
    if method != "standard":
        values |= {
            "method.inner.steps": "5",
            "method.inner.step_size": "null",
            "method.inner.relative_step_size": "0.5",
            "method.inner.mode": "eval",
        }
    if method.startswith("dynat"):
        values |= {"guide.name": "resnet18", "guide.width": "0.25"}
        values |= {f"guide.{key}": value for key, value in NORMALISATION.items()}
    return [word for key, value in values.items() for word in (f"--{key}", value)]


def run(method: str, data: Path, folder: Path) -> dict[str, object]:
    """Train and evaluate one method, or take up what is there; returns the evaluation's summary."""
    out = folder / method
    if not out.exists():
        command = ["train", f"cifar10/{method}", "--out", str(out), *settings(method, data)]
    else:
        command = ["train", "--resume", str(out)]
    for words in (command, ["evaluate", str(out)]):
        summary = out / "evaluation" / "summary.json"
        if (words[0] == "evaluate" and summary.exists()) or (
            words[0] == "train" and (out / "model.safetensors").exists()
        ):
            continue
        if robustly(words) != 0:
            sys.exit(f"{' '.join(words[:2])} failed")
    content: dict[str, object] = json.loads((out / "evaluation" / "summary.json").read_text())
    return content


def cell(entry: dict[str, object]) -> str:
    """A share with its interval."""
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10_small"))
    folder = parser.parse_args().out
    shared = os.environ.get("ROBUSTLY_SHARED_DATA")
    if not shared or not (Path(shared) / "cifar10-jpeg").is_dir():
        sys.exit("set ROBUSTLY_SHARED_DATA to a folder with cifar10-jpeg/train.parquet and test.parquet")
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["| method | clean | PGD-20 | C&W | worst case | training |", "| --- | --- | --- | --- | --- | --- |"]
    for method in METHODS:
        summary = run(method, Path(shared).resolve() / "cifar10-jpeg", folder)
        seconds = json.loads((folder / method / "status.json").read_text())["seconds"]
        attacks = summary["attacks"]
        numbers = [summary["clean"], attacks["pgd_20"], attacks["cw_20"], summary["worst_case"]]
        lines.append(
            f"| {TITLES[method]} | {' | '.join(cell(entry) for entry in numbers)} | {seconds / 60:.0f} min |"
        )
    robustly(["report", *(str(folder / method) for method in METHODS), "--out", str(folder / "report.html")])
    table = "\n".join(lines)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        "# CIFAR-10 (JPEG q75), quarter-width ResNet-18, one small budget\n\n"
        f"{table}\n\n"
        "Accuracy in % on 1,000 test images with 95 % Wilson intervals, linf 8/255, one seed. Worst case over\n"
        "PGD-10, PGD-20, PGD-50 and C&W. 20,000 training images, 8 epochs, PGD-5 in training, model selection on\n"
        "1,000 held-out training images. Training time is that of a busy machine: an order of magnitude.\n\n"
        f"`python benchmarks/cifar10_small.py`, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores.\n"
    )
    print(table)


if __name__ == "__main__":
    main()
