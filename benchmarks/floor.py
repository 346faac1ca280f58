"""State speed against the floor: PGD-20 evaluation and PGD-10 training step beside bare float32 passes.

    ROBUSTLY_SHARED_DATA=FOLDER python benchmarks/floor.py [--networks small_cnn ...] [--rounds 5] [--clock wall]

Trains a small_cnn on MNIST digits, and resnet18 of width 16 and 64 on CIFAR-10 images of FOLDER/cifar10-jpeg, for
one to three minutes each, where they are not in `--out` yet. PGD-20 of all kinds and its bare passes take turns on
test images that the network classifies correctly; verdicts of the searches in float32 and in bfloat16 are compared.
The training steps are those of `training_speed.py`. Medians over the rounds of the ratios within a round. Writes
`benchmarks/results/floor.md`.
"""

import argparse
import copy
import datetime
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from robustly import PGD, ThreatModel
from robustly.attacks.core.model_access import half_precision_copy
from robustly.cli import main as robustly
from robustly.cli.allocator import keep_compiled_code, keep_freed_memory
from robustly.data import load_test
from robustly.experiments.run_folder import load_on_device, open_run
from robustly.files import write_text
from robustly.models.layout import put_in_layout
from robustly.performance import machine
from robustly.performance.timing import CLOCKS
from robustly.randomness import KeyedGenerator
from training_speed import CASES as STEP_CASES
from training_speed import METHODS, step_rounds

RESULTS = Path(__file__).parent / "results" / "floor.md"
PROFILE = Path(__file__).parent / "results" / "step_profile.md"
STEPS = 20
EVALUATION_BARS, STEP_BARS = (1.05, 0.42), (1.05, 0.45)
"""Largest time in float32 and in bfloat16, relative to the bare passes."""


@dataclass(frozen=True)
class Case:
    """A network, its short training, and the images that are attacked.

    Args:
        words: recipe and settings of `robustly train`.
        cifar: whether the data are those of `ROBUSTLY_SHARED_DATA`.
        epsilon: size of the linf threat of PGD-20.
        count: images, all classified correctly.
        batch: images at a time.
    """

    words: tuple[str, ...]
    cifar: bool
    epsilon: float
    count: int
    batch: int


def _cifar(width: float, images: int, epochs: int) -> tuple[str, ...]:
    """Fast-AT of a resnet18 at a small epsilon, on a few images."""
    return (
        *("cifar10/fast_at", "--threat", "linf:2/255", "--model.name", "resnet18", "--model.width", str(width)),
        *("--data.train_limit", str(images + 100), "--data.validation", "100", "--training.epochs", str(epochs)),
        *("--training.batch_size", "32", "--training.stop_after_drop", "null", "--training.validation_steps", "1"),
        *("--optimizer.name", "adamw", "--optimizer.learning_rate", "0.003"),
    )


CASES = {
    "small_cnn": Case(
        ("mnist5k/pgd_at", "--model.width", "1", "--training.epochs", "5", "--training.epsilon_ramp", "2"),
        False,
        0.3,
        512,
        128,
    ),
    "resnet18 width 16": Case(_cifar(0.25, 3000, 4), True, 2 / 255, 128, 64),
    "resnet18 width 64": Case(_cifar(1, 1200, 2), True, 2 / 255, 48, 16),
}


