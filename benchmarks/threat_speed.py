"""Time attacks under threats that are not Lp balls against PGD under linf with the same passes.

    ROBUSTLY_SHARED_DATA=FOLDER python benchmarks/threat_speed.py [--rounds 7] [--images 64] [--steps 10]
        [--threats rotation:30 ...]

A `resnet18` of a quarter of the width (16 channels) on CIFAR-10 images of FOLDER/cifar10-jpeg, where the variable
is set, and on 32 x 32 random pixels, whose many colours make the most work; the labels are its own predictions.
Each attack is PGD with the given steps on all images from a random start, and no image is dropped: 1 clean pass,
then steps + 1 forward and steps backward passes. The rounds alternate: each measures the bare passes, linf and
every threat once, by the processor's time of one thread. A ratio is the median over the rounds of the ratios to
linf in the same round, so that a machine that slows down affects both. Freed memory is kept for the next pass, as
in all commands, but not with `--plain` (see `robustly.cli.allocator`). Writes `benchmarks/results/threat_speed.md`.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from robustly.attacks import PGD
from robustly.cli.allocator import keep_compiled_code, keep_freed_memory
from robustly.data import DataConfig, load_test
from robustly.models import ModelConfig, build_model
from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat

RESULTS = Path(__file__).parent / "results" / "threat_speed.md"
BAR = 1.15
THREATS = {
    "rotation": "rotation:30",
    "rotation and shift": "affine:rotation=30,shift=3",
    "hue": "hue:0.5",
    "saturation": "saturation:0.3",
    "brightness": "brightness:0.2",
    "contrast": "contrast:0.3",
    "ACE": "ace:16",
    "curves of HSV": "hsv_curve:16",
    "lightness (ALA)": "lightness:16",
    "ReColorAdv": "recolor:0.06",
    "RetouchUAA": "retouch:1",
    "StAdv flow": "flow:0.8",
    "chain of three": "rotation:10+hue:0.5+linf:8/255",
    "any order of three": "rotation:10&hue:0.5&linf:8/255",
}
SINGLE = tuple(THREATS)[:12]
"""Threats that the bar is for; chains have several parts."""


def bare_passes(model: nn.Module, x: Tensor, steps: int) -> Callable[[], object]:
    """The passes of the attack alone, in the layout in which it runs them."""
    images = x.to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.no_grad():
            model(images)
            model(images)
        for _ in range(steps):
            here = images.clone().requires_grad_()
            torch.autograd.grad(model(here).logsumexp(1).sum(), here)

    return run


def timed(call: Callable[[], object]) -> float:
    """Seconds of the processor that a call takes."""
    began = time.process_time()
    call()
    return time.process_time() - began


def image_sets(count: int) -> dict[str, Tensor]:
    """Images of each kind that is there, `(N, 3, 32, 32)`."""
    found, shared = {}, os.environ.get("ROBUSTLY_SHARED_DATA")
    if shared and (Path(shared) / "cifar10-jpeg").is_dir():
        config = DataConfig(source=str(Path(shared) / "cifar10-jpeg"), test_limit=count, evaluation_only=True)
        found["CIFAR-10"] = load_test(config).floats()
    found["random pixels"] = KeyedGenerator(0, torch.arange(count)).uniform(3, 32, 32)
    return found


@dataclass(frozen=True)
class Times:
    """Seconds of each attack, and their medians relative to linf."""

    medians: dict[str, float]
    ratios: dict[str, float]


def measured(x: Tensor, threats: Mapping[str, str], steps: int, rounds: int) -> Times:
    """Times of PGD on some images under each threat, linf, and of the bare passes."""
    ids = torch.arange(len(x))
    model = build_model(ModelConfig(name="resnet18", width=0.25), seed=0).eval().requires_grad_(False)
    y = model(x).argmax(1)
    model = model.to(memory_format=torch.channels_last)
    attack = PGD(steps, early_stop=False)

    def attacked(text: str) -> Callable[[], object]:
        return lambda: attack(model, x, y, threat=parse_threat(text), generator=KeyedGenerator(1, ids))

    calls = {"bare passes": bare_passes(model, x, steps), "linf": attacked("linf:8/255")}
    calls |= {title: attacked(text) for title, text in threats.items()}
    seconds: dict[str, list[float]] = {title: [] for title in calls}
    for number in range(rounds + 1):
        for title, call in calls.items():
            found = timed(call)
            if number > 0:  # the first round prepares
                seconds[title].append(found)
    ratios = {
        title: statistics.median(ours / linf for ours, linf in zip(found, seconds["linf"], strict=True))
        for title, found in seconds.items()
    }
    return Times({title: statistics.median(found) for title, found in seconds.items()}, ratios)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threats", nargs="+", help="texts of threats; printed, not written")
    parser.add_argument("--plain", action="store_true", help="leave memory to the rules of glibc; only printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.plain:
        keep_freed_memory()
        keep_compiled_code()
    threats = {text: text for text in options.threats} if options.threats else THREATS
    found = {
        name: measured(x, threats, options.steps, options.rounds) for name, x in image_sets(options.images).items()
    }
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    lines = [
        f"| threat | text | {' | '.join(f'{name}, ms | ratio to linf' for name in found)} |",
        "| --- | --- |" + " --- | --- |" * len(found),
    ]
    texts = {"linf": "linf:8/255", **threats}
    for title in ("bare passes", *texts):
        text = f"`{texts[title]}`" if title in texts else ""
        cells = [f"{1e3 * times.medians[title]:.0f} | {times.ratios[title]:.2f}" for times in found.values()]
        lines.append(f"| {title} | {text} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if options.threats or options.plain:
        return
    words = []
    for name, times in found.items():
        slow = [f"{title} ({times.ratios[title]:.2f})" for title in SINGLE if times.ratios[title] > BAR]
        words.append(f"{name}: " + (f"above it {', '.join(slow)}" if slow else "none is above it"))
    page = [
        "# Speed of attacks under geometry and colour",
        "",
        *(__doc__ or "").split("\n\n")[2].splitlines(),
        "",
        *lines,
        "",
        f"The bar for one transformation is {BAR} times linf. {'; '.join(words)}.",
        f"Medians of {options.rounds} alternating rounds, {options.images} images; load of the machine per core: "
        f"{load:.1f}. An idle machine has",
        "0.5 to 1: other processes slow memory more than arithmetic, and raise the ratios.",
        f"{options.steps} steps. `python benchmarks/threat_speed.py`, {datetime.now(UTC):%Y-%m-%d}, "
        f"torch {torch.__version__}, {platform.machine()}.",
    ]
    RESULTS.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
