"""Profile a training step and draw where its time goes.

    python benchmarks/step_profile.py [--steps 6]

PGD-AT with PGD-10 inside, on random pixels (speed does not depend on them), one thread: the real steps of the
package. Passes through the network, the attack, the drawing of images and the optimiser are timed from their
beginning to their end; the rest of each range is arithmetic. A CPU computes an operation before the next begins, so
these times are exact. PyTorch's profiler is not used, because it adds several microseconds to every operation,
which is more than the arithmetic on a small network takes. Medians over the steps. Writes
`docs/images/step-profile.svg` and `benchmarks/results/step_profile.md`.
"""

import argparse
import datetime
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from robustly.cli.allocator import keep_compiled_code, keep_freed_memory
from robustly.data import Augmentation, ImageData
from robustly.files import write_text
from robustly.models import ModelConfig, build_model
from robustly.performance import machine
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
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

ROOT = Path(__file__).parent.parent
PICTURE, TABLE = ROOT / "docs/images/step-profile.svg", ROOT / "benchmarks/results/step_profile.md"
METHOD = Method(inner=PGDInner(steps=10, step_size=2 / 255), loss=AdversarialLoss())
CASES = {
    "small_cnn, 64 images of 1 x 28 x 28": (ModelConfig(channels=1, image_size=(28, 28), classes=10), 64),
    "resnet18 of width 16, 64 images of 3 x 32 x 32": (
        ModelConfig(name="resnet18", width=0.25, channels=3, classes=10),
        64,
    ),
    "resnet18 of width 64, 16 images of 3 x 32 x 32": (ModelConfig(name="resnet18", channels=3, classes=10), 16),
}
PARTS = {
    "attack passes": ("#1d4ed8", "forward and input-backward passes of the attack"),
    "outer passes": ("#60a5fa", "forward and backward pass of the loss"),
    "attack arithmetic": ("#f59e0b", "attack arithmetic: steps, projections, objective, counting"),
    "optimiser": ("#10b981", "optimiser"),
    "images": ("#a855f7", "drawing and augmenting images"),
    "rest": ("#9ca3af", "rest: loss, statistics, hooks"),
}
LIMIT = 3.0
"""Share in % above which a part that is not a pass is named."""


Span = tuple[str, float, float]
"""Name, beginning and end of a range, in seconds."""


@contextmanager
def span(name: str, spans: list[Span]) -> Iterator[None]:
    """Record the beginning and the end of a range."""
    began = time.perf_counter()
    yield
    spans.append((name, began, time.perf_counter()))


@contextmanager
def named_passes(model: nn.Module, spans: list[Span]) -> Iterator[None]:
    """Record the passes through a network, the attack and the optimiser."""
    begun: list[float] = []

    def begin(*_: object) -> None:
        begun.append(time.perf_counter())

    def end(*_: object) -> None:
        spans.append(("pass", begun.pop(), time.perf_counter()))

    def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def relay(*args: Any, **kwargs: Any) -> Any:
            with span(name, spans):
                return function(*args, **kwargs)

        return relay

    with ExitStack() as held:
        held.callback(model.register_forward_pre_hook(begin).remove)
        held.callback(model.register_forward_hook(end).remove)
        held.enter_context(patch.object(torch.autograd, "grad", named(torch.autograd.grad, "pass")))
        held.enter_context(patch.object(torch.Tensor, "backward", named(torch.Tensor.backward, "pass")))
        held.enter_context(patch.object(PGDInner, "__call__", named(PGDInner.__call__, "attack")))
        held.enter_context(patch.object(torch.optim.SGD, "step", named(torch.optim.SGD.step, "optimiser")))
        yield


