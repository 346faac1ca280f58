"""From a cold start to a robust network in nine minutes on one GPU: CIFAR-10, PreAct-ResNet-18, linf 8/255.

    python benchmarks/gpu/speedrun.py [--data FOLDER] [--seconds 525] [--results FOLDER]
    python benchmarks/gpu/speedrun.py --device cpu --limit 96 --seconds 150     # the same steps, tiny, no GPU

The goal is at least 50 % robust accuracy under the suite `standard`, everything included, on one card of the
class of an H200. It has not been measured: no such card was available when this was written. Networks of this
size trained with TRADES and AWP for 100 to 200 epochs are reported near 50 % under AutoAttack, on the original
images. The images here are the Parquet files of `$ROBUSTLY_SHARED_DATA/cifar10-jpeg` (JPEG q75).

Method: TRADES with AWP and an average of the weights, bfloat16, channels-last, a one-cycle rate, epsilon that
grows over the first epochs. Timing: `robustly bench` measures a training step, its floor and the attacks of
`standard` for 20 s. From these follow the number of test images, the steps of the training attack (10, or fewer
if there would be fewer than `ENOUGH` epochs) and the epochs. A training that is not finished in time is stopped,
and its best checkpoint counts. With `--results`, the table is also written to `speedrun_gpu.md` there.
"""

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dynat import GRACE, NORMALISATION, finish, rates, started
from gpu_options import read_options, show

TABLE = "speedrun_gpu.md"
RECIPE = "cifar10/trades_awp_ema"
SUITE, BESIDE = "standard", "pgd_20"
GOAL = 0.5
STEPS = (10, 7, 5, 3, 2)
"""Steps of the training attack that are considered; the first is the one that is timed."""
ENOUGH, MOST = 30, 60
"""Epochs for which fewer attack steps are taken, and beyond which there are none."""
EVALUATED = 0.25
"""Largest share of the whole time for the evaluation."""
SURVIVING = 0.6
"""Assumed cost of an evaluation as a share of the longest one, in which no attack breaks any image."""
MARGIN = 0.85
"""Share of the time for training that is planned for."""
COMPARED = 10_000
"""Images for which the bench predicts the evaluation."""


@dataclass(frozen=True)
class Scale:
    """Sizes that differ between a GPU and a trial on the CPU."""

    width: str
    batch: int
    rate: str
    timed_seconds: int
    held_out: int
    tested: int
    precision: str


SCALES = {
    "cuda": Scale("1", 256, "0.2", 20, 500, 10_000, "bf16-mixed"),
    "cpu": Scale("0.0625", 16, "0.1", 6, 10, 20, "32-true"),
}


@dataclass(frozen=True)
class Timing:
    """What the bench has measured.

    Args:
        step: seconds of a training step with `STEPS[0]` attack steps, per image.
        floor: seconds of its counted passes in full precision, per image.
        passes: its passes to the input, to the weights, and forward alone.
        operations: operations of these three, for one image.
        suites: longest seconds of an image under each suite.
    """

    step: float
    floor: float
    passes: tuple[int, int, int]
    operations: tuple[int, int, int]
    suites: Mapping[str, float]

    def share(self, steps: int) -> float:
        """Cost of a step with fewer attack steps, as a share of the timed one."""
        to_input, to_weights, alone = self.passes
        counted = [(to_input, to_weights, alone), (to_input - STEPS[0] + steps, to_weights, alone)]
        whole, part = (sum(n * size for n, size in zip(one, self.operations, strict=True)) for one in counted)
        return part / whole


@dataclass(frozen=True)
class Plan:
    """Sizes of the run: attack steps, epochs, test images, and seconds for training and evaluation."""

    steps: int
    epochs: int
    tested: int
    training: float
    evaluation: float


