"""Test what DYNAT's dynamic labels contribute, with the controls that its paper leaves out.

    python benchmarks/dynat_study.py [--seeds 0,1,2] [--arms at_ce,at_kl,...] [--out FOLDER] [--table]

Arms differ in the objective of the training attack (cross-entropy of the labels, or KL divergence from the clean
logits), the labels (of the data, or of a guide) and the guide (from scratch, or trained first on the clean images).
All share everything else: CIFAR-10 (10,000 images of `$ROBUSTLY_SHARED_DATA/cifar10-jpeg`, JPEG q75: numbers on it
are not comparable with published ones), a ResNet-18 of a quarter of the width from scratch, 6 epochs, PGD-5 in
evaluation mode, linf 8/255, one optimiser, selection on 1,000 held-out training images. A guide that is trained
first has 12 epochs of clean training on the same images, and goes on learning with the target.

Two rules were fixed before the first run. The trade-off replicates if the clean accuracy of guided DYNAT exceeds
that of AT with the CE attack by more than two standard errors of the difference. The guide is not its cause if
guided DYNAT lies within two standard errors of AT with the KL attack.

Finished runs are kept, and stopped ones go on. Writes `dynat_study.csv` and `dynat_study.md` into
`benchmarks/results`; `--table` only writes.
"""

import argparse
import csv
import json
import math
import platform
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from methods import RESULTS, cifar_settings, words
from robustly.cli import main as robustly

GUIDE_EPOCHS = 12
NUMBERS = ("clean", "pgd_20", "quick", "guide_start", "guide_end", "minutes")
COLUMNS = ("arm", "seed", *NUMBERS)


@dataclass(frozen=True)
class Arm:
    """One method of the study.

    Args:
        title: its row of the table.
        recipe: recipe of CIFAR-10 from which it comes.
        attack: objective of the training attack.
        labels: labels of the loss.
        guided: whether its guide is trained first.
    """

    title: str
    recipe: str
    attack: str
    labels: str
    guided: bool = False


ARMS = {
    "at_ce": Arm("PGD-AT", "pgd_at", "CE", "data"),
    "at_kl": Arm("PGD-AT with the KL attack", "pgd_at", "KL", "data"),
    "trades": Arm("TRADES, beta 6", "trades", "KL", "data"),
    "dynat": Arm("DYNAT", "dynat", "KL", "guide"),
    "dynat_guided": Arm("DYNAT, guide trained first", "dynat", "KL", "guide", guided=True),
    "dynat_inner_guided": Arm("DYNAT-Inner, guide trained first", "dynat_inner", "CE", "guide", guided=True),
    "lbgat_guided": Arm("LBGAT0, guide trained first", "lbgat0", "KL", "guide's logits", guided=True),
    "lbgat": Arm("LBGAT0", "lbgat0", "KL", "guide's logits"),
    "dynat_inner": Arm("DYNAT-Inner", "dynat_inner", "CE", "guide"),
    "trades_awp": Arm("TRADES-AWP", "trades_awp", "KL", "data"),
    "dynat_inner_awp_guided": Arm(
        "DYNAT-Inner-AWP, guide trained first", "dynat_inner_awp", "CE", "guide", guided=True
    ),
}


def settings_of(name: str) -> dict[str, str]:
    """Settings of an arm in place of its recipe's."""
    arm = ARMS[name]
    settings = cifar_settings(arm.recipe) | {"method.inner.mode": "eval"}
    if arm.recipe == "pgd_at" and arm.attack == "KL":
        settings |= {"method.inner.objective": "kl", "method.inner.start": "gaussian"}
    return settings


def go(recipe: str, settings: dict[str, str], out: Path) -> None:
    """Train a run to its end."""
    if (out / "model.safetensors").exists():
        return
    begun = (out / "config.yaml").exists()
    command = ["--resume", str(out)] if begun else [f"cifar10/{recipe}", "--out", str(out), *words(settings)]
    if robustly(["train", *command]) != 0:
        sys.exit(f"{out} failed")


def guide_of(seed: int, folder: Path, width: str = "0.25") -> Path:
    """Weights of a network that clean images trained, of a share of the width of ResNet-18."""
    out = folder / (f"guide-{seed}" if width == "0.25" else f"guide_{width}-{seed}")
    settings = cifar_settings("standard") | {"model.width": width}
    go("standard", settings | {"seed": str(seed), "training.epochs": str(GUIDE_EPOCHS)}, out)
    return out / "model.safetensors"


def run(name: str, seed: int, folder: Path) -> dict[str, str]:
    """Train and evaluate one arm; returns its numbers, accuracies in %."""
    out = folder / f"{name}-{seed}"
    settings = settings_of(name) | {"seed": str(seed)}
    if ARMS[name].guided:
        settings["guide.weights"] = str(guide_of(seed, folder).resolve())
    go(ARMS[name].recipe, settings, out)
    for suite in ("pgd_20", "quick"):
        command = ["evaluate", str(out), "--suite", suite, "--as", suite, "--evaluation.curve", "off", "--keep"]
        if robustly(command) != 0:
            sys.exit(f"{' '.join(command)} failed")
    return numbers_of(name, seed, out)


