"""Compare training steps with the bare passes of their method, and DYNAT's with the order of the released code.

    python benchmarks/training_speed.py [--networks small_cnn ...] [--steps 3] [--rounds 3] [--clock wall]

Random images (speed does not depend on what they show), PGD-10 inside, the real training loop timed from step to
step. The floor does the method's passes by hand in float32 with frozen weights inside the
attack, and nothing else. Floor and loop take turns; medians. Writes `benchmarks/results/training_speed.md`.
"""

import argparse
import datetime
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustly import ThreatModel
from robustly.cli.allocator import keep_compiled_code, keep_freed_memory
from robustly.data import Augmentation, ImageData
from robustly.models import ModelConfig, build_model
from robustly.performance import machine
from robustly.performance.timing import CLOCKS
from robustly.runtime import Runtime, RuntimeConfig
from robustly.training import (
    AdversarialLoss,
    AuxiliaryNetwork,
    DynatLoss,
    GuideLabels,
    Job,
    Method,
    Moment,
    Observer,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TradesLoss,
    TrainingConfig,
    train,
)

RESULTS = Path(__file__).parent / "results" / "training_speed.md"
EPSILON, ALPHA, STEPS = 8 / 255, 2 / 255, 10
CE, KL = (PGDInner(o, STEPS, ALPHA, start="gaussian") for o in ("cross_entropy", "kl"))
METHODS = {
    "PGD-AT": Method(inner=CE, loss=AdversarialLoss()),
    "TRADES": Method(inner=KL, loss=TradesLoss()),
    "DYNAT-Inner": Method(labels=GuideLabels(), inner=CE, loss=DynatLoss()),
    "DYNAT": Method(labels=GuideLabels(), inner=KL, loss=DynatLoss()),
}

CASES = {
    "small_cnn": (ModelConfig(channels=1, image_size=(28, 28), classes=10), 128),
    "resnet18 width 16": (
        ModelConfig(name="resnet18", channels=3, image_size=(32, 32), classes=10, width=0.25),
        128,
    ),
    "resnet18 width 64": (ModelConfig(name="resnet18", channels=3, image_size=(32, 32), classes=10), 16),
}
"""Networks with the images of a step."""


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(1), reference.softmax(1), reduction="sum")


def attacked(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Ten bare steps on frozen weights."""
    model.eval().requires_grad_(False)
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(STEPS):
        point = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(point)), point)
        x_adv = (x_adv + ALPHA * gradient.sign()).clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
    model.train().requires_grad_(True)
    return x_adv.detach()


def floor(
    name: str, model: nn.Module, guide: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> None:
    """The passes of a method, and the optimiser's step."""
    extra: Tensor | float = 0.0
    labels = y
    if name.startswith("DYNAT"):
        guided = guide(x)
        labels, extra = guided.detach().argmax(1), F.cross_entropy(guided, y)
    if name in ("TRADES", "DYNAT"):
        model.eval()
        with torch.no_grad():
            reference = model(x)
        x_adv = attacked(model, x, lambda logits: kl(reference, logits))
    else:
        x_adv = attacked(model, x, lambda logits: F.cross_entropy(logits, labels, reduction="sum"))
    if name == "TRADES":
        clean = model(x)
        loss = F.cross_entropy(clean, y) + 6 * kl(clean, model(x_adv)) / len(x)
    else:
        loss = F.cross_entropy(model(x_adv), labels)
    optimizer.zero_grad(set_to_none=True)
    (loss + extra).backward()
    optimizer.step()


def reference_order(
    model: nn.Module, guide: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> None:
    """DYNAT-Inner in the order of the released code.

    The guide runs at every step and again outside. A clean forward pass of the model is not used. Weights require
    gradients throughout.
    """
    model.eval()
    x_adv = x.detach() + 0.001 * torch.randn_like(x)
    for _ in range(STEPS):
        point = x_adv.detach().requires_grad_()
        with torch.enable_grad():
            labels = guide(x).argmax(1)
            loss = F.cross_entropy(model(point), labels)
        (gradient,) = torch.autograd.grad(loss, [point])
        x_adv = point.detach() + ALPHA * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPSILON), x + EPSILON).clamp(0, 1)
    model.train()
    optimizer.zero_grad()
    _, guided, adversarial = model(x), guide(x), model(x_adv)
    loss = F.cross_entropy(guided, y) + F.cross_entropy(adversarial, guided.argmax(1))
    loss.backward()
    optimizer.step()


