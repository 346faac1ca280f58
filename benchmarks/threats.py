"""Compare standard training, PGD-AT and training against several threats, under threats of nine kinds.

    python benchmarks/threats.py --data mnist|cifar10 [--methods NAME ...] [--seeds 0 1 2] [--out FOLDER]
    python benchmarks/threats.py --data mnist --dry-run      # passes, and an estimate of the time by tiny runs
    python benchmarks/threats.py --data mnist --routes       # attack the branches of finished runs with domains
    python benchmarks/threats.py --table                     # write the page of the stored rows only

MNIST: the 5,000 digits that robustly ships (3,500 for training), `small_cnn` of half the width. CIFAR-10: 5,000
images of `$ROBUSTLY_SHARED_DATA/cifar10-jpeg` (JPEG q75: numbers on it are not comparable with published ones), a
ResNet-18 of a quarter of the width from scratch. All methods share data, optimiser and epochs, and their training
attacks have the same number of steps under each threat; composite AT has two for each part of its chain.

Every threat is evaluated on the same test images. Lp balls have the suite `quick`; other threats have 20 random
draws and PGD-20 on the margin from two starts, flows also StAdv, chains in any order also the composite attack, and
all 15 corruptions are tried at severities 1 to 3. An image counts as broken under a threat if any attack breaks it.
The mean over the threats is not a worst case; the union counts the images that no attack under any threat breaks.
The Lp union is that of linf, l2 and l1 alone. On MNIST the 15 corruptions of MNIST-C are a further column, which
counts neither in the mean nor in the unions. Where `--routes` has run, a network with threat domains has a second
row: there an image also counts as broken if PGD-20 on one of its branches, or on class and route, breaks it.

Rules, fixed before the first run, for differences between methods, paired by seed, and their standard error: a
method **reaches** another if it is no more than two standard errors below it, and is **above** it by more than two.
Both need at least two seeds.

Methods whose recipe is missing are named as not run. Finished runs are kept, and stopped ones go on. Writes
`threats_mnist.csv`, `threats_cifar10.csv`, the same with `_routes`, and `threats.md` into `benchmarks/results`.
"""

import argparse
import contextlib
import csv
import io
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from methods import RESULTS, words
from robustly.cli import main as robustly
from robustly.evaluation.suites.cost import announced_cost
from robustly.evidence.unions import read_rows, union_of_threats
from robustly.threats import parse_threat
from threats_page import write_page
from threats_plan import LP, METHODS, SETUPS, recipe_of, settings_of
from threats_routes import accuracy_by_route, shares_with_branches

Row = dict[str, str]
ROUTES = "_routes"
"""End of the names of tables with attacks on the branches."""
TINY = 256
"""Training images of the runs that measure the time."""


def columns_of(data: str) -> tuple[str, ...]:
    """Columns of the table of rows."""
    setup = SETUPS[data]
    accuracies = ("clean", *setup.columns, "mean", "lp_union", "union", *setup.further, "pgd_mean", "forced_mean")
    return ("method", "seed", *accuracies, "forward", "backward", "parameters", "train_minutes", "images")


def run(data: str, method: str, seed: int, folder: Path) -> Row:
    """Train and evaluate one run, or continue it; returns its row, accuracies in %."""
    out = folder / data / f"{method}-{seed}"
    recipe = recipe_of(data, method)
    assert recipe is not None
    settings = settings_of(data, method) | {"seed": str(seed)}
    train = ["train", recipe, "--out", str(out), *words(settings)]
    if (out / "config.yaml").exists():
        train = ["train", "--resume", str(out)]
    if not (out / "model.safetensors").exists():
        command(train)
    for name in (*SETUPS[data].columns, *SETUPS[data].further):
        evaluate(data, name, out)
    return row_of(data, method, seed, out)


