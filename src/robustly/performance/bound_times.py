"""Time of certificates by bounds, in units of forward passes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.certification.certificates import BoundCertificate
from robustly.certification.problem import Method
from robustly.performance.timing import Meter, Spread, alternating, failure_words, spread_of
from robustly.randomness import KeyedGenerator
from robustly.threats import Threat, ThreatModel

METHODS: tuple[Method, ...] = ("ibp", "crown")
LEAST_FOR_BACKWARD = 2.0
"""Seconds below which backward bounds are not tried: a trial of one image may take as long."""


@dataclass(frozen=True)
class BoundTime:
    """Time of the bounds of one method, with their proofs in float64, and without certified radii below epsilon.

    Args:
        seconds: seconds of an image.
        forwards: the same in units of a forward pass of one image, in full precision and in a batch.
        batch_size: images that were bounded together.
    """

    seconds: Spread
    forwards: Spread
    batch_size: int


@dataclass(frozen=True)
class BoundTimes:
    """Times by method, and reasons why others are missing."""

    times: Mapping[str, BoundTime]
    failures: Mapping[str, str]


def measure_bounds(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    forward: float,
    meter: Meter,
    seconds: float,
    methods: Sequence[Method] = METHODS,
) -> BoundTimes:
    """Time the bounds of a few images.

    Args:
        model: the network.
        x: images, `(N, ...)`.
        y: classes that the model predicts, `(N,)`.
        threat: the threat; only Lp balls have bounds.
        forward: seconds of a forward pass, per image.
        meter: clock and device.
        seconds: wall-clock seconds for everything, about. A method that would take longer is left
            out.
        methods: methods of `BoundCertificate` without branch and bound.
    """
    if not isinstance(threat, ThreatModel):
        return BoundTimes({}, dict.fromkeys(methods, f"there are bounds for Lp balls, the threat is {threat}"))
    times: dict[str, BoundTime] = {}
    failures: dict[str, str] = {}
    draws = KeyedGenerator(0, y.new_tensor(range(len(x))))
    with frozen(model):
        try:
            read = BoundCertificate(methods[0], halvings=0).prepared(model, x, threat=threat)
        except Exception as error:  # an operation that cannot be bounded
            return BoundTimes({}, dict.fromkeys(methods, failure_words(error)))
        for method in methods:
            if method != "ibp" and seconds < LEAST_FOR_BACKWARD:
                failures[method] = "their trial alone would take too long (--seconds)"
                continue
            ready = replace(read, settings=BoundCertificate(method, halvings=0))
            work = partial(ready.screen, model, x, y, threat=threat, generator=draws)
            try:
                wanted = ready.expected_seconds(x[:1], threat=threat) * len(x)
            except Exception as error:  # memory, or a bound that is not finite
                failures[method] = failure_words(error)
                continue
            if wanted > seconds / len(methods):
                failures[method] = f"an image would take about {wanted / len(x):.2g} s, too long (--seconds)"
                continue
            rounds = alternating({method: work}, meter, seconds / len(methods), least=1, most=5)
            if method in rounds.seconds:
                times[method] = _time(rounds.seconds[method], len(x), forward)
            else:
                failures[method] = rounds.failures[method]
    return BoundTimes(times, failures)


def _time(seconds: list[float], count: int, forward: float) -> BoundTime:
    each = spread_of(seconds).times(1 / count)
    return BoundTime(each, each.times(1 / max(forward, 1e-12)), count)