class Clock(Observer):
    """Record the seconds from step to step."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.times: list[float] = []
        self._now, self._last = now, 0.0

    def started(self, job: Job, finished_epochs: int) -> None:
        self._last = self._now()

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        now = self._now()
        self.times.append(now - self._last)
        self._last = now


def network(config: ModelConfig, seed: int) -> nn.Module:
    return build_model(config, seed=seed).train()


def job_of(method: Method, config: ModelConfig, data: ImageData, batch: int) -> Job:
    """One epoch of a method on random pixels."""
    return Job(
        method=method,
        model=network(config, 0),
        networks={name: AuxiliaryNetwork(network(config, 1)) for name in method.networks},
        train=data,
        validation=data.select(torch.arange(2)),
        threats=(ThreatModel("linf", EPSILON),),
        optimizer=OptimizerConfig(name="sgd", learning_rate=1e-3),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=1, batch_size=batch, validation_steps=1),
        augmentation=Augmentation(),
    )


def looped(
    method: Method, config: ModelConfig, precision: str, data: ImageData, batch: int, now: Callable[[], float]
) -> float:
    """Median seconds of a step of the training loop, without the first."""
    clock = Clock(now)
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(RuntimeConfig(device="cpu", precision=precision))
        job = job_of(method, config, data, batch)
        train(job, runtime, Path(folder), config_digest="benchmark", observer=clock)
    return statistics.median(clock.times[1:])


def bare(
    step: Callable[..., None], config: ModelConfig, x: Tensor, y: Tensor, steps: int, now: Callable[[], float]
) -> float:
    """Median seconds of a step written by hand, without the first."""
    model, guide = network(config, 0), network(config, 1)
    optimizer = torch.optim.SGD(
        [*model.parameters(), *guide.parameters()], lr=1e-3, momentum=0.9, weight_decay=5e-4
    )
    times = []
    for _ in range(steps + 1):
        began = now()
        step(model, guide, optimizer, x, y)
        times.append(now() - began)
    return statistics.median(times[1:])


def random_pixels(config: ModelConfig, count: int) -> ImageData:
    """Images of the network's shape."""
    assert config.image_size is not None
    pixels = torch.randint(256, (count, config.channels or 3, *config.image_size), dtype=torch.uint8)
    names = tuple(str(k) for k in range(10))
    return ImageData(pixels, torch.randint(10, (count,)), torch.arange(count), names, "random pixels")


def step_rounds(
    name: str, method: Method, config: ModelConfig, batch: int, steps: int, rounds: int, now: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of a step in each round: of the floor, of the loop in two precisions, of the reference's order.

    Args:
        name: a name of `METHODS`.
        method: the method.
        config: the network.
        batch: images of a step.
        steps: measured steps of a round.
        rounds: number of rounds.
        now: the clock.
    """
    data = random_pixels(config, batch * (steps + 1))
    x, y = data.floats(torch.arange(batch)), data.labels[:batch]
    found: dict[str, list[float]] = {"floor": [], "32-true": [], "bf16-mixed": [], "reference": []}
    for _ in range(rounds):
        found["floor"].append(bare(lambda *a: floor(name, *a), config, x, y, steps, now))
        for precision in ("32-true", "bf16-mixed"):
            found[precision].append(looped(method, config, precision, data, batch, now))
        if name == "DYNAT-Inner":
            found["reference"].append(bare(reference_order, config, x, y, steps, now))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    keep_compiled_code()
    lines = [
        "| method | network | images | floor, s | float32 / floor | bf16-mixed / floor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ratios = []
    for title in options.networks:
        config, batch = CASES[title]
        for name, method in METHODS.items():
            found = step_rounds(name, method, config, batch, options.steps, options.rounds, CLOCKS[options.clock])
            median = {key: statistics.median(values) for key, values in found.items() if values}
            full, half = median["32-true"] / median["floor"], median["bf16-mixed"] / median["floor"]
            lines.append(f"| {name} | {title} | {batch} | {median['floor']:.2f} | {full:.2f} | {half:.2f} |")
            print(lines[-1], flush=True)
            if name == "DYNAT-Inner":
                for precision in ("32-true", "bf16-mixed"):
                    faster = median["reference"] / median[precision]
                    ratios.append(f"| {title} | {precision} | {faster:.2f}x |")
                    print(ratios[-1], flush=True)
    clock = "wall clock" if options.clock == "wall" else "processor time"
    RESULTS.write_text(
        "# A training step beside the bare passes that it needs\n\n" + "\n".join(lines) + "\n\n"
        "DYNAT-Inner's step: how many times faster than the reference's order of work in float32.\n\n"
        "| network | precision | faster |\n| --- | --- | --- |\n" + "\n".join(ratios) + "\n\n"
        f"Medians of {options.rounds} alternating rounds of {options.steps} steps, PGD-10, one thread, {clock}, "
        f"{datetime.date.today()}, torch {torch.__version__}, {machine()['processor']}. `python "
        f"benchmarks/training_speed.py --clock {options.clock}`\n"
    )


if __name__ == "__main__":
    main()
