"""Compare bfloat16 and float32 training: accuracies on held-out digits, several seeds.

    python benchmarks/precision.py [--recipes mnist5k/pgd_at,mnist5k/trades] [--seeds 0,1,2] [--out FOLDER]

Trains the recipes as they are shipped but for the precision and takes the validation accuracies of the released
epoch. Finished runs are kept, stopped ones go on. Writes `benchmarks/results/precision.md`: means and standard
deviations over seeds, and the difference in units of its standard error.
"""

import argparse
import csv
import json
import math
import platform
import statistics
import sys
from pathlib import Path

import torch

from robustly.cli import main as robustly

RESULTS = Path(__file__).parent / "results" / "precision.md"
PRECISIONS = ("32-true", "bf16-mixed")
ACCURACIES = ("clean", "robust")


def validated(recipe: str, precision: str, seed: int, folder: Path) -> dict[str, float]:
    """Accuracies of the released epoch, in %."""
    out = folder / f"{recipe.partition('/')[2]}-{precision}-{seed}"
    command = ["train", "--resume", str(out)]
    if not (out / "config.yaml").exists():
        command = ["train", recipe, "--seed", str(seed), "--runtime.precision", precision, "--out", str(out)]
    if not (out / "model.safetensors").exists() and robustly(command) != 0:
        sys.exit(f"{' '.join(command)} failed")
    best = json.loads((out / "status.json").read_text())["best_epoch"]
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if int(row["epoch"]) == best)
    return {name: 100 * float(row[f"validation_{name}_accuracy"]) for name in ACCURACIES}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipes", default="mnist5k/pgd_at,mnist5k/trades")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    lines = [
        "| recipe | validation accuracy | float32 | bf16-mixed | difference | in standard errors |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for recipe in options.recipes.split(","):
        found = {p: [validated(recipe, p, seed, options.out) for seed in seeds] for p in PRECISIONS}
        for name in ACCURACIES:
            full, half = ([accuracies[name] for accuracies in found[p]] for p in PRECISIONS)
            difference = statistics.mean(half) - statistics.mean(full)
            error = math.sqrt((statistics.variance(full) + statistics.variance(half)) / len(seeds))
            means = " | ".join(f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for v in (full, half))
            lines.append(
                f"| `{recipe}` | {name} | {means} | {difference:+.1f} | {difference / max(error, 1e-9):+.1f} |"
            )
    RESULTS.write_text(
        "# Training in bfloat16 beside float32\n\n" + "\n".join(lines) + "\n\n"
        f"Means and standard deviations in % over {len(seeds)} seeds on 500 held-out digits, linf 0.3, PGD-10.\n"
        f"`python benchmarks/precision.py`, torch {torch.__version__}, {platform.machine()}.\n"
    )
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
