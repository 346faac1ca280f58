"""Compare the predictions of `robustly bench` with real runs: attacks, suites and training.

    python benchmarks/performance_model.py [--rounds 3] [--clock wall] [--seconds 45] [--out FOLDER]

Two small networks are trained first. Then predictions and real runs take turns. A prediction never uses the run
that it is compared with: its robust accuracy is that of PGD-20 or `quick` on other images of the test set. With
`--clock cpu`, everything is processor time of one thread, for a machine that other programs use too. Writes
`benchmarks/results/performance_model.md`.
"""

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor

from robustly.cli import main as robustly
from robustly.data import ImageData, load_test
from robustly.evaluation import as_suite, evaluate, stages
from robustly.evaluation.suites.suite import Suite
from robustly.experiments.configuration import RunConfig
from robustly.experiments.run_folder import build_job, load_on_device, open_run
from robustly.files import write_text
from robustly.performance import Meter, Plan, Report, Survival, bench, machine, measure_step, survival_of
from robustly.performance.timing import CLOCKS
from robustly.runtime import Runtime
from robustly.training import train

RESULTS = Path(__file__).parent / "results" / "performance_model.md"
EARLIER = {"pgd_20": "pgd_20", "quick": "pgd_20", "standard": "quick", "aa_standard": "quick"}
"""Evaluation of other images from which each prediction takes its robust accuracy."""


@dataclass(frozen=True)
class Case:
    """A network that is trained for a short time.

    Args:
        title: name in the table.
        name: name of its run.
        settings: changes of the recipe `RECIPE`.
        counts: images of the real evaluations, by suite.
    """

    title: str
    name: str
    settings: tuple[str, ...]
    counts: Mapping[str, int]


RECIPE = "mnist5k/pgd_at"
CASES = (
    Case(
        "`small_cnn`, linf 0.3",
        "small_cnn",
        ("--training.epochs", "6", "--training.epsilon_ramp", "3"),
        {"pgd_20": 300, "quick": 300, "standard": 300, "aa_standard": 60},
    ),
    Case(
        "`resnet18` width 16, linf 0.1",
        "resnet18",
        (
            *("--model.name", "resnet18", "--model.width", "0.25", "--threat", "linf:0.1"),
            *("--training.epochs", "10", "--training.epsilon_ramp", "0", "--data.train_limit", "1000"),
            *("--data.validation", "100"),
        ),
        {"pgd_20": 60, "quick": 60, "standard": 60},
    ),
)


@dataclass(frozen=True)
class Ready:
    """A trained network with images for the real runs, and shares of other images for the predictions."""

    case: Case
    config: RunConfig
    model: torch.nn.Module
    data: ImageData
    earlier: dict[str, Survival]


def trained(case: Case, folder: Path) -> Path:
    """The run of a case, trained if it is not there."""
    run = folder / case.name
    if not (run / "model.safetensors").is_file():
        words = ["train", "--resume", str(run)] if run.exists() else ["train", RECIPE, *case.settings]
        if robustly([*words, *([] if run.exists() else ["--out", str(run)])]) != 0:
            raise SystemExit(f"{case.title} could not be trained")
    return run


def ready(case: Case, folder: Path) -> Ready:
    """Load a case. The second half of the first images is for the shares, the first half for the real runs."""
    run = trained(case, folder)
    config = open_run(run)
    loaded = load_on_device(run, config, load_test(config.data), lambda name: False)
    most = max(case.counts.values())
    other = loaded.data.select(torch.arange(most, min(2 * most, len(loaded.data))))
    earlier = {}
    for name in dict.fromkeys(EARLIER[name] for name in case.counts):
        found = evaluate(loaded.model, other, config.threat, suite_of(name, config), batch_size=128, curve="off")
        earlier[name] = survival_of(found, name)
    return Ready(case, config, loaded.model, loaded.data.select(torch.arange(most)), earlier)


def suite_of(name: str, config: RunConfig) -> Suite:
    return as_suite(name, config.threat)


def images(data: ImageData, count: int) -> Tensor:
    return data.floats(torch.arange(count) % len(data))


def predicted(here: Ready, meter: Meter, seconds: float) -> dict[str, Report]:
    """One measurement, and the predictions of each suite with the shares of its earlier evaluation."""

    def step(per_image: float, limit: float):
        job = build_job(here.config, lambda name: False)
        return measure_step(job, Runtime(here.config.runtime), meter, per_image=per_image, seconds=limit)

    found = {}
    parts = ["step", "attacks"]
    for earlier in here.earlier:
        names = [name for name in here.case.counts if EARLIER[name] == earlier]
        plan = Plan(
            seconds=seconds / 2,
            sizes=(1, 32, 128, 256),
            suites=[suite_of(name, here.config) for name in names],
            count=1000,
            devices=1,
            parts=parts,
        )
        report = bench(
            here.model,
            partial(images, here.data),
            here.data.num_classes,
            here.config.threat,
            plan,
            meter,
            survival=here.earlier[earlier],
            step=step,
        )
        found |= dict.fromkeys(names, report)
        if "step" in parts:
            found["training"] = report
        parts = ["attacks"]
    return found