def bare_steps(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """The passes of gradient ascent: forward and backward to the input. The parameters require no gradient."""
    for _ in range(steps):
        point = x.detach().requires_grad_()
        loss = nn.functional.cross_entropy(model(point), y, reduction="sum")
        torch.autograd.grad(loss, point)


def searches(steps: int) -> dict[str, PGD]:
    """PGD with steps of epsilon / 4, with and without active set, in both precisions."""
    active = PGD(steps=steps, relative_step_size=0.25)
    every = replace(active, early_stop=False)
    halves = {
        f"bfloat16, {name}": replace(one, precision="bfloat16") for name, one in _named(active, every).items()
    }
    return {**_named(active, every), **halves}


def _named(active: PGD, every: PGD) -> dict[str, PGD]:
    return {"active set": active, "every image kept": every}


def victim(name: str, case: Case, folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained network, and test images that it classifies correctly."""
    run = folder / name.replace(" ", "_")
    if not (run / "model.safetensors").is_file():
        source = []
        if case.cifar:
            shared = os.environ.get("ROBUSTLY_SHARED_DATA")
            if not shared or not (Path(shared) / "cifar10-jpeg").is_dir():
                sys.exit("set ROBUSTLY_SHARED_DATA to a folder with cifar10-jpeg/train.parquet and test.parquet")
            source = ["--data.source", str((Path(shared) / "cifar10-jpeg").resolve()), "--data.test_limit", "1000"]
        begun = ["--resume", str(run)] if run.exists() else [*case.words, "--out", str(run), *source]
        if robustly(["train", *begun]) != 0:
            sys.exit(f"{name} could not be trained")
    config = open_run(run)
    loaded = load_on_device(run, config, load_test(config.data), lambda _: False)
    x, y = loaded.data.floats(), loaded.data.labels
    with torch.no_grad():
        correct = torch.cat([loaded.model(some).argmax(1) for some in x.split(100)]) == y
    place = correct.nonzero()[: case.count, 0]
    if len(place) < case.count:
        print(f"{name} classifies only {len(place)} of {len(x)} test images correctly", file=sys.stderr)
    return loaded.model.requires_grad_(False), x[place], y[place]


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and ids of each batch."""
    return list(zip(x.split(size), y.split(size), torch.arange(len(x)).split(size), strict=True))


def evaluated(
    model: nn.Module, x: Tensor, y: Tensor, case: Case, rounds: int, now: Callable[[], float]
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of PGD-20 and of bare passes, in turn after a round that does not count, and the verdicts.

    The floor has the usual layout of PyTorch, as code written by hand. The rest has the faster layout, as in the
    commands.
    """
    threat, parts = ThreatModel("linf", case.epsilon), batches(x, y, case.batch)
    plain, half = copy.deepcopy(model), half_precision_copy(model, x)
    put_in_layout(plain, torch.contiguous_format)
    assert half is not None
    broken: dict[str, Tensor] = {}

    def search(name: str, attack: PGD) -> None:
        found = [attack(model, a, b, threat=threat, generator=KeyedGenerator(0, ids)) for a, b, ids in parts]
        broken[name] = torch.cat([one.broken for one in found])

    def bare(net: nn.Module, further: int) -> None:
        """20 steps, and further forward passes."""
        for a, b, _ in parts:
            bare_steps(net, a, b, STEPS)
            with torch.no_grad():
                for _ in range(further):
                    net(a)

    works: dict[str, Callable[[], None]] = {
        "floor": lambda: bare(plain, 0),
        "passes": lambda: bare(model, 2),
        "bfloat16 passes": lambda: bare(half, 2),
        **{name: lambda name=name, one=one: search(name, one) for name, one in searches(STEPS).items()},  # type: ignore[misc]
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            began = now()
            work()
            if number:
                seconds[name].append(now() - began)
    return seconds, broken


def ratio(seconds: Mapping[str, list[float]], name: str) -> float:
    """Median over the rounds of the time relative to the floor in the same round."""
    return median(one / bare for one, bare in zip(seconds[name], seconds["floor"], strict=True))


def against(value: float, bar: float) -> str:
    return f"{value:.2f} | {bar:.2f} | {'yes' if round(value, 2) <= bar else '**no**'}"


def rows_of(name: str, folder: Path, rounds: int, step_count: int, clock: str) -> list[str]:
    """Lines of a network: PGD-20 twice, and the training step."""
    case, now = CASES[name], CLOCKS[clock]
    model, x, y = victim(name, case, folder)
    seconds, broken = evaluated(model, x, y, case, rounds, now)
    passes = f"{ratio(seconds, 'passes'):.2f} | {ratio(seconds, 'bfloat16 passes'):.2f}"
    rows = []
    for kind in ("every image kept", "active set"):
        half = f"bfloat16, {kind}"
        robust = [100 * float((~broken[one]).float().mean()) for one in (kind, half)]
        differ = int((broken[kind] != broken[half]).sum())
        only = int((broken[kind] & ~broken[half]).sum()), int((broken[half] & ~broken[kind]).sum())
        rows.append(
            f"| {name} | PGD-20 evaluation, {kind}: {len(x)} images "
            f"| {median(seconds['floor']):.2f} | {passes} "
            f"| {against(ratio(seconds, kind), EVALUATION_BARS[0])} "
            f"| {against(ratio(seconds, half), EVALUATION_BARS[1])} "
            f"| {robust[0]:.1f} % / {robust[1]:.1f} % | {differ} ({only[0]} / {only[1]}) |"
        )
        print(rows[-1], flush=True)
    config, batch = STEP_CASES[name]
    step = step_rounds("PGD-AT", METHODS["PGD-AT"], config, batch, step_count, rounds, now)
    full, half = against(ratio(step, "32-true"), STEP_BARS[0]), against(ratio(step, "bf16-mixed"), STEP_BARS[1])
    rows.append(
        f"| {name} | PGD-10 training step: {batch} images | {median(step['floor']):.2f} | | | {full} | {half} | | |"
    )
    print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="training steps of a round")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, default=Path("runs/floor"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    keep_compiled_code()
    rows = [
        row
        for name in options.networks
        for row in rows_of(name, options.out, options.rounds, options.steps, options.clock)
    ]
    columns = [
        "network",
        "work",
        "floor, s",
        "counted passes alone, float32",
        "bfloat16",
        "float32 / floor",
        "bar",
        "met",
    ]
    columns += ["bfloat16 / floor", "bar", "met", "robust, float32 / bfloat16", "verdicts that differ"]
    shares = next(line for line in PROFILE.read_text().splitlines() if line.startswith("Above "))
    clock = "wall clock" if options.clock == "wall" else "processor time, as other programs used the machine"
    text = "\n".join(
        [
            "# Speed against the floor",
            "",
            "The floor of PGD-20 is 20 forward and input-backward passes in float32 with frozen weights. That of a "
            "training step is the passes of PGD-AT with PGD-10, and the optimiser's step. Both have PyTorch's "
            "usual layout; the rest has the faster one, as in the commands. An evaluation counts two forward "
            "passes more, of the clean images and of the last iterate. Counted passes alone are made by hand. "
            "Evaluations attack test images that a briefly trained network classifies correctly: MNIST at linf "
            "0.3, CIFAR-10 at linf 2/255. A search in bfloat16 counts a success only if float32 confirms it. In "
            "brackets: broken by the search in float32 only / in bfloat16 only.",
            "",
            f"| {' | '.join(columns)} |",
            f"| {' | '.join(['---'] * len(columns))} |",
            *rows,
            "",
            f"Profile of a training step. {shares}",
            "",
            f"Medians of {options.rounds} alternating rounds, one thread, {clock}. "
            f"`python benchmarks/floor.py --rounds {options.rounds} --clock {options.clock}`, "
            f"{datetime.date.today()}, torch {torch.__version__}, {machine()['processor']}.",
            "",
        ]
    )
    write_text(RESULTS, text)
    print(text)


if __name__ == "__main__":
    main()