def numbers_of(name: str, seed: int, out: Path) -> dict[str, str]:
    """The numbers of a finished run."""
    found = {
        suite: json.loads((out / f"evaluation_{suite}" / "summary.json").read_text())
        for suite in ("pgd_20", "quick")
    }
    numbers = {"clean": found["quick"]["clean"]["accuracy"]}
    numbers |= {suite: one["worst_case"]["accuracy"] for suite, one in found.items()}
    rows = list(csv.DictReader((out / "metrics.csv").open(encoding="utf-8")))
    if "guide_accuracy" in rows[0]:
        numbers |= {"guide_start": float(rows[0]["guide_accuracy"]), "guide_end": float(rows[-1]["guide_accuracy"])}
    minutes = json.loads((out / "status.json").read_text())["seconds"] / 60
    shown = {key: f"{100 * value:.1f}" for key, value in numbers.items()}
    return {"arm": name, "seed": str(seed), **dict.fromkeys(NUMBERS, ""), **shown, "minutes": f"{minutes:.1f}"}


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of one value is not known."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def difference(rows: list[dict[str, str]], one: str, other: str, key: str) -> tuple[float, float] | None:
    """Difference of two arms in points and its standard error; None with fewer than two seeds of one of them."""
    values = [[float(row[key]) for row in rows if row["arm"] == name] for name in (one, other)]
    if min(map(len, values)) < 2:
        return None
    (ours, first), (theirs, second) = map(mean_and_error, values)
    return ours - theirs, math.hypot(first, second)


def rules(rows: list[dict[str, str]]) -> list[str]:
    """Both rules, applied to the clean accuracy, and beside them the effect of the attack alone."""
    lines: list[str] = []
    replicates = True
    questions = (
        ("at_ce", "the trade-off replicates", "no trade-off is shown", True),
        ("at_kl", "the guide is not its cause", "the guide has an effect of its own", False),
    )
    for other, yes, no, above in questions:
        found = difference(rows, "dynat_guided", other, "clean")
        if found is None:
            lines.append(f"- Guided DYNAT against {ARMS[other].title}: too few seeds for a decision.")
            continue
        points, error = found
        holds = points > 2 * error if above else abs(points) <= 2 * error
        decision = f"**{yes if holds else no}**"
        if above:
            replicates = holds
        elif not replicates:
            decision = (
                f"{'within' if holds else 'not within'} two of them, which decides nothing without a trade-off"
            )
        lines.append(
            f"- Guided DYNAT minus {ARMS[other].title}: {points:+.1f} points of clean accuracy, standard error "
            f"{error:.1f}: {decision}."
        )
    alone = [difference(rows, "at_kl", "at_ce", key) for key in ("clean", "quick")]
    words = [f"{one[0]:+.1f} points (standard error {one[1]:.1f})" for one in alone if one is not None]
    if len(words) == 2:
        lines.append(f"- Without any guide, the KL attack in place of CE: clean {words[0]}, `quick` {words[1]}.")
    return lines


def read_rows(table: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Rows of a table of runs by arm and seed; empty without a table."""
    if not table.exists():
        return {}
    with table.open(encoding="utf-8") as file:
        return {(row["arm"], row["seed"]): row for row in csv.DictReader(file)}


def write_rows(
    table: Path, columns: tuple[str, ...], stored: dict[tuple[str, str], dict[str, str]], names: list[str]
) -> list[dict[str, str]]:
    """Write rows in the order of the arms' names and the seeds; returns them in this order."""
    rows = [stored[key] for key in sorted(stored, key=lambda key: (names.index(key[0]), int(key[1])))]
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def write(stored: dict[tuple[str, str], dict[str, str]]) -> None:
    """Write all runs as CSV, and a page of means and decisions."""
    rows = write_rows(RESULTS / "dynat_study.csv", COLUMNS, stored, list(ARMS))
    lines = ["# DYNAT taken apart", "", *(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    lines += [
        "| arm | attack | labels | seeds | clean | PGD-20 | `quick` | guide right, first to last epoch |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, arm in ARMS.items():
        own = [row for row in rows if row["arm"] == name]
        if not own:
            continue
        cells = []
        for key in ("clean", "pgd_20", "quick"):
            mean, error = mean_and_error([float(row[key]) for row in own])
            cells.append(f"{mean:.1f}" + (f" ± {error:.1f}" if len(own) > 1 else ""))
        guide = ""
        if own[0]["guide_start"]:
            guide = " to ".join(
                f"{statistics.fmean(float(row[key]) for row in own):.0f} %" for key in ("guide_start", "guide_end")
            )
        lines.append(f"| {arm.title} | {arm.attack} | {arm.labels} | {len(own)} | {' | '.join(cells)} | {guide} |")
    lines += [
        "",
        "Accuracy in % on 1,000 test images, means over seeds ± standard error of the mean. `quick` is the worst",
        "case over that suite. The guide's accuracy is that on the labels of the augmented training images, as it",
        "learns.",
        "",
        "## The two rules",
        "",
        *rules(rows),
        "",
        f"`python benchmarks/dynat_study.py`, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, "
        f"{platform.machine()}, one thread a run.",
    ]
    (RESULTS / "dynat_study.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/dynat_study"))
    parser.add_argument("--table", action="store_true", help="write the table of the finished runs only")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds.split(","):
            for name in options.arms.split(","):
                run(name, int(seed), options.out)
    stored = read_rows(RESULTS / "dynat_study.csv")
    for name in ARMS:
        for out in options.out.glob(f"{name}-[0-9]*"):
            if all((out / f"evaluation_{suite}" / "summary.json").exists() for suite in ("pgd_20", "quick")):
                seed = out.name.rpartition("-")[2]
                stored[name, seed] = numbers_of(name, int(seed), out)
    write(stored)


if __name__ == "__main__":
    main()