def evaluate(data: str, name: str, out: Path) -> None:
    """Evaluate under one threat, in a folder of its own."""
    setup = SETUPS[data]
    column = {**setup.columns, **setup.further}[name]
    asked = ["evaluate", str(out), *column.words(name), "--as", name, "--keep"]
    command([*asked, "--evaluation.count", str(setup.images), "--evaluation.curve", "off"])


def command(line: Sequence[str]) -> None:
    """Run a command of robustly; leave if it fails."""
    if robustly(list(line)) != 0:
        sys.exit(f"{' '.join(line)} failed")


def row_of(data: str, method: str, seed: int, out: Path) -> Row:
    """The row of a finished run, accuracies in %."""
    names = list(SETUPS[data].columns)
    found = {name: read_rows(out / f"evaluation_{name}") for name in names}
    everything = union_of_threats(list(found.values()))
    lp = union_of_threats([found[name] for name in LP])
    shares = {"clean": everything.clean.share}
    shares |= {name: one.robust.share for name, one in zip(names, everything.threats, strict=True)}
    shares |= {"mean": everything.average.accuracy, "lp_union": lp.union.share, "union": everything.union.share}
    for name in SETUPS[data].further:
        shares[name] = read_rows(out / f"evaluation_{name}").summary.metrics.worst_case.robust.share
    if method.startswith("tafd"):
        texts = [column.text for name, column in SETUPS[data].columns.items() if name != "corruptions"]
        shares["pgd_mean"], shares["forced_mean"] = accuracy_by_route(out, texts, METHODS[method].routed)
    forward, backward, parameters = announced(data, method)
    minutes = json.loads((out / "status.json").read_text())["seconds"] / 60
    return {
        **dict.fromkeys(columns_of(data), ""),
        "method": method,
        "seed": str(seed),
        **{key: f"{100 * value:.1f}" for key, value in shares.items()},
        "forward": str(forward),
        "backward": str(backward),
        "parameters": str(parameters),
        "train_minutes": f"{minutes:.1f}",
        "images": str(everything.clean.count),
    }


def routed_row(data: str, method: str, seed: int, out: Path) -> Row:
    """The row of a finished run with attacks on the branches of its network, accuracies in %."""
    texts = {name: column.text for name, column in SETUPS[data].columns.items()}
    shares = shares_with_branches(out, texts, ("corruptions",), LP)
    row = {"method": method, "seed": str(seed), **{key: f"{100 * value:.1f}" for key, value in shares.items()}}
    return row | {"images": str(SETUPS[data].images)}


def attack_branches(data: str, methods: Sequence[str], seeds: Sequence[int], folder: Path) -> None:
    """Attack the branches of finished runs, and store their rows."""
    for method in methods:
        for seed in seeds:
            out = folder / data / f"{method}-{seed}"
            if not METHODS[method].routed:
                continue
            if not all((out / f"evaluation_{name}").is_dir() for name in SETUPS[data].columns):
                print(f"not attacked: {out} is not a finished run")
                continue
            stored = read_table(data, ROUTES)
            stored[method, str(seed)] = routed_row(data, method, seed, out)
            write_table(data, stored, ROUTES)


def announced(data: str, method: str) -> tuple[int, int, int]:
    """Forward and backward passes per training image, and the parameters of the model, by `train --dry-run`."""
    recipe = recipe_of(data, method)
    assert recipe is not None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command(["train", recipe, *words(settings_of(data, method)), "--dry-run"])
    rows = re.findall(r"│ \w+ +│ +(\d+) │ +(\d+) │", printed.getvalue())
    sizes = re.search(r"parameters: model ([\d,]+)", printed.getvalue())
    if not rows or sizes is None:
        sys.exit(f"the announced cost of {recipe} is not understood: {printed.getvalue()}")
    forward, backward = (sum(map(int, column)) for column in zip(*rows, strict=True))
    return forward, backward, int(sizes[1].replace(",", ""))


