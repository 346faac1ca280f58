"""All measurements of one model on one machine, within a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import logits_of
from robustly.evaluation.suites.suite import Suite
from robustly.evidence.provenance import Mode, now, software_versions
from robustly.models.adapter import model_name
from robustly.performance.attack_times import AttackTime, Floor
from robustly.performance.bound_times import BoundTimes, measure_bounds
from robustly.performance.choices import Choices, choose, machine
from robustly.performance.operations import operations_of
from robustly.performance.passes import Copies, Passes, bare_pass, measure_passes
from robustly.performance.peak import peak_bytes, weight_bytes
from robustly.performance.prediction import SuitePrediction, Survival
from robustly.performance.step_times import StepTime
from robustly.performance.suite_times import Request, measure_suites
from robustly.performance.timing import BenchError, Meter
from robustly.threats import Threat

SCHEMA = 1
SHARES = {"passes": 0.2, "threads": 0.05, "step": 0.15, "attacks": 0.5, "bounds": 0.1}
"""Share of the time of each part."""
PARTS = ("passes", "step", "attacks", "bounds")
_SMALLEST = 4


@dataclass(frozen=True)
class Plan:
    """Measurements to make, and predictions.

    Args:
        seconds: wall-clock seconds for all measurements, about.
        sizes: batch sizes, ascending.
        suites: suites whose time is predicted.
        count: images of a predicted evaluation.
        devices: number of devices of a predicted evaluation that shares its images evenly.
        mode: mode of suites that do not state one.
        curve_count: images of the security curve.
        parts: names of `PARTS`; "passes" is always measured.
    """

    seconds: float
    sizes: Sequence[int]
    suites: Sequence[Suite]
    count: int
    devices: int
    mode: Mode = "every"
    curve_count: int | None = None
    parts: Sequence[str] = PARTS


@dataclass(frozen=True)
class Memory:
    """Bytes of a batch.

    Args:
        batch_size: images.
        forward_backward: most bytes of tensors alive in a pass to the input, weights included.
        training: the same in a pass to the weights, gradients included; None if it fails.
    """

    batch_size: int
    forward_backward: int
    training: int | None


@dataclass(frozen=True)
class Report:
    """Everything that `robustly bench` measured and predicted.

    Args:
        model: name and size of the network, the shape of an image, and the counted operations of its passes.
        threat: text of the threat.
        clock: "wall" or "cpu".
        device: device of the model.
        passes: bare passes.
        memory: peak memory by batch size.
        choices: the faster choices.
        floor: bare passes beside the attacks; None without attacks.
        attacks: times of attacks by name.
        attack_failures: reasons of missing ones.
        suites: predictions.
        devices: see `Plan`.
        survival: shares of an earlier evaluation; None without one.
        step: the training step; None without one.
        step_failure: reason; empty if it was measured.
        bounds: bounds; None if they were not measured.
        machine: processor, cores, threads, GPU, version of PyTorch.
        versions: versions of the software.
        created: time in ISO format.
    """

    model: Mapping[str, object]
    threat: str
    clock: str
    device: str
    passes: Passes
    memory: tuple[Memory, ...]
    choices: Choices
    floor: Floor | None
    attacks: Mapping[str, AttackTime]
    attack_failures: Mapping[str, str]
    suites: tuple[SuitePrediction, ...]
    devices: int
    survival: Survival | None
    step: StepTime | None
    step_failure: str
    bounds: BoundTimes | None
    machine: Mapping[str, object]
    versions: Mapping[str, str]
    created: str

    def as_plain(self) -> dict[str, Any]:
        """The report as plain values of JSON."""
        return {"schema": SCHEMA, "kind": "robustly bench", **asdict(self)}


def check_seconds(seconds: float) -> None:
    """Refuse a time that is not a positive number.

    Raises:
        BenchError: it is not one.
    """
    if not 0 < seconds < float("inf"):
        raise BenchError(f"--seconds must be a positive number, got {seconds:g}")


def bench(
    model: nn.Module,
    images: Callable[[int], Tensor],
    classes: int,
    threat: Threat,
    plan: Plan,
    meter: Meter,
    *,
    survival: Survival | None = None,
    step: Callable[[float, float], StepTime] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure a model.

    Args:
        model: the network in evaluation mode, on the device; it is not changed.
        images: the first N images, `(N, C, H, W)` in [0, 1], for any N.
        classes: number of classes.
        threat: the threat.
        plan: what to measure.
        meter: clock and device.
        survival: shares of an earlier evaluation.
        step: measures the training step, from the seconds of a pass of one image and the seconds that it may take;
            None for a model without a training method.
        note: takes the name of each part when it begins.

    Raises:
        BenchError: the model fails in every pass, or the time is not positive.
    """
    check_seconds(plan.seconds)
    seconds = {name: share * plan.seconds for name, share in SHARES.items()}
    note("passes")
    passes = measure_passes(model, images, meter, sizes=plan.sizes, seconds=seconds["passes"])
    memory = tuple(_memory(model, images, size, passes, meter) for size in _sizes_that_work(passes))
    note("threads")
    choices = choose(model, images, passes, meter, seconds=seconds["threads"])
    both = passes.best("input_backward", passes.precisions[0]).per_image
    forward = passes.best("forward", passes.precisions[0]).per_image
    trained, failure = None, ""
    if step is not None and "step" in plan.parts:
        note("training step")
        try:
            trained = step(both, seconds["step"])
        except (ValueError, RuntimeError) as error:
            failure = str(error)
    suites, reason = None, ""
    if "attacks" in plan.parts and plan.suites:
        note("attacks")
        request = Request(plan.suites, threat, classes, plan.count, plan.mode, plan.curve_count, survival)
        try:
            suites = measure_suites(
                model, images, request, choices, meter, per_image=both, seconds=seconds["attacks"]
            )
        except BenchError as error:
            reason = str(error)
    bounds = None
    if "bounds" in plan.parts:
        note("bounds")
        x = images(_SMALLEST)
        with frozen(model), torch.no_grad():
            y = logits_of(model, x).argmax(1)
        bounds = measure_bounds(model, x, y, threat, forward=forward, meter=meter, seconds=seconds["bounds"])
    return Report(
        model={
            "name": model_name(model),
            "parameters": sum(one.numel() for one in model.parameters()),
            "image": list(images(1).shape[1:]),
            "classes": classes,
            "operations": operations_of(model, images(passes.best("forward").batch_size), passes.precisions[0]),
        },
        threat=str(threat),
        clock=meter.clock,
        device=str(meter.device),
        passes=passes,
        memory=memory,
        choices=choices,
        floor=None if suites is None else suites.floor,
        attacks={} if suites is None else suites.times,
        attack_failures={"all": reason} if suites is None and reason else {} if suites is None else suites.failures,
        suites=() if suites is None else suites.predictions,
        devices=plan.devices,
        survival=survival,
        step=trained,
        step_failure=failure,
        bounds=bounds,
        machine=machine(),
        versions=software_versions(),
        created=now(),
    )


def _sizes_that_work(passes: Passes) -> list[int]:
    return list(
        dict.fromkeys(one.batch_size for one in passes.times if one.seconds and one.kind == "input_backward")
    )


def _memory(model: nn.Module, images: Callable[[int], Tensor], size: int, passes: Passes, meter: Meter) -> Memory:
    """Peak memory of a batch in full precision."""
    own, copies, x = passes.precisions[0], Copies(model, {}), images(size)
    weights = weight_bytes(model)
    to_input = peak_bytes(bare_pass(copies, x, "input_backward", own, "contiguous"), meter.device)
    trains = [one for one in passes.times if one.kind == "full_backward" and one.batch_size == size and one.seconds]
    training = None
    if trains:
        training = weights + peak_bytes(bare_pass(copies, x, "full_backward", own, "contiguous"), meter.device)
    return Memory(size, weights + to_input, training)
