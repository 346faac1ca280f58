"""Compare the methods of DYNAT's first table and standard training at one budget, on real images, over seeds.

    python benchmarks/methods.py [--data mnist,cifar] [--methods pgd_at,trades,...] [--seeds 0,1,2] [--out FOLDER]

Without `--methods`, those of DYNAT's Table 1, the first five with all seeds and the others with the first; on MNIST
then every other shipped method that needs no further images, with the first seed.

MNIST: the shipped `mnist5k/...` recipes as they are (linf 0.3). CIFAR-10: the shipped `cifar10/...` recipes with a
ResNet-18 of a quarter of the width, 10,000 images of `$ROBUSTLY_SHARED_DATA/cifar10-jpeg` (JPEG q75: numbers on it
are not comparable with published ones), 6 epochs, PGD-5 inside, one optimiser for all; epochs at which a method
begins something stand at the same share of the run, and AWP begins after one epoch at the earliest: from the first
step on, AT-AWP's gamma of 0.01 keeps so short a run at chance. Teachers are trained first.
Finished runs are kept, stopped ones go on: methods and seeds can be added one by one. Evaluates clean, PGD-20
and C&W with the suite `dynat`, and `quick` for the worst case; writes `methods.csv` and `methods.md` into
`benchmarks/results`.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import sys
from pathlib import Path

import torch

from robustly.cli import main as robustly
from robustly.cli.recipes import read_recipe, recipe_names
from robustly.experiments.shortening import shortened
from robustly.reports.tables.published import rows_of_method

RESULTS = Path(__file__).parent / "results"
FIRST = ("pgd_at", "trades", "lbgat0", "dynat", "dynat_inner_awp")
TABLE = (*FIRST, "mart", "fat", "gairat", "at_awp", "dynat_awp_0", "dynat_awp_1", "standard")
"""The methods of DYNAT's Table 1 and standard training; the first five have three seeds."""
FURTHER_IMAGES = ("trades_extra",)
NORMALISATION = {"mean": "[0.4914, 0.4822, 0.4465]", "std": "[0.2471, 0.2435, 0.2616]"}
EPOCHS, STEPS = 6, 5
IMAGES = 10_000
SETTINGS = {
    "cifar": f"CIFAR-10 (JPEG q75), linf 8/255: quarter-width ResNet-18, {IMAGES:,} images, {EPOCHS} epochs, PGD-5",
    "mnist": "MNIST, linf 0.3: 3,500 digits, 12 epochs, PGD-7, the shipped `mnist5k` recipes",
}
REMARKS = {
    "cifar": "AWP begins after an epoch: from the first step on, gamma 0.01 (AT-AWP) keeps a short run at chance.",
    "mnist": "DYNAT's recipes take the data's labels for one epoch (`labels.warm_up`), unlike the paper.",
}
COLUMNS = ("data", "method", "seeds", "clean", "pgd_20", "cw_20", "quick", "spread_of_quick", "minutes")


def methods_of(data: str) -> tuple[str, ...]:
    """Methods and seeds on a data set, in the order of the table."""
    if data != "mnist":
        return TABLE
    shipped = [name.partition("/")[2] for name in recipe_names() if name.startswith("mnist5k/")]
    return (*TABLE, *(name for name in shipped if name not in (*TABLE, *FURTHER_IMAGES)))


