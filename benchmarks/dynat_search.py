"""Look for a method with the clean accuracy of the KL attack and the robustness of the CE attack.

    python benchmarks/dynat_search.py [--seeds 0] [--candidates at_mixed,...] [--out FOLDER] [--table]

DYNAT's parts are composed anew, at the scale of `dynat_study.py` (CIFAR-10 as JPEG q75, 10,000 images, a ResNet-18
of a quarter of the width from scratch, 6 epochs, PGD-5 in evaluation mode, linf 8/255). Every candidate has seed 0.
The 1,000 held-out training images choose what gets further seeds: those that no other candidate exceeds in both
clean and robust accuracy of the chosen epoch. PGD-AT with KL on wrong images has further seeds, too, because it
needs no guide, and three forms of LBGAT0, which were chosen before all candidates had run. Controls were added
afterwards, to explain a candidate. The 1,000 test images are for the table only.

Rules, fixed before the first run: a candidate **reaches the goal** if its clean accuracy is no more than two
standard errors below that of PGD-AT with the KL attack, and its accuracy under `quick` no more than two below that
of PGD-AT. It **dominates** a method if it is above it by more than two standard errors in one of the two numbers,
and not below it by more than one in the other. Both need three seeds.

Finished runs are kept, and stopped ones go on. Writes `dynat_search.csv`, `dynat_search.md` and `dynat_search.svg`
into `benchmarks/results`; `--table` only writes.
"""

import argparse
import csv
import json
import math
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from dynat_study import ARMS, difference, go, guide_of, mean_and_error, read_rows, write_rows
from methods import RESULTS, cifar_settings
from robustly.cli import main as robustly
from robustly.reports.figures.drawing import hover, line, picture, shape, text
from robustly.reports.figures.drawing import points as path

NUMBERS = ("clean", "quick", "held_out_clean", "held_out_robust", "minutes")
COLUMNS = ("arm", "seed", *NUMBERS)
GOAL = {"clean": "at_kl", "quick": "at_ce"}
GRID = {"stroke": "#e5e5e5"}
Row = dict[str, str]


@dataclass(frozen=True)
class Point:
    """A method of the figure: its means, in %.

    Args:
        title: shown beside it.
        clean: clean accuracy.
        quick: accuracy under `quick`.
        seeds: runs behind it.
        new: whether it is a candidate.
    """

    title: str
    clean: float
    quick: float
    seeds: int
    new: bool

    def below(self, other: "Point") -> bool:
        """True if another method is at least as good in both numbers and better in one."""
        ours, theirs = (self.clean, self.quick), (other.clean, other.quick)
        return theirs != ours and theirs[0] >= ours[0] and theirs[1] >= ours[1]


@dataclass(frozen=True)
class Candidate:
    """A composition of parts that no paper reports, or that is not in the study.

    Args:
        title: its row of the table.
        recipe: recipe of CIFAR-10 from which it comes.
        settings: settings in place of the recipe's.
        guided: whether its guide is trained first, for 12 epochs.
        from_clean: whether the model itself starts from such a clean training.
        control: whether it was added after the others to explain one; the held-out images do not choose it.
    """

    title: str
    recipe: str
    settings: dict[str, str] = field(default_factory=dict)
    guided: bool = False
    from_clean: bool = False
    control: bool = False


def mixed(**settings: str) -> dict[str, str]:
    """Settings of a training attack between CE and KL."""
    text = "".join(f", {key}: {value}" for key, value in settings.items())
    return {
        "method.inner": f"{{name: mixed, steps: 5, relative_step_size: 0.5, start: gaussian, mode: eval{text}}}"
    }