def shares_of(config: ModelConfig, batch: int, steps: int) -> dict[str, float]:
    """Shares of the parts of a step in %, medians over steps."""
    shape = (config.channels, *((32, 32) if config.channels == 3 else (28, 28)))
    pixels = torch.randint(256, (batch * 2, *shape), dtype=torch.uint8)
    names = tuple(str(k) for k in range(10))
    data = ImageData(pixels, torch.randint(10, (len(pixels),)), torch.arange(len(pixels)), names, "random pixels")
    job = Job(
        method=METHOD,
        model=build_model(config, seed=0),
        train=data,
        validation=data.select(torch.arange(2)),
        threats=(ThreatModel("linf", 8 / 255),),
        optimizer=OptimizerConfig(name="sgd", learning_rate=1e-3),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=steps + 2, batch_size=batch),
        augmentation=Augmentation(pad_crop=4, flip=True) if config.channels == 3 else Augmentation(),
    )
    runtime = Runtime(RuntimeConfig(device="cpu"))
    stepper, totals = Stepper(job, runtime), Totals(runtime.device)
    found: dict[str, list[float]] = {name: [] for name in PARTS}
    spans: list[Span] = []
    with stepper.prepared(), named_passes(stepper.networks.model, spans):
        for epoch in range(steps + 2):
            stepper.begin_epoch(epoch)
            spans.clear()
            with span("whole", spans):
                with span("images", spans):
                    drawn = next(iter(stepper.batches(epoch)))
                stepper.step(drawn, Moment(epoch, 0, 2, steps + 2), 0, totals)
            if epoch >= 2:  # the first steps also load code
                for name, value in _parts(spans).items():
                    found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def _parts(recorded: list[Span]) -> dict[str, float]:
    """Shares in % of the ranges of one step."""
    names = ("whole", "images", "attack", "pass", "optimiser")
    spans = {name: [(start, end) for other, start, end in recorded if other == name] for name in names}
    length = {name: sum(end - start for start, end in found) for name, found in spans.items()}
    (start, end), *_ = spans["attack"]
    inside = sum(last - first for first, last in spans["pass"] if start <= first and last <= end)
    parts = {
        "attack passes": inside,
        "outer passes": length["pass"] - inside,
        "attack arithmetic": length["attack"] - inside,
        "optimiser": length["optimiser"],
        "images": length["images"],
    }
    parts["rest"] = length["whole"] - sum(parts.values())
    return {name: 100 * value / length["whole"] for name, value in parts.items()}


def drawn(shares: dict[str, dict[str, float]]) -> str:
    """One bar for each network as SVG, in colours that are visible on light and dark pages."""
    width, left, bar = 760, 10, 34
    lines, y = [], 10
    for title, parts in shares.items():
        lines.append(f'<text x="{left}" y="{y + 12}" class="t">{title}</text>')
        x, y = float(left), y + 20
        for name, share in parts.items():
            length = share / 100 * (width - 2 * left)
            about = f"{PARTS[name][1]}: {share:.1f} %"
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(length, 0):.1f}" height="{bar}" fill="{PARTS[name][0]}">'
                f"<title>{about}</title></rect>"
            )
            if share > 6:
                lines.append(f'<text x="{x + length / 2:.1f}" y="{y + 22}" class="n">{share:.1f} %</text>')
            x += length
        y += bar + 22
    for name, (colour, words) in PARTS.items():
        values = ", ".join(f"{parts[name]:.1f} %" for parts in shares.values())
        lines.append(f'<rect x="{left}" y="{y}" width="14" height="14" fill="{colour}"/>')
        lines.append(f'<text x="{left + 22}" y="{y + 12}" class="t">{words} ({values})</text>')
        y += 22
    style = (
        "<style>text{font:13px system-ui,sans-serif}.t{fill:#374151}.n{fill:#fff;text-anchor:middle}"
        "@media(prefers-color-scheme:dark){.t{fill:#d1d5db}}</style>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 4}" role="img" '
        f'aria-label="Shares of a training step">{style}{"".join(lines)}</svg>\n'
    )


def main() -> None:
    """Profile all networks, and write picture and table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    keep_compiled_code()
    shares = {title: shares_of(config, batch, options.steps) for title, (config, batch) in CASES.items()}
    above = [
        f"{PARTS[name][1]}, {parts[name]:.1f} % ({title})"
        for title, parts in shares.items()
        for name in list(PARTS)[2:]
        if parts[name] > LIMIT
    ]
    columns = ["part", *shares]
    rows = [
        f"| {words} | {' | '.join(f'{parts[name]:.1f} %' for parts in shares.values())} |"
        for name, (_, words) in PARTS.items()
    ]
    here = machine()
    text = "\n".join(
        [
            "# Where the time of a training step goes",
            "",
            "PGD-AT with PGD-10 inside, float32, one thread, memory settings of the commands, medians of "
            f"{options.steps} steps. Ranges are timed without a profiler, which would add to each operation.",
            "",
            f"| {' | '.join(columns)} |",
            f"| {' | '.join(['---'] * len(columns))} |",
            *rows,
            "",
            f"Above {LIMIT:g} % and not a pass: {'; '.join(above) or 'nothing'}.",
            "",
            f"`python benchmarks/step_profile.py`, {datetime.date.today()}, torch {torch.__version__}, "
            f"{here['processor']}.",
            "",
        ]
    )
    write_text(PICTURE, drawn(shares))
    write_text(TABLE, text)
    print(text)


if __name__ == "__main__":
    main()
