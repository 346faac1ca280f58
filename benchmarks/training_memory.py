"""Measure the peak memory of a training step relative to that of the method's largest forward and backward pass.

    python benchmarks/training_memory.py [--batch 64] [--rows "TRADES,TRADES again"]

Full-width ResNet-18 on CIFAR-shaped random pixels, float32, PGD-2 inside (more steps need no more memory than two).
Compared are the forward and backward pass of the outer loss by hand, with gradients and momentum buffers in place,
and two steps of the real training loop; "again" computes activations again (`training.recompute_activations`).
Writes `benchmarks/results/training_memory.md` if all rows are measured.
"""

import argparse
import platform
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from robustly.runtime import Runtime, RuntimeConfig
from robustly.training import DynatLoss, Method, WeightPerturbation, train
from training_speed import EPSILON, METHODS, job_of, kl, random_pixels

RESULTS = Path(__file__).parent / "results" / "training_memory.md"
AGAIN = " again"
AWP = {
    "PGD-AT-AWP": replace(METHODS["PGD-AT"], parameters=(WeightPerturbation(warm_up=0),)),
    "DYNAT-Inner-AWP": replace(
        METHODS["DYNAT-Inner"],
        loss=DynatLoss(consistency=1.0),
        parameters=(WeightPerturbation(gamma=0.005, warm_up=0, proxy="trades"),),
    ),
}
ALL: dict[str, Method] = {
    name: replace(method, inner=replace(method.inner, steps=2))  # type: ignore[type-var]
    for name, method in (METHODS | AWP).items()
}


def outer_loss(name: str, model: nn.Module, guide: nn.Module | None, x: Tensor, y: Tensor) -> Tensor:
    """The loss of a method on `x + noise` for an adversarial example."""
    x_adv = x + EPSILON * torch.rand_like(x)
    loss: Tensor | float = 0.0
    if guide is not None:
        guided = guide(x)
        loss, y = F.cross_entropy(guided, y), guided.detach().argmax(1)
    if name in ("TRADES", "DYNAT-Inner-AWP"):
        clean = model(x)
        adversarial = model(x_adv)
        return loss + F.cross_entropy(clean, y) + F.cross_entropy(adversarial, y) + kl(clean, adversarial)
    return loss + F.cross_entropy(model(x_adv), y)


def peak_of(work: Callable[[], None]) -> float:
    """Peak of the memory of tensors that a call creates, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler
    assert results is not None
    assert results.kineto_results is not None
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(live, default=0) / 2**20


def loss_alone(name: str, batch: int) -> None:
    """Momentum buffers, and one forward and backward pass."""
    data = random_pixels(batch)
    job = job_of(ALL[name], 1.0, data, batch)
    guide = job.networks["guide"].module if "guide" in job.networks else None
    weights = [*job.model.parameters(), *(() if guide is None else guide.parameters())]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    momentum = [torch.zeros_like(weight) for weight in weights]
    assert momentum, "alive during the passes"
    x, y = data.floats(torch.arange(batch)), data.labels
    outer_loss(name, job.model, guide, x, y).backward()


def training(name: str, batch: int, again: bool) -> None:
    """Two steps of the real loop, and the end of an epoch."""
    job = job_of(ALL[name], 1.0, random_pixels(2 * batch), batch)
    job = replace(job, training=replace(job.training, recompute_activations=again))
    with tempfile.TemporaryDirectory() as folder:
        train(job, Runtime(RuntimeConfig(device="cpu")), Path(folder), config_digest="benchmark")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rows", help="rows to measure, separated by commas (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [*ALL, f"TRADES{AGAIN}"]
    chosen = rows if options.rows is None else options.rows.split(",")
    lines = ["| method | the loss by hand, MiB | training, MiB | ratio |", "| --- | --- | --- | --- |"]
    for row in chosen:
        name, again = row.removesuffix(AGAIN), row.endswith(AGAIN)
        alone = peak_of(lambda name=name: loss_alone(name, options.batch))
        whole = peak_of(lambda name=name, again=again: training(name, options.batch, again))
        lines.append(f"| {row} | {alone:.0f} | {whole:.0f} | {whole / alone:.2f} |")
        print(lines[-1], flush=True)
    if chosen != rows:
        return
    RESULTS.write_text(
        "# Memory of a training step\n\n" + "\n".join(lines) + "\n\n"
        "Most bytes in tensors alive at one time: networks, gradients, momentum, and activations; what an\n"
        f"allocator keeps beside them is not counted. Full-width ResNet-18, {options.batch} images, float32,\n"
        f"torch {torch.__version__}, {platform.machine()}. `python benchmarks/training_memory.py`\n"
        '"TRADES again" computes activations again in the backward pass\n'
        "(`--training.recompute_activations true`).\n"
    )


if __name__ == "__main__":
    main()