def timing_of(bench: Mapping[str, Any]) -> Timing:
    """Timing from the file of `robustly bench --json`."""
    step, sizes = bench["step"], bench["model"]["operations"]
    forwards, backwards = step["forwards"]["model"], step["backwards"]["model"]
    to_input = step["attack_gradients"]
    return Timing(
        step["seconds"]["median"] / step["batch_size"],
        step["floor"]["median"] / step["batch_size"],
        (to_input, backwards - to_input, forwards - backwards),
        (sizes["input_backward"], sizes["full_backward"], sizes["forward"]),
        {one["suite"]: one["upper"]["median"] / one["count"] for one in bench["suites"]},
    )


def planned(timing: Timing, images: int, tested: int, left: float, starting: float, whole: float) -> Plan:
    """Sizes with which the rest fits into the time.

    Args:
        timing: what the bench has measured.
        images: training images.
        tested: most test images.
        left: seconds left.
        starting: seconds in which a process starts and reads the images.
        whole: seconds of everything.
    """
    each = SURVIVING * sum(timing.suites.values())
    share = EVALUATED * whole - starting
    count = max(1, min(tested, int(share / each)))
    evaluation = count * each + starting + GRACE
    training = left - evaluation - starting - GRACE
    epoch = images * timing.step / MARGIN
    fitting = {steps: int(training / (epoch * timing.share(steps))) for steps in STEPS}
    steps = next((steps for steps in STEPS if fitting[steps] >= ENOUGH), STEPS[-1])
    return Plan(steps, max(2, min(fitting[steps], MOST)), count, training, evaluation)


def settings(scale: Scale, data: Path, device: str, images: int, plan: Plan) -> dict[str, str]:
    """Settings of the run in place of the recipe's."""
    return {
        "threat": "linf:8/255",
        "data.source": str(data),
        "data.train_limit": str(images),
        "data.validation": str(scale.held_out),
        "data.test_limit": str(plan.tested),
        "model.name": "preact_resnet18",
        "model.width": scale.width,
        **{f"model.{key}": value for key, value in NORMALISATION.items()},
        "method.inner.steps": str(plan.steps),
        "method.inner.step_size": "null",  # 2.5 epsilon / steps
        "method.parameters.awp.warm_up": str(round(0.1 * plan.epochs, 2)),
        "optimizer.learning_rate": scale.rate,
        "schedule": "{name: one_cycle, peak: 0.3}",
        "training.epochs": str(plan.epochs),
        "training.batch_size": str(scale.batch),
        "training.epsilon_ramp": str(round(0.15 * plan.epochs, 2)),
        "training.validation_steps": "5",
        "runtime.device": device,
        "runtime.precision": scale.precision,
    }


def words_of(values: Mapping[str, str]) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{key}", value)]


def timed(folder: Path, scale: Scale, values: Mapping[str, str], left: float) -> tuple[Timing, float]:
    """Timing by the bench, and the seconds in which it started."""
    began, file = time.monotonic(), folder / "bench.json"
    words = ["bench", "--recipe", RECIPE, "--seconds", str(scale.timed_seconds), "--suites", SUITE, BESIDE]
    words += ["--batch-sizes", str(scale.batch), "--parts", "passes", "step", "attacks", "--no-cache"]
    words += ["--images", str(COMPARED), "--json", str(file), *words_of(values)]
    finish({folder / "timing": started(words, folder / "timing")}, left / 2)
    if not file.is_file():
        sys.exit("the timing did not end in half of the time: give --seconds more")
    bench = json.loads(file.read_text(encoding="utf-8"))
    if not bench["step"] or any(one["upper"] is None for one in bench["suites"]):
        sys.exit(f"the bench could not measure everything: {bench['step_failure'] or 'an attack failed'}")
    return timing_of(bench), max(1.0, time.monotonic() - began - scale.timed_seconds)


