"""Time of attacks relative to the bare passes that they count."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from robustly.attacks import Attack, AttackResult
from robustly.performance.new_sizes import seconds_of_new_size
from robustly.performance.passes import Copies, Kind, bare_pass, own_precision
from robustly.performance.shortened import lengthened, shortened
from robustly.performance.steady import steady
from robustly.performance.timing import LEAST, Meter, Rounds, Spread, Work, alternating
from robustly.randomness import KeyedGenerator
from robustly.threats import Threat

FEW = 8
"""Images of a second, small batch."""
TIMED: tuple[Kind, ...] = ("forward", "input_backward")
"""Bare passes beside the attacks."""
TINY = 1e-3
"""Share of the threat's size at which attacks are timed, so that no image is broken and every pass is made."""


@dataclass(frozen=True)
class AttackTime:
    """Time of an attack, shortened to a few steps, on images that it does not break.

    Args:
        ratio: time of its passes, relative to the same passes in full precision, made one after the other by hand.
        own_ratio: the same, relative to passes in the precision of its search.
        precision: precision of the search.
        forwards: counted forward passes per image.
        backwards: counted backward passes per image.
        batch_size: images of the batch.
        fixed: time of a batch that does not depend on its images, in units of the time of one more image.
        new_size: seconds that the first pass of a batch size takes longer, in the precision of the search; 0 for
            attacks that keep broken images.
        call: seconds of a batch before and after its passes, for example for a copy of the network; not in `ratio`.
    """

    ratio: Spread
    own_ratio: Spread
    precision: str
    forwards: float
    backwards: float
    batch_size: int
    fixed: float = 0.0
    new_size: float = 0.0
    call: float = 0.0

    def relative(self, images: float, batches: float) -> float:
        """Time of an image in batches of any size, relative to that in the measured batch.

        Args:
            images: number of images.
            batches: number of batches in which they are attacked.
        """
        measured = 1 + self.fixed / self.batch_size
        return (1 + self.fixed * batches / images) / measured if images else 1.0


@dataclass(frozen=True)
class Floor:
    """Seconds of bare passes, by which counted passes become seconds.

    Args:
        forward: seconds of a forward pass, per image.
        both: seconds of a forward and a backward pass to the input, per image.
    """

    forward: Spread
    both: Spread

    def seconds(self, forwards: float, backwards: float) -> float:
        """Median seconds of counted passes of one image."""
        return _floor(forwards, backwards, self.forward.median, self.both.median)


@dataclass(frozen=True)
class AttackTimes:
    """Times of several attacks, and of the bare passes beside them.

    Args:
        floor: bare passes in full precision, in the faster layout.
        times: times of the attacks, by name.
        failures: reasons of those that could not be timed.
    """

    floor: Floor
    times: Mapping[str, AttackTime]
    failures: Mapping[str, str]