CE = {"method.inner.objective": "cross_entropy", "method.inner.start": "random"}
CANDIDATES = {
    "at_mixed": Candidate("PGD-AT, mean of CE and KL in the attack", "pgd_at", mixed(kl="0.5")),
    "at_drawn": Candidate("PGD-AT, CE or KL drawn for each example", "pgd_at", mixed(kl="0.5", by="draw")),
    "at_kl_on_wrong": Candidate(
        "PGD-AT, KL on images that the model gets wrong", "pgd_at", mixed(kl="1.0", kl_on="wrong")
    ),
    "at_kl_on_right": Candidate(
        "PGD-AT, KL on images that the model gets right", "pgd_at", mixed(kl="1.0", kl_on="right")
    ),
    "at_kl_first": Candidate("PGD-AT, from KL to CE over the run", "pgd_at", mixed(kl="1.0", kl_end="0.0")),
    "at_ema": Candidate("PGD-AT, average of the weights", "pgd_at", {"method.parameters": "{ema: {decay: 0.99}}"}),
    "at_swa": Candidate("PGD-AT, SWA of the last two epochs", "pgd_at", {"method.parameters": "{swa: {start: 4}}"}),
    "at_from_clean": Candidate("PGD-AT from 12 clean epochs", "pgd_at", from_clean=True),
    "at_longer": Candidate(
        "control: PGD-AT, 8 epochs, as many passes as from clean epochs",
        "pgd_at",
        {"training.epochs": "8"},
        control=True,
    ),
    "at_kl_from_clean": Candidate(
        "control: PGD-AT with the KL attack from 12 clean epochs", "at_kl", from_clean=True, control=True
    ),
    "mean_teacher": Candidate(
        "PGD-AT with its own average as guide", "pgd_at", {"method.loss": "{name: mean_teacher, share: 0.5}"}
    ),
    "dynat_confident": Candidate(
        "DYNAT, guide's labels above 80 % confidence", "dynat", {"method.labels.confidence": "0.8"}, guided=True
    ),
    "lbgat_ce": Candidate("LBGAT0 with the CE attack", "lbgat0", CE, guided=True),
    "lbgat_ce_ema": Candidate(
        "LBGAT0 with the CE attack, average of the weights",
        "lbgat0",
        {**CE, "method.parameters": "{ema: {decay: 0.99}}"},
        guided=True,
    ),
    "lbgat_ce_awp": Candidate(
        "LBGAT0-AWP with the CE attack",
        "lbgat0",
        {**CE, "method.parameters": "{awp: {gamma: 0.005, warm_up: 1}}"},
        guided=True,
    ),
    "lbgat_ce_wide": Candidate(
        "LBGAT0 with the CE attack, guide of twice the width",
        "lbgat0",
        {**CE, "guide.width": "0.5"},
        guided=True,
    ),
    "lbgat6": Candidate("LBGAT6", "lbgat6", guided=True),
    "lbgat_kl_on_wrong": Candidate(
        "LBGAT0, KL on images that the model gets wrong", "lbgat0", mixed(kl="1.0", kl_on="wrong"), guided=True
    ),
    "lbgat_wide": Candidate("LBGAT0, guide of twice the width", "lbgat0", {"guide.width": "0.5"}, guided=True),
    "lbgat_awp": Candidate(
        "LBGAT0-AWP", "lbgat0", {"method.parameters": "{awp: {gamma: 0.005, warm_up: 1}}"}, guided=True
    ),
}


def run(name: str, seed: int, folder: Path) -> None:
    """Train and evaluate one candidate."""
    candidate = CANDIDATES[name]
    out = folder / f"search_{name}-{seed}"
    settings = cifar_settings(candidate.recipe) | {"method.inner.mode": "eval"} | candidate.settings
    if "method.inner" in settings:  # a whole part replaces its settings one by one
        settings = {key: value for key, value in settings.items() if not key.startswith("method.inner.")}
    settings |= {"seed": str(seed)}
    if candidate.guided:
        width = settings["guide.width"]
        settings["guide.weights"] = str(guide_of(seed, folder, width).resolve())
    if candidate.from_clean:
        settings["model.weights"] = str(guide_of(seed, folder).resolve())
    go(candidate.recipe, settings, out)
    command = ["evaluate", str(out), "--suite", "quick", "--as", "quick", "--evaluation.curve", "off", "--keep"]
    if robustly(command) != 0:
        raise SystemExit(f"{' '.join(command)} failed")


def numbers_of(name: str, seed: int, out: Path) -> Row:
    """The numbers of a finished run, accuracies in %."""
    found = json.loads((out / "evaluation_quick" / "summary.json").read_text())
    rows = list(csv.DictReader((out / "metrics.csv").open(encoding="utf-8")))
    status = json.loads((out / "status.json").read_text())
    chosen = next(row for row in rows if int(row["epoch"]) == status["best_epoch"])
    numbers = {
        "clean": found["clean"]["accuracy"],
        "quick": found["worst_case"]["accuracy"],
        "held_out_clean": float(chosen["validation_clean_accuracy"]),
        "held_out_robust": float(chosen["validation_robust_accuracy"]),
    }
    shown = {key: f"{100 * value:.1f}" for key, value in numbers.items()}
    return {"arm": name, "seed": str(seed), **shown, "minutes": f"{status['seconds'] / 60:.1f}"}


