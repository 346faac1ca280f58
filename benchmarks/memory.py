"""Measure the peak memory of an evaluation above the data, relative to one batch of activations.

    ROBUSTLY_SHARED_DATA=FOLDER python benchmarks/memory.py [--count 10000] [--batch 128]

Evaluates CIFAR-10 test images of FOLDER/cifar10-jpeg with a full-width ResNet-18 that has learnt nothing and PGD of
two steps at an epsilon that breaks nothing, so that only the machinery counts, in a process of its own for each of:
loading the data, one forward and backward pass of one batch, the evaluation. Writes `benchmarks/results/memory.md`.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch

from robustly import PGD, Suite, ThreatModel, evaluate
from robustly.data import DataConfig, ImageData, load_test
from robustly.models import ModelConfig, build_model

RESULTS = Path(__file__).parent / "results" / "memory.md"
WHAT = ("data", "batch", "evaluation")


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def images(count: int) -> ImageData:
    shared = os.environ.get("ROBUSTLY_SHARED_DATA")
    if not shared or not (Path(shared) / "cifar10-jpeg").is_dir():
        sys.exit("set ROBUSTLY_SHARED_DATA to a folder with cifar10-jpeg/train.parquet and test.parquet")
    return load_test(DataConfig(source=str(Path(shared) / "cifar10-jpeg"), test=count, evaluation_only=True))


def child(what: str, count: int, batch: int) -> None:
    """Run one of the three cases and print the peak."""
    torch.set_num_threads(1)
    model = build_model(ModelConfig(name="resnet18", classes=10), seed=0).eval()
    data = images(count)
    if what == "batch":
        x = data.floats(torch.arange(batch)).requires_grad_()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model(x).sum().backward()
    if what == "evaluation":
        with torch.no_grad():
            labels = torch.cat([model(data.floats(rows)).argmax(1) for rows in torch.arange(count).split(batch)])
        data = ImageData(data.images, labels, data.ids, data.classes, data.source)
        suite = Suite("two_steps", {"pgd": PGD(2, start="none")})
        evaluate(model, data, ThreatModel("linf", "1/25500"), suite, batch_size=batch)
    print(peak())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--child", choices=WHAT)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.count, options.batch)
        return
    found = {}
    for what in WHAT:
        words = ["--child", what, "--count", str(options.count), "--batch", str(options.batch)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
        found[what] = float(done.stdout.split()[-1])
    lines = [
        "| peak resident memory | MiB |",
        "| --- | --- |",
        f"| model and {options.count:,} images (uint8) | {found['data']:.0f} |",
        f"| the same, and one forward and backward pass of {options.batch} images | {found['batch']:.0f} |",
        f"| the same, and the evaluation of all | {found['evaluation']:.0f} |",
    ]
    RESULTS.write_text(
        "# Memory of an evaluation\n\n" + "\n".join(lines) + "\n\n"
        f"ResNet-18, batch size {options.batch}. `python benchmarks/memory.py`, torch {torch.__version__}, "
        f"{platform.machine()}.\n"
    )
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
