"""Compare verdict and cost of our suites with torchattacks' AutoAttack, on two networks trained by this project.

    ROBUSTLY_SHARED_DATA=FOLDER python benchmarks/suites.py [--out FOLDER] [--count 500] [--victims mnist,cifar]

The MNIST victim is `mnist5k/pgd_at` (linf 0.3), the CIFAR-10 victim a quarter-width ResNet-18 trained by TRADES on
`cifar10-jpeg/{train,test}.parquet` in FOLDER (8/255; numbers on JPEG re-encoded images are not comparable with
published ones). Both are trained where they are not there yet (an hour for the second), and evaluated on their
first test images by torchattacks' four attacks of AutoAttack from survivor to survivor, by `aa_standard`, `quick`,
`standard` and `strong`. CPU time of one process and one thread; passes are counted at the model, for every tool
alike. Finished rows are kept and not run again. Writes `benchmarks/results/suites.md`.
"""

import argparse
import os
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from autoattack_tools import measured
from robustly import ThreatModel
from robustly.cli import main as robustly
from robustly.data import ImageData, load_test
from robustly.experiments.run_folder import evaluation_data, load_trained, open_run
from robustly.statistics import Proportion

RESULTS = Path(__file__).parent / "results" / "suites.md"
OURS = ("aa_standard", "quick", "standard", "strong")
TOOL_TITLES = {
    "torchattacks": "AutoAttack, torchattacks",
    "aa_standard": "`aa_standard`",
    "quick": "`quick`",
    "standard": "`standard`",
    "strong": "`strong`",
}
CIFAR_TRAINING = {
    "threat": "linf:8/255",
    "model.name": "resnet18",
    "model.width": "0.25",
    "model.mean": "[0.4914, 0.4822, 0.4465]",
    "model.std": "[0.2471, 0.2435, 0.2616]",
    "optimizer.learning_rate": "0.1",
    "optimizer.weight_decay": "0.0005",
    "schedule": "{name: one_cycle, peak: 0.3}",
    "training.epochs": "10",
    "training.validation_steps": "10",
    "runtime.precision": "bf16-mixed",
    "method.inner.steps": "4",
    "method.inner.step_size": "null",
    "method.inner.relative_step_size": "0.5",
    "method.inner.mode": "eval",
    "data.test_limit": "1000",
}


def victim(name: str, folder: Path, count: int) -> tuple[nn.Module, ImageData, ThreatModel]:
    """A robust network, and test images that are not in its training data."""
    out = folder / name
    if not (out / "model.safetensors").exists():
        if out.exists():
            words = ["train", "--resume", str(out)]
        elif name == "mnist":
            words = ["train", "mnist5k/pgd_at", "--out", str(out)]
        else:
            shared = os.environ.get("ROBUSTLY_SHARED_DATA")
            if not shared or not (Path(shared) / "cifar10-jpeg").is_dir():
                sys.exit("set ROBUSTLY_SHARED_DATA to a folder with cifar10-jpeg/train.parquet and test.parquet")
            source = str((Path(shared) / "cifar10-jpeg").resolve())
            settings = [word for key, value in CIFAR_TRAINING.items() for word in (f"--{key}", value)]
            words = ["train", "cifar10/trades", "--out", str(out), "--data.source", source, *settings]
        if robustly(words) != 0:
            sys.exit(f"{' '.join(words[:2])} failed")
    config = open_run(out)
    data = load_test(evaluation_data(config))
    model, data, _ = load_trained(out, config, data, trusts=lambda module: False)
    rows = torch.arange(min(count, len(data)))
    return model.eval(), data.select(rows), config.threat


def table(rows: dict[str, dict[str, object]]) -> str:
    """One line per tool, costs relative to torchattacks."""
    base = rows["torchattacks"]
    lines = [
        "| evaluation | robust accuracy, 95 % interval | broken only here / only by torchattacks | CPU s "
        "| less time | forward passes | backward passes | fewer passes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    theirs = torch.tensor(base["robust"])
    for name, row in rows.items():
        robust = torch.tensor(row["robust"])
        share = Proportion(int(robust.sum()), len(robust))
        differ = f"{int((theirs & ~robust).sum())} / {int((robust & ~theirs).sum())}"
        passes = row["forwards"] + row["backwards"]
        lines.append(
            f"| {TOOL_TITLES[name]} | {share} | {differ} "
            f"| {row['seconds']:.0f} | {base['seconds'] / row['seconds']:.1f}x "
            f"| {row['forwards']:,} | {row['backwards']:,} "
            f"| {(base['forwards'] + base['backwards']) / passes:.1f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/suites"))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--victims", default="mnist,cifar")
    parser.add_argument("--tools", default=",".join(("torchattacks", *OURS)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    titles = {
        "mnist": "MNIST, `small_cnn` trained by PGD-AT, linf 0.3",
        "cifar": "CIFAR-10 (JPEG q75), quarter-width ResNet-18 trained by TRADES, linf 8/255",
    }
    parts = []
    for name in options.victims.split(","):
        model, data, threat = victim(name, options.out, options.count)
        rows: dict[str, dict[str, object]] = {}
        for tool in options.tools.split(","):
            record = options.out / "records" / f"{name}-{tool}-{len(data)}.json"
            rows[tool] = measured(tool, model, data, threat, record, batch_size=250)
            print(name, tool, sum(rows[tool]["robust"]), f"{rows[tool]['seconds']:.0f} s", flush=True)
        parts.append(f"## {titles[name]}\n\n{len(data)} test images.\n\n{table(rows)}\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchattacks"))
    RESULTS.write_text(
        "# Our suites beside AutoAttack\n\n" + "\n".join(parts) + "\n"
        "CPU time of one process and one thread, one run each; forward and backward passes of single images,\n"
        "counted at the model for every tool alike (a bfloat16 pass counts as one; the searches of our suites run\n"
        "in bfloat16, verdicts in float32). torchattacks' attacks get survivors only, as in AutoAttack.\n\n"
        f"`python benchmarks/suites.py`, {versions}, {platform.machine()}.\n"
    )
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