def chosen_by_held_out(rows: list[Row]) -> list[str]:
    """Candidates that no other exceeds in both accuracies on the held-out images, with seed 0."""
    first = {
        row["arm"]: (float(row["held_out_clean"]), float(row["held_out_robust"]))
        for row in rows
        if row["seed"] == "0" and not CANDIDATES[row["arm"]].control
    }
    return [
        name
        for name, (clean, robust) in first.items()
        if not any(c >= clean and r >= robust and (c, r) != (clean, robust) for c, r in first.values())
    ]


def reaches_goal(rows: list[Row], name: str) -> str:
    """Decision of the first rule, with both differences."""
    words, reached = [], True
    for key, other in GOAL.items():
        found = difference(rows, name, other, key)
        if found is None:
            return "too few seeds"
        points, error = found
        reached &= points >= -2 * error
        words.append(f"{key} {points:+.1f} (SE {error:.1f}) against {ARMS[other].title}")
    return f"**{'reaches' if reached else 'misses'} the goal**: {', '.join(words)}"


def dominated(rows: list[Row], name: str, others: list[str]) -> list[str]:
    """Methods that a candidate dominates, by the second rule."""
    found = []
    for other in others:
        pair = [difference(rows, name, other, key) for key in ("clean", "quick")]
        known = [one for one in pair if one is not None]
        above = any(points > 2 * error for points, error in known)
        if len(known) == 2 and above and all(points >= -error for points, error in known):
            found.append(other)
    return found


def figure(points: list[Point]) -> str:
    """Clean accuracy against accuracy under `quick`, with the front of all methods."""
    left, top, wide, high = 56, 24, 560, 400
    clean, quick = [one.clean for one in points], [one.quick for one in points]
    low_x, high_x, low_y, high_y = min(clean) - 1, max(clean) + 1, min(quick) - 1, max(quick) + 1

    def place(x: float, y: float) -> tuple[float, float]:
        return left + wide * (x - low_x) / (high_x - low_x), top + high * (high_y - y) / (high_y - low_y)

    inside = [shape("rect", {"width": left + wide + 330, "height": top + high + 50, "fill": "white"})]
    for value in range(math.ceil(low_x), math.floor(high_x) + 1):
        if value % 2 == 0:
            x, y = place(value, low_y)
            inside += [line((x, top), (x, y), GRID), text(f"{value} %", x, y + 18, {"text-anchor": "middle"})]
    for value in range(math.ceil(low_y), math.floor(high_y) + 1):
        if value % 2 == 0:
            x, y = place(low_x, value)
            inside += [
                line((x, y), (left + wide, y), GRID),
                text(f"{value} %", x - 6, y + 4, {"text-anchor": "end"}),
            ]
    front = sorted(
        (one for one in points if not any(one.below(other) for other in points)), key=lambda one: one.clean
    )
    inside.append(
        shape(
            "polyline", {"points": path([place(p.clean, p.quick) for p in front]), "fill": "none", "stroke": "#888"}
        )
    )
    ordered = sorted(points, key=lambda one: -one.quick)
    for number, one in enumerate(ordered, 1):
        x, y = place(one.clean, one.quick)
        colour = "#c2410c" if one.new else "#1d4ed8"
        mark = {"cx": x, "cy": y, "r": 4.5, "fill": colour if one.seeds > 2 else "white", "stroke": colour}
        small = {"font-size": "10", "fill": colour}
        inside += [shape("circle", mark, hover(one.title)), text(str(number), x + 6, y - 4, small)]
        inside.append(text(f"{number}  {one.title}", left + wide + 16, top + 14 * number - 4, small))
    inside.append(text("clean accuracy", left + wide / 2, top + high + 40, {"text-anchor": "middle"}))
    inside.append(text("accuracy under quick", left, 14))
    inside.append(
        text("blue: shipped, orange: candidates; filled: three seeds", left + wide, 14, {"text-anchor": "end"})
    )
    words = (
        "Clean accuracy and accuracy under attack of all methods; the line joins those that none exceeds in both."
    )
    return picture("".join(inside), left + wide + 330, top + high + 50, words, colour="color: #222; ")


def points_of(rows: list[Row], titles: dict[str, str], new: bool) -> list[Point]:
    """Means of all methods with the given titles."""
    found = []
    for name, title in titles.items():
        own = [row for row in rows if row["arm"] == name]
        if own:
            clean, quick = (mean_and_error([float(row[key]) for row in own])[0] for key in ("clean", "quick"))
            found.append(Point(title, clean, quick, len(own), new))
    return found


