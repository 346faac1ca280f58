"""Compare the predictions of `robustly bench` with real runs: attacks, suites and training.

    python benchmarks/performance_model.py [--rounds 3] [--clock wall] [--seconds 90] [--out FOLDER]

Two small networks are trained first. Then predictions and real runs take turns, each in a process of its own as
the commands are, because the first passes of a process compile code. A prediction never uses the run that it is
compared with: its robust accuracy is that of PGD-20 or `quick` on other images of the test set. With
`--clock cpu`, everything is processor time of one thread, for a machine that other programs use too. Writes
`benchmarks/results/performance_model.md`.
"""

import argparse
import datetime
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from robustly.cli import main as robustly
from robustly.cli.allocator import keep_compiled_code, keep_freed_memory
from robustly.data import ImageData, load_test
from robustly.evaluation import as_suite, evaluate, stages
from robustly.evaluation.suites.suite import Suite
from robustly.experiments.configuration import RunConfig
from robustly.experiments.run_folder import build_job, load_on_device, open_run
from robustly.files import write_text
from robustly.performance import Meter, Plan, StepTime, Survival, bench, machine, measure_step, survival_of
from robustly.performance.timing import CLOCKS, ClockName
from robustly.runtime import Runtime
from robustly.training import train

Given = ParamSpec("Given")
Found = TypeVar("Found")
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


