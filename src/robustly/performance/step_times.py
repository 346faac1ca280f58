"""Time of a training step relative to the bare passes that its method counts."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from robustly.data import Batch
from robustly.performance.passes import KINDS, Copies, bare_pass
from robustly.performance.peak import peak_bytes, weight_bytes
from robustly.performance.prediction import duration_words
from robustly.performance.timing import LEAST, BenchError, Meter, Spread, Work, affordable, alternating, spread_of
from robustly.runtime import Runtime
from robustly.training import Job, Moment
from robustly.training.cost import StepCost, step_cost
from robustly.training.engine.metrics import Totals
from robustly.training.engine.stepping import Stepper
from robustly.training.parts import CONVENTIONAL_NETWORKS

SMALLEST, PATIENCE = 2, 10.0
"""Fewest images of a measured step, and the multiple of the allowed seconds above which it is left out."""
VALIDATION_PASSES = 3
"""Forward passes of a validation image beside those of the steps: clean, and the first and last of the attack."""


@dataclass(frozen=True)
class StepTime:
    """Time and memory of a training step, and the time of a run.

    Args:
        batch_size: images of the measured steps.
        wanted: images of a step of the run; more than `batch_size` if that would have taken too long.
        seconds: seconds of a step.
        data: seconds of drawing and augmenting its batch, a part of these.
        floor: seconds of the counted passes, made by hand in full precision.
        ratio: time of a step relative to that floor, round by round.
        forwards: counted forward passes per image, by network.
        backwards: counted backward passes per image, by network.
        attack_gradients: backward passes of the training attack, a part of these.
        memory: most bytes alive in a step, and the bytes of weights, gradients and optimiser.
        step_images: training images of an epoch.
        epochs: epochs of the run.
        epoch: predicted seconds of an epoch, validation included.
        run: predicted seconds of the run.
    """

    batch_size: int
    wanted: int
    seconds: Spread
    data: Spread
    floor: Spread
    ratio: Spread
    forwards: Mapping[str, int]
    backwards: Mapping[str, int]
    attack_gradients: int
    memory: int
    step_images: int
    epochs: int
    epoch: Spread
    run: Spread


def measure_step(job: Job, runtime: Runtime, meter: Meter, *, per_image: float, seconds: float) -> StepTime:
    """Time training steps of the last epoch and their bare passes in turn. The networks of the job are trained.

    Args:
        job: method, networks and data.
        runtime: device and precision, of a single process.
        meter: clock and device.
        per_image: seconds of a forward and a backward pass to the input of one image, about.
        seconds: wall-clock seconds for everything, about.

    Raises:
        ValueError: a network that cannot be trained.
        BenchError: even a step of two images would take far too long.
    """
    frozen = [name for name, network in job.networks.items() if network.frozen]
    cost = step_cost(job.method, job.training.epochs, frozen or _usual_teachers(job), job.threats)
    wanted = min(job.training.batch_size, len(job.train))
    each = 2 * cost.total * per_image  # the step and its bare passes
    batch = affordable(wanted, each, seconds, smallest=SMALLEST)
    needed = (1 + LEAST) * batch * each
    if needed > PATIENCE * seconds and batch <= SMALLEST:
        raise BenchError(f"it would take about {duration_words(needed)}: raise --seconds")
    with warnings.catch_warnings(action="ignore"):  # those of the job itself were shown when it was made
        small = replace(job, training=replace(job.training, batch_size=batch))
    with torch.random.fork_rng(devices=[meter.device] if meter.device.type == "cuda" else []):
        stepper = Stepper(small, runtime)
        with stepper.prepared():
            return _measured(small, stepper, runtime, meter, cost, wanted, seconds)


def _usual_teachers(job: Job) -> list[str]:
    return [name for name in job.networks if CONVENTIONAL_NETWORKS.get(name) == "frozen"]


def _measured(
    job: Job, stepper: Stepper, runtime: Runtime, meter: Meter, cost: StepCost, wanted: int, seconds: float
) -> StepTime:
    last = job.training.epochs - 1
    stepper.begin_epoch(last)
    drawn = _endless(stepper, last)
    current = [next(drawn)]
    totals = Totals(runtime.device)

    def draw() -> None:
        current[0] = next(drawn)

    def step_of(batch: Batch) -> None:
        moment = Moment(last, 0, job.steps_per_epoch, job.training.epochs)
        for replay in range(job.method.replays):
            stepper.step(batch, moment, replay, totals)

    def step() -> None:
        step_of(current[0])

    networks = {"model": stepper.networks.model, **stepper.networks.trained, **stepper.networks.frozen}
    x = current[0].x
    works: dict[str, Work] = {"data": draw, "step": step}
    few = max(len(x) // 3, SMALLEST)
    if few < len(x) < wanted:
        rows = torch.arange(few, device=x.device)
        works["few"] = lambda: step_of(current[0].select(rows))
    for name in (name for name, count in cost.forwards.items() if count):
        works |= {f"{name} {kind}": work for kind, work in _bare(networks[name], x).items()}
    rounds = alternating(works, meter, seconds)
    if "step" in rounds.failures:
        raise ValueError(f"a training step fails: {rounds.failures['step']}")

    def floor(one: Mapping[str, float]) -> float:
        return sum(_network_floor(cost, name, one) for name in cost.forwards if cost.forwards[name])

    whole = [
        {name: values[number] for name, values in rounds.seconds.items()}
        for number in range(len(rounds.seconds["step"]))
    ]
    floors = [floor(one) for one in whole]
    before = weight_bytes(*networks.values()) + _gradient_bytes(networks) + _optimiser_bytes(stepper)
    memory = before + peak_bytes(step, runtime.device)
    steps = [one["step"] + one["data"] for one in whole]
    per_image = spread_of(steps).times(1 / len(x))
    if "few" in rounds.seconds:
        fewer = rounds.spread("few").median
        per_image = per_image.times(in_larger_batch(few, fewer, len(x), rounds.spread("step").median, wanted))
    forward, both = (rounds.spread(f"model {kind}").median / len(x) for kind in ("forward", "input_backward"))
    clean = len(job.validation) * 2 * forward
    attacked = len(job.validation) * (job.training.validation_steps * both + VALIDATION_PASSES * forward)
    epoch = per_image.times(len(job.train))
    epoch = Spread(epoch.median + attacked, epoch.low + clean, epoch.high + attacked, epoch.runs)
    return StepTime(
        batch_size=len(x),
        wanted=wanted,
        seconds=spread_of(steps),
        data=rounds.spread("data"),
        floor=spread_of(floors),
        ratio=spread_of([(one["step"] + one["data"]) / bare for one, bare in zip(whole, floors, strict=True)]),
        forwards=cost.forwards,
        backwards=cost.backwards,
        attack_gradients=cost.attack_gradients,
        memory=memory,
        step_images=len(job.train),
        epochs=job.training.epochs,
        epoch=epoch,
        run=epoch.times(job.training.epochs),
    )


def in_larger_batch(few: int, few_seconds: float, count: int, seconds: float, wanted: int) -> float:
    """Time of an image in a batch of `wanted` images, relative to that in one of `count`.

    A step has a part that does not depend on the number of images, such as that of the optimiser. It follows from
    the times of two batches; that of an image is at least half of its share of the larger one.

    Args:
        few: images of the smaller batch.
        few_seconds: seconds of a step with it.
        count: images of the larger batch.
        seconds: seconds of a step with it.
        wanted: images of a batch of the run.
    """
    share = seconds / count
    slope = min(max((seconds - few_seconds) / (count - few), share / 2), share)
    return (seconds + slope * (wanted - count)) / wanted / share


def _endless(stepper: Stepper, epoch: int) -> Iterator[Batch]:
    """Whole batches of an epoch, again and again."""
    size = 0
    while True:
        for batch in stepper.batches(epoch):
            size = max(size, len(batch))
            if len(batch) == size:
                yield batch


def _bare(network: nn.Module, x: torch.Tensor) -> dict[str, Work]:
    """The three kinds of passes of a network, in full precision and in the layout in which it is trained."""
    layout = "channels_last" if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else "contiguous"
    copies = Copies(network, {})
    own = str(x.dtype).split(".")[1]
    return {kind: bare_pass(copies, x, kind, own, layout) for kind in KINDS}


def _network_floor(cost: StepCost, name: str, one: Mapping[str, float]) -> float:
    """Seconds of the counted passes of one network; those of the attack go to the input of the model."""
    forwards, backwards = cost.forwards[name], cost.backwards[name]
    to_input = min(cost.attack_gradients, backwards) if name == "model" else 0
    to_weights = backwards - to_input
    alone = max(forwards - backwards, 0)
    return (
        to_input * one[f"{name} input_backward"]
        + to_weights * one[f"{name} full_backward"]
        + alone * one[f"{name} forward"]
    )


def _gradient_bytes(networks: Mapping[str, nn.Module]) -> int:
    """Bytes of the gradients of the step before."""
    gradients = [weight.grad for network in networks.values() for weight in network.parameters()]
    return sum(one.numel() * one.element_size() for one in gradients if one is not None)


def _optimiser_bytes(stepper: Stepper) -> int:
    """Bytes of the optimisers' tensors."""
    total = 0
    for state in stepper.optimizers.state_dict().values():
        for entry in state.get("state", {}).values():
            total += sum(v.numel() * v.element_size() for v in entry.values() if isinstance(v, torch.Tensor))
    return total