def shipped_points() -> list[Point]:
    """Means of the methods of `methods.csv` on CIFAR-10 that attack in training, without those of the study."""
    there = {"pgd_at": "at_ce", "trades": "trades", "lbgat0": "lbgat", "dynat": "dynat"}
    with (RESULTS / "methods.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == "cifar"]
    return [
        Point(row["method"], float(row["clean"]), float(row["quick"]), int(row["seeds"]), False)
        for row in rows
        if row["method"] not in (*there, "standard")
    ]


def write(stored: dict[tuple[str, str], Row]) -> None:
    """Write all runs as CSV, the figure, and a page of means and decisions."""
    rows = write_rows(RESULTS / "dynat_search.csv", COLUMNS, stored, list(CANDIDATES))
    study = list(read_rows(RESULTS / "dynat_study.csv").values())
    everything = study + rows
    candidates = points_of(rows, {name: one.title for name, one in CANDIDATES.items()}, new=True)
    known = points_of(study, {name: arm.title for name, arm in ARMS.items()}, new=False) + shipped_points()
    (RESULTS / "dynat_search.svg").write_text(figure(known + candidates) + "\n")
    front = [one.title for one in known + candidates if not any(one.below(other) for other in known + candidates)]
    doc = (__doc__ or "").split("\n\n")
    lines = ["# A better method from DYNAT's parts", "", *doc[2].splitlines(), "", *doc[3].splitlines(), ""]
    lines += ["![Clean accuracy against accuracy under attack](dynat_search.svg)", ""]
    lines += [
        "| candidate | seeds | clean | `quick` | held out, seed 0: clean | robust |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, candidate in CANDIDATES.items():
        own = [row for row in rows if row["arm"] == name]
        if not own:
            continue
        cells = []
        for key in ("clean", "quick"):
            mean, error = mean_and_error([float(row[key]) for row in own])
            cells.append(f"{mean:.1f}" + (f" ± {error:.1f}" if len(own) > 1 else ""))
        first = own[0]
        lines.append(
            f"| {candidate.title}{', guide trained first' if candidate.guided else ''} | {len(own)} | "
            f"{' | '.join(cells)} | {first['held_out_clean']} | {first['held_out_robust']} |"
        )
    lines += ["", "## What came out", ""]
    seeds = {name: sum(row["arm"] == name for row in rows) for name in CANDIDATES}
    chosen = [
        f"{CANDIDATES[name].title} ({seeds[name]} seed{'s' if seeds[name] > 1 else ''})"
        for name in chosen_by_held_out(rows)
    ]
    lines.append(f"- Chosen by the held-out images: {', '.join(chosen)}.")
    left = [one.title for name, one in CANDIDATES.items() if not seeds[name]]
    if left:
        lines.append(f"- Not run, for lack of time: {'; '.join(left)}.")
    for name, candidate in CANDIDATES.items():
        if len([row for row in rows if row["arm"] == name]) < 3:
            continue
        lines.append(f"- {candidate.title}: {reaches_goal(everything, name)}.")
        found = dominated(everything, name, list(ARMS))
        lines.append(f"  It dominates {', '.join(ARMS[one].title for one in found) or 'no method of the study'}.")
    lines.append(f"- Exceeded by none in both means, over all methods and any number of seeds: {'; '.join(front)}.")
    lines += [
        "",
        "Accuracy in % on 1,000 test images, means over seeds ± standard error of the mean.",
        "Rows of the study are in [dynat_study.md](dynat_study.md), those of other methods",
        "in [methods.md](methods.md), whose training attacks have the modes of their papers.",
        "",
        f"`python benchmarks/dynat_search.py`, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, "
        f"{platform.machine()}, one thread a run.",
    ]
    (RESULTS / "dynat_search.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--candidates", default=",".join(CANDIDATES))
    parser.add_argument(
        "--out", type=Path, default=Path("runs/dynat_study"), help="the study's folder: guides are shared"
    )
    parser.add_argument("--table", action="store_true", help="write the table of the finished runs only")
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds.split(","):
            for name in options.candidates.split(","):
                run(name, int(seed), options.out)
    stored = read_rows(RESULTS / "dynat_search.csv")
    for name in CANDIDATES:
        for out in options.out.glob(f"search_{name}-[0-9]*"):
            if (out / "evaluation_quick" / "summary.json").exists():
                seed = out.name.rpartition("-")[2]
                stored[name, seed] = numbers_of(name, int(seed), out)
    write(stored)


if __name__ == "__main__":
    main()
