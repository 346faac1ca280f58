"""Measured attacks of several suites, and the predicted time of each suite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.evaluation.suites.cost import attack_cost
from robustly.evaluation.suites.suite import Suite, in_full_precision
from robustly.evidence.provenance import Mode
from robustly.performance.attack_times import AttackTime, Floor, distinct, measure_attacks, timed_as
from robustly.performance.choices import Choices
from robustly.performance.prediction import SuitePrediction, Survival, duration_words, predict_suite
from robustly.performance.shortened import shortened
from robustly.performance.timing import LEAST, BenchError, Meter, affordable
from robustly.threats import Threat

ENOUGH, SMALLEST = 16, 2
"""Images below which attacks are shortened further, and the fewest of a measurement."""
PATIENCE = 3.0
"""Attacks that would take more than this times the seconds that they may take are left out."""


@dataclass(frozen=True)
class Request:
    """Suites and the size of the evaluations that are predicted.

    Args:
        suites: the suites.
        threat: the threat.
        classes: number of classes.
        count: images of a predicted evaluation.
        mode: mode of suites that do not state one.
        curve_count: images of the security curve; None for all.
        survival: shares of an earlier evaluation; None without one.
    """

    suites: Sequence[Suite]
    threat: Threat
    classes: int
    count: int
    mode: Mode = "every"
    curve_count: int | None = None
    survival: Survival | None = None


@dataclass(frozen=True)
class SuiteTimes:
    """Times of attacks, and predictions.

    Args:
        floor: bare passes beside the attacks.
        times: times of attacks by name.
        failures: reasons of missing ones.
        predictions: one for each suite.
    """

    floor: Floor
    times: Mapping[str, AttackTime]
    failures: Mapping[str, str]
    predictions: tuple[SuitePrediction, ...]


def measure_suites(
    model: nn.Module,
    images: Callable[[int], Tensor],
    request: Request,
    choices: Choices,
    meter: Meter,
    *,
    per_image: float,
    seconds: float,
) -> SuiteTimes:
    """Measure the attacks of suites on as many images as the time allows, and predict the suites.

    As in an evaluation, searches are in bfloat16 where that is faster.

    Args:
        model: the network.
        images: the first N images.
        request: suites and sizes.
        choices: batch size, layout and precision.
        meter: clock and device.
        per_image: seconds of a forward and a backward pass to the input of one image.
        seconds: wall-clock seconds, about.

    Raises:
        BenchError: even a few images would take far too long.
    """
    half_pays = choices.bfloat16 is not None and choices.bfloat16 < 1
    suites = [suite if half_pays else in_full_precision(suite) for suite in request.suites]
    every = distinct({suite.name: suite.attacks for suite in suites})
    size = images(1).numel()
    pass_seconds = per_image / 2
    thrift, least = False, LEAST
    count = affordable(
        choices.batch_size, _passes(every, request, size, thrift) * pass_seconds, seconds, smallest=SMALLEST
    )
    if count < min(ENOUGH, choices.batch_size):
        thrift = True
        cost = _passes(every, request, size, thrift) * pass_seconds
        count = affordable(choices.batch_size, cost, seconds, smallest=SMALLEST, least=least)
        if count <= SMALLEST:
            least = 1
            count = affordable(choices.batch_size, cost, seconds, smallest=SMALLEST, least=least)
        needed = count * (1 + least) * cost
        if needed > PATIENCE * seconds:
            raise BenchError(f"they would take about {duration_words(needed)}: raise --seconds")
    found = measure_attacks(
        model,
        images(count),
        request.threat,
        every,
        layout=choices.layout,
        meter=meter,
        seconds=seconds,
        thrift=thrift,
        least=least,
    )
    predictions = tuple(
        predict_suite(
            suite,
            request.threat,
            count=request.count,
            classes=request.classes,
            size=size,
            floor=found.floor,
            times={
                name: found.times[key]
                for name, attack in suite.attacks.items()
                for key, one in every.items()
                if one == attack and key in found.times
            },
            survival=request.survival,
            batch_size=choices.batch_size,
            mode=request.mode,
            curve_count=request.curve_count,
        )
        for suite in suites
    )
    return SuiteTimes(found.floor, found.times, found.failures, predictions)


def _passes(attacks: Mapping[str, Attack], request: Request, size: int, thrift: bool) -> int:
    """Passes of an image in one round of the measurement."""
    short = {name: shortened(one, thrift) for name, one in attacks.items()}
    names = set(timed_as(short).values())
    return sum(sum(attack_cost(short[name], request.threat, request.classes, size)) for name in names)