def alone(work: Callable[Given, Found], *given: Given.args, **named: Given.kwargs) -> Found:
    """The result of a function that runs in a new process, with the settings of the commands."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_as_a_command) as pool:
        return pool.submit(work, *given, **named).result()


def _as_a_command() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    keep_compiled_code()


def trained(case: Case, folder: Path) -> Path:
    """The run of a case, trained if it is not there."""
    run = folder / case.name
    if not (run / "model.safetensors").is_file():
        words = ["train", "--resume", str(run)] if run.exists() else ["train", RECIPE, *case.settings]
        if robustly([*words, *([] if run.exists() else ["--out", str(run)])]) != 0:
            raise SystemExit(f"{case.title} could not be trained")
    return run


def loaded(case: Case, folder: Path) -> tuple[RunConfig, torch.nn.Module, ImageData]:
    """The settings, the network and the test images of a case."""
    run = folder / case.name
    config = open_run(run)
    found = load_on_device(run, config, load_test(config.data), lambda name: False)
    return config, found.model, found.data


def earlier(case: Case, folder: Path) -> dict[str, Survival]:
    """The shares of evaluations of images after those of the real runs."""
    config, model, data = loaded(case, folder)
    most = max(case.counts.values())
    other = data.select(torch.arange(most, min(2 * most, len(data))))
    shares = {}
    for name in dict.fromkeys(EARLIER[name] for name in case.counts):
        found = evaluate(model, other, config.threat, suite_of(name, config), batch_size=128, curve="off")
        shares[name] = survival_of(found, name)
    return shares


def suite_of(name: str, config: RunConfig) -> Suite:
    return as_suite(name, config.threat)


@dataclass(frozen=True)
class Guess:
    """A prediction: seconds, counted passes, and the batch size that it found best."""

    seconds: float
    passes: int
    batch_size: int


def predicted(
    case: Case, folder: Path, shares: Mapping[str, Survival], clock: ClockName, seconds: float
) -> dict[str, Guess]:
    """One measurement, and the predictions of each suite with the shares of its earlier evaluation."""
    (config, model, data), meter = loaded(case, folder), Meter(clock)

    def step(per_image: float, limit: float) -> StepTime:
        job = build_job(config, lambda name: False)
        return measure_step(job, Runtime(config.runtime), meter, per_image=per_image, seconds=limit)

    def images(count: int) -> Tensor:
        return data.floats(torch.arange(count) % len(data))

    found = {}
    groups = list(dict.fromkeys((EARLIER[name], count) for name, count in case.counts.items()))
    for number, (source, count) in enumerate(groups):
        names = [name for name in case.counts if (EARLIER[name], case.counts[name]) == (source, count)]
        plan = Plan(
            seconds=seconds / len(groups),
            sizes=(1, 32, 128, 256),
            suites=[suite_of(name, config) for name in names],
            count=count,
            devices=1,
            parts=["attacks"] if number else ["step", "attacks"],
        )
        given = step if number == 0 else None
        report = bench(
            model, images, data.num_classes, config.threat, plan, meter, survival=shares[source], step=given
        )
        size = report.choices.batch_size
        for name, one in zip(names, report.suites, strict=True):
            found[name] = Guess(one.expected.median, one.passes[1], size)
        if report.step is not None:
            found["training"] = Guess(report.step.epoch.median, 0, size)
    return found


def real(case: Case, folder: Path, name: str, known_size: int, clock: ClockName) -> tuple[float, int]:
    """Seconds of the attacks of an evaluation with their 8-bit images, and counted passes."""
    config, model, data = loaded(case, folder)
    data = data.select(torch.arange(case.counts[name]))
    with patch.object(stages, "time", SimpleNamespace(perf_counter=CLOCKS[clock])):
        found = evaluate(model, data, config.threat, suite_of(name, config), known_size=known_size, curve="off")
    seconds = sum(value or 0.0 for value in found.summary.seconds.values())
    columns = found.table.attacks.values()
    return seconds, len(data) + sum(int(one.forwards.sum() + one.backwards.sum()) for one in columns)


def real_epoch(case: Case, folder: Path, clock: ClockName) -> float:
    """Seconds of one epoch of training, validation and checkpoint included."""
    config = open_run(folder / case.name)
    job = build_job(config, lambda name: False)
    job = replace(job, training=replace(job.training, epochs=1, epsilon_ramp=0.0))
    with tempfile.TemporaryDirectory() as scratch:
        began = CLOCKS[clock]()
        train(job, Runtime(config.runtime), Path(scratch), config_digest="benchmark")
        return CLOCKS[clock]() - began


def rows_of(case: Case, folder: Path, rounds: int, clock: ClockName, seconds: float) -> list[str]:
    """Measure a case, predictions and real runs in turn."""
    trained(case, folder)
    shares = alone(earlier, case, folder)
    guesses: dict[str, list[float]] = {name: [] for name in (*case.counts, "training")}
    truths: dict[str, list[float]] = {name: [] for name in guesses}
    passes: dict[str, tuple[int, int]] = {}
    for _ in range(rounds):
        guessed = alone(predicted, case, folder, shares, clock, seconds)
        for name, one in guessed.items():
            guesses[name].append(one.seconds)
        for name in case.counts:
            taken, counted = alone(real, case, folder, name, guessed[name].batch_size, clock)
            truths[name].append(taken)
            passes[name] = guessed[name].passes, counted
        truths["training"].append(alone(real_epoch, case, folder, clock))
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
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="time of the measurements of both predictions of a network"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="printed, not written")
    parser.add_argument("--works", nargs="+", choices=list(EARLIER), help="printed, not written")
    parser.add_argument("--out", type=Path, default=Path("runs/performance_model"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    chosen = [case for case in CASES if case.name in (options.cases or [case.name])]
    if options.works:
        counts = {case.name: {name: case.counts[name] for name in options.works} for case in chosen}
        chosen = [replace(case, counts=counts[case.name]) for case in chosen]
    rows = [
        row for case in chosen for row in rows_of(case, options.out, options.rounds, options.clock, options.seconds)
    ]
    if options.cases or options.works:
        return
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
            f"Medians of {options.rounds} rounds in which predictions and real runs take turns, each in its own "
            f"process, one thread, {clock}. Predictions are made from two earlier evaluations, and measure for "
            f"about {options.seconds / 2:g} s with each (the default of `bench` is 45 s). Their robust accuracy is "
            "that of PGD-20 (for `pgd_20` and `quick`) or of `quick` (for the others) on as many other test "
            "images. The real time of an evaluation is that of its attacks, with the search for 8-bit images.",
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