def evaluated(run: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Summaries of both evaluations, of those that ended in time."""
    folders = {SUITE: run / "evaluation", BESIDE: run / f"evaluation_{BESIDE}"}
    processes: dict[Path, subprocess.Popen[bytes]] = {}
    for name in folders:
        words = ["evaluate", str(run), "--suite", name, "--evaluation.curve", "off"]
        words += [] if name == SUITE else ["--as", name]
        processes[run.with_name(name)] = started(words, run.with_name(name))
    finish(processes, seconds)
    files = {name: folder / "summary.json" for name, folder in folders.items()}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


Summaries = Mapping[str, Mapping[str, Any]]


def table(run: Path, plan: Plan, timing: Timing, found: Summaries, seconds: float) -> list[str]:
    """Lines of the table."""

    def share(name: str, key: str = "") -> str:
        if name not in found:
            return "not finished in time"
        part = found[name]["attacks"][key] if key else found[name]["worst_case"]
        low, high = part["interval"]
        return f"{100 * part['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    clean = next((f"{100 * one['clean']['accuracy']:.1f}" for one in found.values()), "not finished in time")
    rate = statistics.median(rates(run)) if rates(run) else 0.0
    ratio = f"{1 / rate / (timing.floor * timing.share(plan.steps)):.2f}" if rate else ""
    return [
        "| minutes, all in | clean | PGD-20 | `standard` | images/s in training | time / floor |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| {seconds / 60:.1f} | {clean} | {share(BESIDE, BESIDE)} | {share(SUITE)} | {rate:.0f} | {ratio} |",
    ]


def verdict(found: Summaries) -> str:
    """One sentence about the goal."""
    goal = f"The goal of {100 * GOAL:.0f} % under `{SUITE}`"
    if SUITE not in found:
        return f"{goal} was not measured, as the evaluation did not end in time."
    reached = found[SUITE]["worst_case"]["accuracy"] >= GOAL
    return f"{goal} was {'reached' if reached else 'missed'}."


def main() -> None:
    began = time.monotonic()
    batches = {device: scale.batch for device, scale in SCALES.items()}
    options = read_options(batches, seconds=525, trial=150, table=TABLE)
    scale = SCALES[options.device]
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        longest = Plan(STEPS[0], ENOUGH, scale.tested, 0, 0)
        first = settings(scale, options.data, options.device, options.limit, longest)
        timing, starting = timed(out, scale, first, options.seconds - (time.monotonic() - began))
        left = options.seconds - (time.monotonic() - began)
        plan = planned(timing, options.limit, scale.tested, left, starting, options.seconds)
        print(f"{plan.steps} attack steps, {plan.epochs} epochs, {plan.tested:,} test images", flush=True)
        run = out / "run"
        values = settings(scale, options.data, options.device, options.limit, plan)
        words = ["train", RECIPE, "--out", str(run), *words_of(values)]
        finish({run: started(words, run)}, plan.training)
        if not (run / "checkpoints" / "best.safetensors").is_file():
            sys.exit("no epoch ended in the time for training: give --seconds more")
        found = evaluated(run, max(options.seconds - (time.monotonic() - began) - GRACE, GRACE))
        seconds = time.monotonic() - began
        rows, trained = table(run, plan, timing, found, seconds), len(rates(run))
    name = torch.cuda.get_device_name() if options.device == "cuda" else "the CPU (a trial, not a result)"
    about = (
        f"CIFAR-10 (JPEG q75), {options.limit:,} training images, PreAct-ResNet-18 of width {scale.width}, "
        f"TRADES-AWP with an average of the weights, PGD-{plan.steps}, {trained} of {plan.epochs} planned epochs, "
        f"batches of {scale.batch}, {scale.precision}, linf 8/255; the first {plan.tested:,} test images, "
        f"one seed; on {name}; torch {torch.__version__}; {datetime.datetime.now(datetime.UTC):%Y-%m-%d}. "
        f"The floor is the time of the counted passes in float32 at the same batch size, measured before the run. "
        f"{verdict(found)}"
    )
    command = f"`python {' '.join(['benchmarks/gpu/speedrun.py', *sys.argv[1:]])}`"
    lines = ["# A robust network in nine minutes on one GPU", "", about, "", *rows, "", command]
    show(lines, options, TABLE)


if __name__ == "__main__":
    main()