def measure_attacks(
    model: nn.Module,
    x: Tensor,
    threat: Threat,
    attacks: Mapping[str, Attack],
    *,
    layout: str,
    meter: Meter,
    seconds: float,
    thrift: bool = False,
    least: int = LEAST,
) -> AttackTimes:
    """Time shortened attacks and bare passes in turn.

    Args:
        model: the network.
        x: a batch of images, `(N, ...)`.
        threat: the threat.
        attacks: attacks by name.
        layout: layout of the bare passes; see `PassTime`.
        meter: clock and device.
        seconds: wall-clock seconds, about; a long attack takes more.
        thrift: see `shortened`.
        least: fewest rounds.
    """
    small, unbroken = _tiny(threat), steady(model, x)
    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    short = {name: shortened(attack, thrift) for name, attack in attacks.items()}
    alike = timed_as(short)
    found: dict[str, AttackResult] = {}

    few = max(min(FEW, len(x) // 4), 1)

    def run(name: str) -> None:
        draws = KeyedGenerator(0, torch.arange(len(x), device=x.device))
        found[name] = short[name](unbroken, x, y, threat=small, generator=draws)

    def run_few(name: str, attack: Attack) -> None:
        draws = KeyedGenerator(0, torch.arange(few, device=x.device))
        found[name] = attack(unbroken, x[:few], y[:few], threat=small, generator=draws)

    copies = Copies(model, {})
    full, half = own_precision(model), "bfloat16"
    layouts = {full: layout} | ({half: "channels_last"} if _converts(copies) else {})

    def pass_of(kind: Kind, precision: str, some: Tensor) -> Work:
        return bare_pass(copies, some, kind, precision, layouts[precision])

    works = {f"{kind} {precision}": pass_of(kind, precision, x) for precision in layouts for kind in TIMED}
    works |= {name: partial(run, name) for name in dict.fromkeys(alike.values())}
    for name in dict.fromkeys(alike.values()):
        works[_few(name)] = partial(run_few, _few(name), short[name])
        longer = lengthened(short[name], attacks[name])
        if longer is not None:
            works[_longer(name)] = partial(run_few, _longer(name), longer)
    rounds = alternating(works, meter, seconds, least=least)
    floor = Floor(
        rounds.spread(f"forward {full}").times(1 / len(x)),
        rounds.spread(f"input_backward {full}").times(1 / len(x)),
    )
    measured = {
        one: _time(short[one], found, rounds, one, full, (few, len(x)))
        for one in short
        if one in rounds.seconds and _few(one) in rounds.seconds
    }
    new = {}
    for precision in dict.fromkeys(time.precision for time in measured.values()):
        new[precision] = seconds_of_new_size(partial(pass_of, "input_backward", precision), x, meter)
    measured = {
        one: replace(time, new_size=new[time.precision]) if _removes(short[one]) else time
        for one, time in measured.items()
    }
    times = {name: measured[one] for name, one in alike.items() if one in measured}
    return AttackTimes(
        floor, times, {name: rounds.failures[one] for name, one in alike.items() if one in rounds.failures}
    )


def timed_as(attacks: Mapping[str, Attack]) -> dict[str, str]:
    """For each attack, the name of the first one that does the same work, which is timed for both."""
    alike: dict[str, str] = {}
    for name, attack in attacks.items():
        alike[name] = next((one for one in alike if _same(attacks[one], attack)), name)
    return alike


def _time(
    attack: Attack,
    found: Mapping[str, AttackResult],
    rounds: Rounds,
    name: str,
    full: str,
    counts: tuple[int, int],
) -> AttackTime:
    few, count = counts
    forwards, backwards = _passes(found[name])
    wanted = getattr(attack, "precision", "full")
    own = "bfloat16" if wanted == "bfloat16" and "forward bfloat16" in rounds.seconds else full

    def bare(one: Mapping[str, float], precision: str, result: AttackResult) -> float:
        keys = f"forward {precision}", f"input_backward {precision}"
        return _floor(*_passes(result), one[keys[0]], one[keys[1]]) / count

    medians = {work: rounds.spread(work).median for work in rounds.seconds}
    few_seconds, seconds = medians[_few(name)], medians[name]
    call = 0.0
    if _longer(name) in medians:
        lengths = _few(name), _longer(name)
        short, long = (bare(medians, own, found[work]) for work in lengths)
        call = seconds_of_call((short, long), (few_seconds, medians[_longer(name)]))
    passes = 1 - min(call / max(seconds, 1e-12), 1.0)
    return AttackTime(
        rounds.ratio(name, lambda one: bare(one, full, found[name])).times(passes),
        rounds.ratio(name, lambda one: bare(one, own, found[name])).times(passes),
        own,
        forwards / count,
        backwards / count,
        count,
        _fixed(few_seconds - call, few, seconds - call, count),
        call=call,
    )


def seconds_of_call(passes: tuple[float, float], seconds: tuple[float, float]) -> float:
    """Seconds of an attack beside its passes, from two lengths of it on the same images; at least 0.

    Args:
        passes: passes of both, in any unit.
        seconds: seconds of both.
    """
    more = passes[1] - passes[0]
    each = max(seconds[1] - seconds[0], 0.0) / more if more > 0 else 0.0
    return max(seconds[0] - each * passes[0], 0.0) if each else 0.0


def _passes(result: AttackResult) -> tuple[float, float]:
    return float(result.forwards.sum()), float(result.backwards.sum())


def _removes(attack: Attack) -> bool:
    """True if the attack removes broken images from its batch."""
    return getattr(attack, "early_stop", not attack.minimum_norm)


def _few(name: str) -> str:
    return f"{name}, few images"


def _longer(name: str) -> str:
    return f"{name}, few images, twice as long"


def _fixed(few_seconds: float, few: int, seconds: float, count: int) -> float:
    """Images whose time is that of a batch without images, if time is linear in their number; at least 0."""
    if count <= few or seconds <= few_seconds:
        return 0.0
    slope = (seconds - few_seconds) / (count - few)
    return max(few_seconds / slope - few, 0.0)


def _floor(forwards: float, backwards: float, forward: float, both: float) -> float:
    """Seconds of passes: each backward pass has a forward pass before it; a network may take several for one."""
    paired = min(forwards, backwards)
    return paired * both + (forwards - paired) * forward + (backwards - paired) * max(both - forward, 0.0)


def _tiny(threat: Threat) -> Threat:
    """A threat of a size that breaks no image, where its kind has such sizes."""
    try:
        small = threat.scaled(TINY)
        return small if small.extent else threat
    except (ValueError, TypeError):
        return threat


def _same(one: Attack, other: Attack) -> bool:
    """True for attacks that differ by nothing that their time depends on."""

    def rest(attack: Attack) -> tuple[object, ...]:
        ignored = ("objective", "first")
        return tuple(getattr(attack, item.name) for item in fields(attack) if item.name not in ignored)  # type: ignore[arg-type]

    return type(one) is type(other) and is_dataclass(one) and rest(one) == rest(other)


def _converts(copies: Copies) -> bool:
    """True if a copy in bfloat16 can be made."""
    try:
        copies.of(torch.bfloat16, "channels_last", trains=False)
    except Exception:  # the network is the user's
        return False
    return True


def distinct(suites: Mapping[str, Mapping[str, Attack]]) -> dict[str, Attack]:
    """Attacks of several suites by name, or by suite and name where an earlier one has the name.

    Args:
        suites: attacks by name, by suite.
    """
    found: dict[str, Attack] = {}
    for suite, attacks in suites.items():
        for name, attack in attacks.items():
            found[name if found.get(name, attack) == attack else f"{suite}.{name}"] = attack
    return found
