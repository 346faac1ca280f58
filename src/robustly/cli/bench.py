"""`robustly bench`."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from robustly.cli.arguments import trust_in
from robustly.cli.bench_tables import print_report
from robustly.cli.recipes import read_recipe
from robustly.cli.subject import run_of_command
from robustly.cli.terminal import PlainConsole, print_text
from robustly.data import ImageData, load_test
from robustly.evaluation.suites import PROTOCOLS
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.suite import Suite
from robustly.evidence import read_evidence, read_summary
from robustly.evidence.schema import SUMMARY
from robustly.experiments.configuration import RunConfig, build_config, with_absolute_paths
from robustly.experiments.keys import UNTRAINED
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.run_folder import (
    EVALUATION,
    Trusts,
    build_job,
    build_network,
    evaluation_data,
    load_on_device,
)
from robustly.files import write_json
from robustly.models.layout import in_fastest_layout
from robustly.performance import (
    BenchError,
    Meter,
    Plan,
    StepTime,
    Survival,
    bench,
    keep,
    key_of,
    measure_step,
    survival_of,
)
from robustly.performance.bench import check_seconds
from robustly.performance.passes import CPU_SIZES, GPU_SIZES
from robustly.performance.timing import ClockName
from robustly.randomness import derive_seed
from robustly.runtime import Runtime, device_of
from robustly.threats import Threat
from robustly.training.engine.loop import BEST, FINAL


@dataclass(frozen=True)
class BenchOptions:
    """Options of `robustly bench`.

    Args:
        seconds: time for the measurements.
        suites: names of suites or attacks.
        all_suites: whether a suite that is not defined for the threat is an error; else it is left out.
        count: images of a predicted evaluation.
        devices: devices of a predicted evaluation.
        sizes: batch sizes; empty for the usual ones.
        parts: what is measured.
        clock: "wall" or "cpu".
        json: file for all numbers; None for none.
        keeps: whether the choices are kept in the cache.
    """

    seconds: float
    suites: tuple[str, ...]
    all_suites: bool
    count: int
    devices: int
    sizes: tuple[int, ...]
    parts: tuple[str, ...]
    clock: ClockName
    json: Path | None
    keeps: bool

    def check(self) -> None:
        """Refuse options before any work.

        Raises:
            BenchError: a number out of range, or a file whose folder does not exist.
        """
        check_seconds(self.seconds)
        for name, value in (("images", self.count), ("devices", self.devices)):
            if value < 1:
                raise BenchError(f"--{name} must be at least 1, got {value}")
        if any(size < 1 for size in self.sizes):
            raise BenchError(f"--batch-sizes must be at least 1, got {min(self.sizes)}")
        if self.json is not None and (self.json.is_dir() or not self.json.absolute().parent.is_dir()):
            raise BenchError(f"--json {self.json}: name a file in a folder that exists")


@dataclass(frozen=True)
class Benched:
    """A model to measure.

    Args:
        config: its settings, with one threat.
        folder: its run; None for a recipe or a model without one.
        model: the network, in evaluation mode, on the device.
        data: test images on the device.
    """

    config: RunConfig
    folder: Path | None
    model: nn.Module
    data: ImageData


def run_bench(
    place: Path | None, recipe: str | None, overrides: list[str], trust_code: bool, options: BenchOptions
) -> int:
    """Measure a model and print tables and predictions; returns the exit code. Writes nothing into a run.

    Args:
        place: the run, or a model that was trained elsewhere; see `given_run`.
        recipe: a recipe in its place.
        overrides: settings.
        trust_code: whether models that only a file names may be imported.
        options: the other options.

    Raises:
        ValueError: wrong options, settings, weights or data; a model that fails in every pass.
        OSError: files that cannot be read or written.
    """
    options.check()
    trusts = trust_in(overrides, trust_code).allows
    config, folder = _config(place, recipe, overrides)
    suites = _suites(options.suites, config.threat, options.all_suites)
    device = device_of(config.runtime)
    console = PlainConsole()
    with _threads(options.clock):
        subject = _subject(config, folder, device, trusts)
        meter = Meter(options.clock, device)
        plan = Plan(
            seconds=options.seconds,
            sizes=sorted(set(options.sizes)) or (CPU_SIZES if device.type == "cpu" else GPU_SIZES),
            suites=suites,
            count=options.count,
            devices=options.devices,
            mode=config.evaluation.mode,
            curve_count=config.evaluation.curve_count,
            parts=options.parts,
        )
        report = bench(
            subject.model,
            partial(_first, subject.data),
            subject.data.num_classes,
            config.threat,
            plan,
            meter,
            survival=_survival(folder, config.threat),
            step=None if config.recipe == UNTRAINED else partial(_step, config, trusts, meter),
            note=lambda part: print_text(console, f"measuring: {part}"),
        )
        key = key_of(subject.model, subject.data.shape, device)
    print_report(console, report, config.recipe)
    several = any(one.seconds and one.batch_size > 1 for one in report.passes.times)
    if options.keeps and several:  # one image at a time is a measurement that was too short, not a choice
        try:
            print_text(console, f"kept for robustly evaluate: {keep(key, report.choices)}")
        except OSError as error:
            warnings.warn(f"the choices are not kept: {error}", stacklevel=2)
    if options.json is not None:
        write_json(options.json, report.as_plain())
        print_text(console, f"all numbers: {options.json}")
    return 0


def _config(place: Path | None, recipe: str | None, overrides: list[str]) -> tuple[RunConfig, Path | None]:
    """Settings with the first threat, and the folder of a run that exists.

    Raises:
        BenchError: a run and a recipe.
    """
    if recipe is not None:
        if place is not None:
            raise BenchError(f"name a run or --recipe, not both: got {place} and {recipe}")
        return with_absolute_paths(build_config(apply_overrides(read_recipe(recipe), overrides))), None
    run = run_of_command(place, overrides)
    return run.config, None if run.is_new else run.folder


def _suites(names: tuple[str, ...], threat: Threat, every: bool) -> list[Suite]:
    """Suites by name; without `every`, those that are defined for the threat.

    Raises:
        ValueError: an unknown suite, one that is not defined for the threat, or one of several threats.
    """
    found = []
    for name in names:
        if name in PROTOCOLS:
            raise BenchError(f"--suites takes suites under one threat, and {name} has several")
        try:
            suite = suite_from(name, None, threat)
            unfit = [one for one, attack in suite.attacks.items() if not attack.needs.accept(threat)]
            if unfit:
                raise BenchError(f"suite {name}: {unfit[0]} is {suite.attacks[unfit[0]].needs.refusal(threat)}")
        except ValueError:
            if every:
                raise
            continue
        found.append(suite)
    return found


@contextmanager
def _threads(clock: ClockName) -> Iterator[None]:
    """Use one thread if processor time is measured, which counts that of all threads."""
    before = torch.get_num_threads()
    if clock == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _subject(config: RunConfig, folder: Path | None, device: torch.device, trusts: Trusts) -> Benched:
    """The network with its weights, or with new ones if there are none yet, and the test images."""
    data = load_test(evaluation_data(config))
    has_file = folder is not None and any((folder / name).is_file() for name in (FINAL, BEST))
    if has_file or config.model.weights is not None or (":" in config.model.name and config.recipe == UNTRAINED):
        loaded = load_on_device(folder or Path(), config, data, trusts)
        return Benched(config, folder, loaded.model, loaded.data)
    model = build_network(config.model, data, derive_seed(config.seed, "model"), trusts).eval().to(device)
    placed = data.to(device)
    return Benched(config, folder, in_fastest_layout(model, placed.first(2)), placed)


def _first(data: ImageData, count: int) -> Tensor:
    """The first images, `(count, C, H, W)`; they are repeated if there are fewer."""
    return data.floats(torch.arange(count, device=data.device) % len(data))


def _survival(folder: Path | None, threat: Threat) -> Survival | None:
    """The shares of the run's evaluation under this threat with the most images; None without one."""
    if folder is None:
        return None
    found: list[tuple[int, Path]] = []
    for one in sorted(folder.glob(f"{EVALUATION}*")):
        if (one / SUMMARY).is_file():
            try:
                summary = read_summary(one)
            except ValueError as error:
                warnings.warn(f"{one} is left out: {error}", stacklevel=2)
                continue
            if summary.threat.text == str(threat) and summary.suite.attacks:
                found.append((-summary.data.count, one))
    if not found:
        return None
    best = min(found)[1]
    return survival_of(read_evidence(best), best.name)


def _step(config: RunConfig, trusts: Trusts, meter: Meter, per_image: float, seconds: float) -> StepTime:
    """Measure the training step of a recipe."""
    job = build_job(config, trusts)
    runtime = Runtime(replace(config.runtime, processes=1, nodes=1, strategy="ddp"))
    return measure_step(job, runtime, meter, per_image=per_image, seconds=seconds)
