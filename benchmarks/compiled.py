"""Compare compiled passes of attacks with uncompiled ones: PGD-10 steps of training, PGD-20 of an evaluation.

    python benchmarks/compiled.py [--images 64] [--seconds 60] [--clock cpu]

CIFAR-shaped random images, random weights (speed depends on neither), one thread. Works take turns; medians with
quartiles. Compilations are timed apart, the first ones with an empty cache. In the evaluation no image breaks; with
fewer images than a batch has, passes are those compiled for any number. Writes `benchmarks/results/compiled.md`.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from robustly import ThreatModel
from robustly.attacks import PGD
from robustly.attacks.core.compiled import CompiledNetwork
from robustly.data import Augmentation, ImageData
from robustly.models import ModelConfig, build_model
from robustly.models.layout import in_fastest_layout
from robustly.performance.timing import CLOCKS, Meter, Rounds, alternating
from robustly.randomness import KeyedGenerator
from robustly.runtime import Runtime, RuntimeConfig
from robustly.training import (
    AdversarialLoss,
    Job,
    Method,
    Moment,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TrainingConfig,
)
from robustly.training.engine.metrics import Totals
from robustly.training.engine.stepping import Stepper

RESULTS = Path(__file__).parent / "results" / "compiled.md"
NETWORKS = {
    "`small_cnn`": ModelConfig(name="small_cnn", classes=10, channels=3, image_size=(32, 32)),
    "`resnet18`, width 16": ModelConfig(name="resnet18", classes=10, width=0.25),
}
TINY = ThreatModel("linf", 1e-6)
Work = Callable[[], object]


def network(config: ModelConfig) -> nn.Module:
    """A network without a last layer of zeros, whose gradient would be zero."""
    model = build_model(config, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1e-3 * torch.randn_like(weight))
    return model


def step_of(config: ModelConfig, data: ImageData, compiled: bool) -> Work:
    """A PGD-10 step of training on the first batch."""
    job = Job(
        method=Method(inner=PGDInner(steps=10), loss=AdversarialLoss()),
        model=network(config),
        train=data,
        validation=data.select(torch.arange(2)),
        threats=(ThreatModel("linf", 8 / 255),),
        optimizer=OptimizerConfig(name="sgd", learning_rate=1e-4),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=1, batch_size=len(data), validation_steps=1),
        augmentation=Augmentation(),
    )
    stepper = Stepper(job, Runtime(RuntimeConfig(device="cpu", compile=compiled)))
    stepper.begin_epoch(0)
    batch, totals = next(iter(stepper.batches(0))), Totals(torch.device("cpu"))

    def step() -> None:
        with stepper.prepared():
            stepper.step(batch, Moment(0, 0, 1, 1), 0, totals)

    return step


def attack_of(model: nn.Module, x: Tensor, y: Tensor) -> Work:
    """PGD-20 of an evaluation that breaks no image."""
    draws = KeyedGenerator(0, torch.arange(len(x)))
    return lambda: PGD(steps=20)(model, x, y, threat=TINY, generator=draws)


def works_of(config: ModelConfig, data: ImageData) -> dict[str, tuple[Work, Callable[[], Work]]]:
    """Works by name: the uncompiled one, and a function that makes the compiled one."""
    count, few = len(data), 3 * len(data) // 4
    x = data.floats(torch.arange(count))
    model = in_fastest_layout(network(config).eval(), x)
    y = model(x).argmax(1)
    return {
        f"PGD-10 step, {count} images": (step_of(config, data, False), lambda: step_of(config, data, True)),
        f"PGD-20, {count} images": (
            attack_of(model, x, y),
            lambda: attack_of(CompiledNetwork(model, count), x, y),
        ),
        f"PGD-20, {few} images that are left": (
            attack_of(model, x[:few], y[:few]),
            lambda: attack_of(CompiledNetwork(model, count), x[:few], y[:few]),
        ),
    }


def first_seconds(work: Work, clock: str) -> float:
    """Seconds by which the first run of a work is longer than the second."""
    times = []
    for _ in range(2):
        began = CLOCKS[clock]()
        work()
        times.append(CLOCKS[clock]() - began)
    return times[0] - times[1]


def row(name: str, work: str, rounds: Rounds, cold: float, warm: float) -> str:
    plain, compiled = rounds.spread("plain"), rounds.spread("compiled")
    ratio = rounds.ratio("compiled", lambda one: one["plain"])
    return (
        f"| {name} | {work} | {1e3 * plain.median:.0f} | {1e3 * compiled.median:.0f} | "
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) | {cold:.0f} | {warm:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60, help="of each row, about, without compilations")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count, meter = options.images, Meter(options.clock)
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    names = tuple(str(k) for k in range(10))
    data = ImageData(pixels, torch.randint(10, (count,)), torch.arange(count), names, "random pixels")
    lines = [
        "| network | work | uncompiled, ms | compiled, ms | ratio | first compilation, s | with the cache, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, config in NETWORKS.items():
        works = works_of(config, data)
        for work, (plain, make) in works.items():
            with tempfile.TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                cold, warm = (first_seconds(made, "wall") for made in (make(), make()))
                both = {"plain": plain, "compiled": make()}
                lines.append(row(name, work, alternating(both, meter, options.seconds), cold, warm))
            print(lines[-1], flush=True)
    clock = "processor time" if options.clock == "cpu" else "time on the wall"
    where = f"{platform.processor() or 'a CPU'} ({platform.machine()}), torch {torch.__version__}"
    words = f"--images {count} --seconds {options.seconds:g} --clock {options.clock}"
    RESULTS.write_text(
        "# Compiled passes of attacks beside uncompiled ones\n\n" + "\n".join(lines) + "\n\n"
        f"Ratio of compiled to uncompiled, in {clock}: medians with quartiles of works in turn. Compilations in "
        "time on the wall, of a machine that other programs used at the same time. One thread of "
        f"{where}, {time.strftime('%Y-%m-%d')}; `python benchmarks/compiled.py {words}`.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
