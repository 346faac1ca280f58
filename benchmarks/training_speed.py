"""Compare training steps with the bare passes of their method, and DYNAT's with the order of the released code.

    python benchmarks/training_speed.py [--widths 0.25,1] [--batches 128,16] [--steps 3]

CIFAR-shaped random images (speed does not depend on what they show), `resnet18`, PGD-10 inside, the real training
loop timed from step to step. The floor does the method's passes by hand in float32 with frozen weights inside the
attack, and nothing else. Floor and loop take turns; medians. Writes `benchmarks/results/training_speed.md`.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustly import ThreatModel
from robustly.data import Augmentation, ImageData
from robustly.models import ModelConfig, build_model
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

    def __init__(self) -> None:
        self.times: list[float] = []
        self._last = 0.0

    def started(self, job: Job, finished_epochs: int) -> None:
        self._last = time.perf_counter()

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        now = time.perf_counter()
        self.times.append(now - self._last)
        self._last = now


def network(width: float, seed: int) -> nn.Module:
    return build_model(ModelConfig(name="resnet18", classes=10, width=width), seed=seed).train()


def job_of(method: Method, width: float, data: ImageData, batch: int) -> Job:
    """One epoch of a method on random pixels."""
    return Job(
        method=method,
        model=network(width, 0),
        networks={name: AuxiliaryNetwork(network(width, 1)) for name in method.networks},
        train=data,
        validation=data.select(torch.arange(2)),
        threats=(ThreatModel("linf", EPSILON),),
        optimizer=OptimizerConfig(name="sgd", learning_rate=1e-3),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=1, batch_size=batch, validation_steps=1),
        augmentation=Augmentation(),
    )


def looped(method: Method, width: float, precision: str, data: ImageData, batch: int) -> float:
    """Median seconds of a step of the training loop, without the first."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(RuntimeConfig(device="cpu", precision=precision))
        job = job_of(method, width, data, batch)
        train(job, runtime, Path(folder), config_digest="benchmark", observer=clock)
    return statistics.median(clock.times[1:])


def bare(step: Callable[..., None], width: float, x: Tensor, y: Tensor, steps: int) -> float:
    """Median seconds of a step written by hand, without the first."""
    model, guide = network(width, 0), network(width, 1)
    optimizer = torch.optim.SGD(
        [*model.parameters(), *guide.parameters()], lr=1e-3, momentum=0.9, weight_decay=5e-4
    )
    times = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        step(model, guide, optimizer, x, y)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def random_pixels(count: int) -> ImageData:
    """CIFAR-shaped."""
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    names = tuple(str(k) for k in range(10))
    return ImageData(pixels, torch.randint(10, (count,)), torch.arange(count), names, "random pixels")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--widths", default="0.25,1")
    parser.add_argument("--batches", default="128,16", help="images per step, for each width")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "| method | `resnet18` width | images | floor, s | float32 / floor | bf16-mixed / floor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ratios = []
    for width, batch in zip(
        map(float, options.widths.split(",")), map(int, options.batches.split(",")), strict=True
    ):
        data = random_pixels(batch * (options.steps + 1))
        x, y = data.floats(torch.arange(batch)), data.labels[:batch]
        for name, method in METHODS.items():
            rounds: dict[str, list[float]] = {"floor": [], "32-true": [], "bf16-mixed": [], "reference": []}
            for _ in range(options.rounds):
                rounds["floor"].append(bare(lambda *a, name=name: floor(name, *a), width, x, y, options.steps))
                for precision in ("32-true", "bf16-mixed"):
                    rounds[precision].append(looped(method, width, precision, data, batch))
                if name == "DYNAT-Inner":
                    rounds["reference"].append(bare(reference_order, width, x, y, options.steps))
            median = {key: statistics.median(values) for key, values in rounds.items() if values}
            full, half = median["32-true"] / median["floor"], median["bf16-mixed"] / median["floor"]
            lines.append(
                f"| {name} | {round(64 * width)} | {batch} | {median['floor']:.2f} | {full:.2f} | {half:.2f} |"
            )
            print(lines[-1], flush=True)
            if name == "DYNAT-Inner":
                for precision in ("32-true", "bf16-mixed"):
                    ratios.append(
                        f"| {round(64 * width)} | {precision} | {median['reference'] / median[precision]:.2f}x |"
                    )
                    print(ratios[-1], flush=True)
    RESULTS.write_text(
        "# A training step beside the bare passes that it needs\n\n" + "\n".join(lines) + "\n\n"
        "DYNAT-Inner's step: how many times faster than the reference's order of work in float32.\n\n"
        "| width | precision | faster |\n| --- | --- | --- |\n" + "\n".join(ratios) + "\n\n"
        f"Medians of {options.rounds} alternating rounds of {options.steps} steps, "
        f"PGD-10, one thread, torch {torch.__version__}, {platform.machine()}.\n"
    )


if __name__ == "__main__":
    main()
