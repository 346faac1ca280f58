"""Compare PGD-20 of robustly, torchattacks and foolbox with the bare passes, on one robust network and real digits.

    python benchmarks/pgd_peers.py

Trains `mnist5k/pgd_at` for a few epochs (about a minute), attacks 500 test digits at linf 0.3 with 20 steps of
epsilon / 4, all tools taking turns, and prints the median time of each relative to the floor: 20 forward and
input-backward passes and nothing else. Writes `benchmarks/results/pgd_peers.md`.
"""

import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import foolbox
import torch
import torchattacks
from torch import Tensor, nn

from floor import bare_steps, searches
from robustly import PGD, ThreatModel
from robustly.cli import main as robustly
from robustly.data import load_test
from robustly.experiments.run_folder import evaluation_data, load_trained, open_run
from robustly.randomness import KeyedGenerator

EPSILON, STEPS, ROUNDS, COUNT = 0.3, 20, 7, 500
RESULTS = Path(__file__).parent / "results" / "pgd_peers.md"


def victim(folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """A robust network, and test digits that are not in its training data."""
    settings = ["--training.epochs", "8", "--evaluation.count", str(COUNT)]
    if robustly(["train", "mnist5k/pgd_at", "--out", str(folder), *settings]) != 0:
        raise SystemExit("training failed")
    config = open_run(folder)
    data = load_test(evaluation_data(config))
    model, data, _ = load_trained(folder, config, data, trusts=lambda name: False)
    return model, data.floats(), data.labels


def contestants(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Functions of all tools, each of which returns the adversarial images."""
    threat = ThreatModel("linf", EPSILON)
    generator = KeyedGenerator(0, torch.arange(len(x)))
    alpha = EPSILON / 4
    theirs = torchattacks.PGD(model, eps=EPSILON, alpha=alpha, steps=STEPS, random_start=True)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=alpha, steps=STEPS, random_start=True)

    def searched(ours: PGD) -> Callable[[], Tensor]:
        return lambda: ours(model, x, y, threat=threat, generator=generator).x_adv

    return {
        **{f"robustly, {name}": searched(ours) for name, ours in searches(STEPS).items()},
        "torchattacks": lambda: theirs(x, y),
        "foolbox": lambda: attack(wrapped, x, y, epsilons=EPSILON)[1],
    }


def main() -> None:
    warnings.filterwarnings("ignore", category=UserWarning, module="foolbox")
    with tempfile.TemporaryDirectory() as scratch:
        model, x, y = victim(Path(scratch) / "victim")
    frozen = [parameter.requires_grad_(False) for parameter in model.parameters()]
    seconds: dict[str, list[float]] = {}
    images: dict[str, Tensor] = {}
    for turn in range(ROUNDS + 1):
        for name, attack in {
            "bare passes": lambda: bare_steps(model, x, y, STEPS),
            **contestants(model, x, y),
        }.items():
            # other tools get the model as their users have it: with parameters that require gradients
            for parameter in frozen:
                parameter.requires_grad_(name != "bare passes")
            began = time.perf_counter()
            found = attack()
            if turn > 0:  # the first turn warms up
                seconds.setdefault(name, []).append(time.perf_counter() - began)
            if found is not None:
                images[name] = found
    base = statistics.median(seconds["bare passes"])
    lines = ["| tool | robust accuracy | time / bare passes | spread |", "| --- | --- | --- | --- |"]
    for name, times in seconds.items():
        ratios = sorted(value / base for value in times)
        accuracy = ""
        if name in images:
            with torch.no_grad():
                accuracy = f"{100 * float((model(images[name]).argmax(1) == y).float().mean()):.1f} %"
        lines.append(
            f"| {name} | {accuracy} | {statistics.median(ratios):.2f} | {ratios[0]:.2f}-{ratios[-1]:.2f} |"
        )
    table = "\n".join(lines)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchattacks", "foolbox"))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        f"# PGD-20 at linf {EPSILON}, {COUNT} MNIST digits, one robust network\n\n{table}\n\n"
        f"Medians of {ROUNDS} alternating runs, one batch, float32 unless it says otherwise, {versions}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads. `python benchmarks/pgd_peers.py`\n"
    )
    print(table)


if __name__ == "__main__":
    main()