def estimate(data: str, methods: Sequence[str], seeds: int) -> None:
    """Print passes and an estimate of the processor's minutes of each method, from runs on few images."""
    setup, everything, per_pass = SETUPS[data], 0.0, math.inf
    evaluated = sum(
        announced_cost(column.suite(f"{name} stages"), parse_threat(column.text), setup.images, 10).per_image
        for name, column in setup.columns.items()
    )
    print(f"{data}: {setup.epochs} epochs of {setup.examples:,} images; {evaluated:,.0f} passes per test image")
    for method in methods:
        forward, backward, parameters = announced(data, method)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            recipe = recipe_of(data, method)
            assert recipe is not None
            tiny = {"data.train_limit": str(TINY + 64), "data.validation": "64"}
            settings = settings_of(data, method, epochs=2) | tiny
            began = time.perf_counter(), time.process_time()
            command(["train", recipe, "--out", f"{folder}/run", *words(settings)])
            share = (time.process_time() - began[1]) / (time.perf_counter() - began[0])
            with (Path(folder) / "run" / "metrics.csv").open(encoding="utf-8") as file:
                first, second = (float(row["seconds"]) for row in csv.DictReader(file))  # since the start
        seconds = share * (second - first) / TINY  # of one image; the first epoch prepares
        training = seconds * setup.examples * setup.epochs / 60
        per_pass = min(per_pass, seconds / (forward + backward))
        evaluation = per_pass * evaluated * setup.images * setup.robust_share / 60
        everything += training + evaluation
        print(
            f"{method:13s} {parameters:,} parameters, {forward} + {backward} passes: training about "
            f"{training:.1f} CPU minutes, evaluation at most about {evaluation:.1f}"
        )
    print(f"all of them: about {everything:.0f} CPU minutes a seed, {everything * seeds:.0f} for {seeds} seeds")


def read_table(data: str, suffix: str = "") -> dict[tuple[str, str], Row]:
    """Stored rows by method and seed; empty without a table."""
    table = RESULTS / f"threats_{data}{suffix}.csv"
    if not table.exists():
        return {}
    with table.open(encoding="utf-8") as file:
        return {(row["method"], row["seed"]): row for row in csv.DictReader(file)}


def write_table(data: str, stored: dict[tuple[str, str], Row], suffix: str = "") -> None:
    """Write the rows in the order of the methods and the seeds."""
    names = list(METHODS)
    keys = sorted(stored, key=lambda key: (names.index(key[0]), int(key[1])))
    columns = ("method", "seed", "clean", *SETUPS[data].columns, "mean", "lp_union", "union", "images")
    names_of_columns = columns if suffix == ROUTES else columns_of(data)
    with (RESULTS / f"threats_{data}{suffix}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names_of_columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(stored[key] for key in keys)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", choices=tuple(SETUPS), help="both need two calls")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/threats"), help="folder of the runs")
    parser.add_argument("--dry-run", action="store_true", help="print passes and estimated CPU minutes only")
    parser.add_argument(
        "--routes", action="store_true", help="attack the branches of finished runs, without training"
    )
    parser.add_argument("--table", action="store_true", help="write the page of the stored rows only")
    options = parser.parse_args()
    if options.data is None and not options.table:
        parser.error("--data names the data: mnist or cifar10")
    if options.data is not None and not options.table:
        there = [name for name in options.methods if recipe_of(options.data, name) is not None]
        for name in options.methods:
            if name not in there:
                print(f"not run: {name} ({METHODS[name].title}): there is no recipe of it")
        if options.dry_run:
            estimate(options.data, there, len(options.seeds))
            return
        if options.routes:
            attack_branches(options.data, there, options.seeds, options.out)
        for seed in [] if options.routes else options.seeds:
            for name in there:
                row = run(options.data, name, seed, options.out)
                stored = read_table(options.data)  # anew, for another process may have written meanwhile
                stored[name, str(seed)] = row
                write_table(options.data, stored)
    stored_rows, routed = (
        {data: list(read_table(data, kind).values()) for data in SETUPS} for kind in ("", ROUTES)
    )
    write_page(stored_rows, routed, __doc__ or "")


if __name__ == "__main__":
    main()