def words(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def cifar_settings(method: str) -> dict[str, str]:
    """Settings of all methods on CIFAR-10, in place of their published ones."""
    shared = os.environ.get("ROBUSTLY_SHARED_DATA")
    if not shared or not (Path(shared) / "cifar10-jpeg").is_dir():
        sys.exit("set ROBUSTLY_SHARED_DATA to a folder with cifar10-jpeg/train.parquet and test.parquet")
    recipe = read_recipe(f"cifar10/{method}")
    values = shortened(recipe, EPOCHS, STEPS) | {
        "threat": "linf:8/255",
        "data.source": str((Path(shared) / "cifar10-jpeg").resolve()),
        "data.train_limit": str(IMAGES),
        "data.test_limit": "1000",
        "optimizer.learning_rate": "0.1",
        "optimizer.weight_decay": "0.0005",
        "schedule": "{name: one_cycle, peak: 0.3}",
        "training.batch_size": "64",
        "runtime.precision": "bf16-mixed",
    }
    for role in ("model", "guide", "teacher"):
        if role == "model" or recipe.get(role) is not None:
            values |= {f"{role}.name": "resnet18", f"{role}.width": "0.25"}
            values |= {f"{role}.{key}": value for key, value in NORMALISATION.items()}
    return values


def run(data: str, method: str, seed: int, folder: Path) -> Path:
    """Train and evaluate one run, or continue it."""
    out = folder / data / f"{method}-{seed}"
    dataset = {"mnist": "mnist5k", "cifar": "cifar10"}[data]
    recipe = read_recipe(f"{dataset}/{method}")
    settings = {"seed": str(seed)} | (cifar_settings(method) if data == "cifar" else {})
    for role, by in (("teacher", "trades"), ("standard_teacher", "standard")):
        if recipe.get(role) is not None:
            settings[f"{role}.weights"] = str((run(data, by, seed, folder) / "model.safetensors").resolve())
    train = ["train", f"{dataset}/{method}", "--out", str(out), *words(settings)]
    if (out / "config.yaml").exists():
        train = ["train", "--resume", str(out)]
    steps = [(out / "model.safetensors", train)]
    for suite, label in (("dynat", "dynat"), ("quick", "quick")):
        evaluated = ["evaluate", str(out), "--suite", suite, "--as", label, "--evaluation.curve_count", "100"]
        steps.append((out / f"evaluation_{label}" / "summary.json", evaluated))
    for product, command in steps:
        if not product.exists() and robustly(command) != 0:
            sys.exit(f"{' '.join(command[:2])} failed")
    return out


def row_of(data: str, method: str, runs: list[Path]) -> dict[str, str]:
    """Means over seeds, in %."""
    numbers: dict[str, list[float]] = {name: [] for name in ("clean", "pgd_20", "cw_20", "quick", "minutes")}
    for out in runs:
        full = json.loads((out / "evaluation_dynat" / "summary.json").read_text())
        fast = json.loads((out / "evaluation_quick" / "summary.json").read_text())
        numbers["clean"].append(100 * full["clean"]["accuracy"])
        for attack in ("pgd_20", "cw_20"):
            numbers[attack].append(100 * full["attacks"][attack]["accuracy"])
        numbers["quick"].append(100 * fast["worst_case"]["accuracy"])
        numbers["minutes"].append(json.loads((out / "status.json").read_text())["seconds"] / 60)
    means = {name: f"{statistics.mean(values):.1f}" for name, values in numbers.items()}
    spread = f"{statistics.stdev(numbers['quick']):.1f}" if len(runs) > 1 else ""
    return {"data": data, "method": method, "seeds": str(len(runs)), "spread_of_quick": spread, **means}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="mnist,cifar")
    parser.add_argument("--methods", help="names of mnist5k recipes; those of DYNAT's Table 1 without it")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    options = parser.parse_args()
    stored: dict[tuple[str, str], dict[str, str]] = {}
    table = RESULTS / "methods.csv"
    if table.exists():
        with table.open(encoding="utf-8") as file:
            stored = {(row["data"], row["method"]): row for row in csv.DictReader(file)}
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for data in options.data.split(","):
        for method in options.methods.split(",") if options.methods else methods_of(data):
            chosen = seeds if options.methods or method in FIRST else seeds[:1]
            runs = [run(data, method, seed, options.out) for seed in chosen]
            stored[data, method] = row_of(data, method, runs)
            write(stored, table)


def write(stored: dict[tuple[str, str], dict[str, str]], table: Path) -> None:
    """Write the table as CSV and as a page with published numbers."""
    places = {method: place for place, method in enumerate(TABLE)}
    ordered = sorted(stored, key=lambda key: (key[0], places.get(key[1], len(TABLE)), key[1]))
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(stored[key] for key in ordered)
    lines = ["# Methods at one budget", ""]
    for data, what in SETTINGS.items():
        rows = [stored[key] for key in ordered if key[0] == data]
        first, others = ([row for row in rows if (row["method"] in TABLE) == listed] for listed in (True, False))
        lines += [f"## {what}", "", REMARKS[data], "", *_measured(first), ""] if rows else []
        lines += ["### The other methods, there", "", *_measured(others), ""] if others else []
    lines += [
        "Accuracy in % on 1,000 test images (95 % intervals reach at most 3 points each way), means over seeds;",
        "`quick` is the worst case over that suite, ± its standard deviation over seeds. Selection on held-out",
        "training images, never on the test. `quick` stands for AutoAttack: on the two networks of",
        "[suites](suites.md) both find the same to 0.2 points. One thread per run; minutes on a busy machine, an",
        "order of magnitude.",
        "",
        "## Published: another scale",
        "",
        "CIFAR-10, linf 8/255, WRN-34-10, all images, 76 to 200 epochs; nothing above compares with these numbers.",
        "",
        *_published(),
        "",
        f"`python benchmarks/methods.py`, torch {torch.__version__}, {platform.machine()}.",
    ]
    (RESULTS / "methods.md").write_text("\n".join(lines) + "\n")


def _measured(rows: list[dict[str, str]]) -> list[str]:
    head = [
        "| method | seeds | clean | PGD-20 | C&W | `quick` | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return head + [
        f"| {name_of(row['method'])} | {row['seeds']} | {row['clean']} | {row['pgd_20']} | {row['cw_20']} | "
        f"{row['quick']}{' ± ' + row['spread_of_quick'] if row['spread_of_quick'] else ''} | {row['minutes']} |"
        for row in rows
    ]


def _published() -> list[str]:
    lines = ["| method | clean | PGD-20 | C&W | AutoAttack | source |", "| --- | --- | --- | --- | --- | --- |"]
    for method in TABLE[:-1]:
        found = [row for row in rows_of_method(method) if row.data == "cifar10"]
        cells = [f"{100 * found[0].accuracy[key]:.2f}" for key in ("clean", "pgd_20", "cw", "aa")]
        lines.append(f"| {found[0].name} | {' | '.join(cells)} | {found[0].source} |")
    return lines


def name_of(method: str) -> str:
    """Name of a method in the literature if it is in Table 1, else the name of its recipe."""
    found = rows_of_method(method) if method in TABLE else []
    return found[0].name if found else f"`{method}`"


if __name__ == "__main__":
    main()