def real(here: Ready, name: str, known_size: int, clock: str) -> tuple[float, int]:
    """Seconds of the attacks of an evaluation with their 8-bit images, and counted passes."""
    data = here.data.select(torch.arange(here.case.counts[name]))
    with patch.object(stages, "time", SimpleNamespace(perf_counter=CLOCKS[clock])):
        found = evaluate(
            here.model, data, here.config.threat, suite_of(name, here.config), known_size=known_size, curve="off"
        )
    seconds = sum(value or 0.0 for value in found.summary.seconds.values())
    columns = found.table.attacks.values()
    return seconds, len(data) + sum(int(one.forwards.sum() + one.backwards.sum()) for one in columns)


def real_epoch(here: Ready, clock: str) -> float:
    """Seconds of one epoch of training, validation and checkpoint included."""
    job = build_job(here.config, lambda name: False)
    job = replace(job, training=replace(job.training, epochs=1, epsilon_ramp=0.0))
    with tempfile.TemporaryDirectory() as folder:
        began = CLOCKS[clock]()
        train(job, Runtime(here.config.runtime), Path(folder), config_digest="benchmark")
        return CLOCKS[clock]() - began


def rows_of(case: Case, folder: Path, rounds: int, clock: str, seconds: float) -> list[str]:
    """Measure a case, predictions and real runs in turn."""
    here, meter = ready(case, folder), Meter(clock)  # type: ignore[arg-type]
    guesses: dict[str, list[float]] = {name: [] for name in (*case.counts, "training")}
    truths: dict[str, list[float]] = {name: [] for name in guesses}
    passes: dict[str, tuple[int, int]] = {}
    for _ in range(rounds):
        reports = predicted(here, meter, seconds)
        for name, count in case.counts.items():
            one = next(suite for suite in reports[name].suites if suite.suite == suite_of(name, here.config).name)
            scale = count / one.count
            guesses[name].append(one.expected.median * scale)
            taken, counted = real(here, name, reports[name].choices.batch_size, clock)
            truths[name].append(taken)
            passes[name] = round(one.passes[1] * scale), counted
        guesses["training"].append(reports["training"].step.epoch.median)
        truths["training"].append(real_epoch(here, clock))
    rows = []
    for name, found in guesses.items():
        guess, truth = statistics.median(found), statistics.median(truths[name])
        ratios = sorted(one / other for one, other in zip(found, truths[name], strict=True))
        work = "one epoch of PGD-AT" if name == "training" else f"`{name}`, {case.counts[name]} images"
        counted = f"{passes[name][0]:,} / {passes[name][1]:,}" if name in passes else ""
        rows.append(
            f"| {case.title} | {work} | {guess:.1f} | {truth:.1f} | {guess / truth:.2f} "
            f"| {ratios[0]:.2f} to {ratios[-1]:.2f} | {counted} |"
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=45.0, help="time of the measurements of one prediction")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path, default=Path("runs/performance_model"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = [
        row for case in CASES for row in rows_of(case, options.out, options.rounds, options.clock, options.seconds)
    ]
    columns = ["network", "work", "predicted, s", "real, s", "predicted / real", "of single rounds"]
    columns.append("passes, predicted / counted")
    clock = (
        "time of the wall clock"
        if options.clock == "wall"
        else "processor time, as other programs used the machine"
    )
    here = machine()
    text = "\n".join(
        [
            "# Predicted and real time",
            "",
            "MNIST digits; networks trained for a few epochs of `mnist5k/pgd_at`.",
            "",
            f"Medians of {options.rounds} rounds in which prediction and real run take turns, one thread, {clock}. "
            f"A prediction measures for about {options.seconds:g} s. Its robust accuracy is that of PGD-20 (for "
            "`pgd_20` and `quick`) or of `quick` (for the others) on as many other test images. The real time of "
            "an evaluation is that of its attacks, with the search for 8-bit images.",
            "",
            f"| {' | '.join(columns)} |",
            f"| {' | '.join(['---'] * len(columns))} |",
            *rows,
            "",
            f"`python benchmarks/performance_model.py --rounds {options.rounds} --clock {options.clock} "
            f"--seconds {options.seconds:g}`, {(time.perf_counter() - began) / 60:.0f} min, "
            f"{datetime.date.today()}, torch {torch.__version__}, {here['processor']}, {here['cores']} cores.",
            "",
        ]
    )
    write_text(RESULTS, text)
    print(text)


if __name__ == "__main__":
    main()
