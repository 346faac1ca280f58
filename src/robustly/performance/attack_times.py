"""Time of attacks relative to the bare passes that they count."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustly.attacks import Attack, AttackResult
from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import logits_of
from robustly.performance.new_sizes import seconds_of_new_size
from robustly.performance.passes import Copies, Kind, bare_pass, own_precision
from robustly.performance.timing import LEAST, Meter, Rounds, Spread, Work, alternating
from robustly.randomness import KeyedGenerator
from robustly.threats import Threat

STEPS = 8
"""Steps of a shortened attack with one run; with more runs, down to `FEWEST`."""
FEWEST = 3
FEW = 8
"""Images of a second, small batch."""
SHORTER = {"queries": 4 * STEPS, "restarts": 5, "targets": 9, "search_steps": 1, "draws": STEPS}
"""Other settings of a shortened attack, where it has more. Several runs remain, because they are one batch."""
THRIFTY = SHORTER | {"queries": 2 * FEWEST, "restarts": 1, "targets": 1, "draws": FEWEST, "odi_steps": 1}
TIMED: tuple[Kind, ...] = ("forward", "input_backward")
"""Bare passes beside the attacks."""
_SLOPE = 1e-3
TINY = 1e-3
"""Share of the threat's size at which attacks are timed, so that no image is broken and every pass is made."""


@dataclass(frozen=True)
class AttackTime:
    """Time of an attack, shortened to a few steps, on images that it does not break.

    Args:
        ratio: its time, relative to the same passes in full precision, made one after the other by hand.
        own_ratio: the same, relative to passes in the precision of its search.
        precision: precision of the search.
        forwards: counted forward passes per image.
        backwards: counted backward passes per image.
        batch_size: images of the batch.
        fixed: time of a batch that does not depend on its images, in units of the time of one more image.
        new_size: seconds that the first pass of a batch size takes longer, in the precision of the search; 0 for
            attacks that keep broken images.
    """

    ratio: Spread
    own_ratio: Spread
    precision: str
    forwards: float
    backwards: float
    batch_size: int
    fixed: float = 0.0
    new_size: float = 0.0

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


def shortened(attack: Attack, thrift: bool = False) -> Attack:
    """The attack with a few steps and queries; the time of a pass is that of the whole attack.

    An attack without steps and without any of the settings in `SHORTER` stays as it is.

    Args:
        attack: the attack.
        thrift: for slow networks: fewer steps, and one run.
    """
    if not is_dataclass(attack):
        return attack
    given: Any = attack
    names = {item.name for item in fields(given) if item.init}
    changes = {
        name: most
        for name, most in (THRIFTY if thrift else SHORTER).items()
        if name in names and isinstance(getattr(given, name), int) and getattr(given, name) > most
    }
    steps = getattr(given, "steps", None)
    if steps == 0 and "restarts" in names:  # random points
        changes["restarts"] = min(given.restarts, STEPS)
    elif isinstance(steps, int):
        runs = [changes.get(name, getattr(given, name, 1)) or 1 for name in ("restarts", "targets")]
        changes["steps"] = min(steps, FEWEST if thrift else max(2 * STEPS // (1 + runs[0] * runs[1]), FEWEST))
    changed: Attack = replace(given, **changes) if changes else given
    return changed


class Steady(nn.Module):
    """A network with a large constant added to its first logit, so that no attack breaks an image of class 0.

    The mean of the image, with a small weight, is added to the logits too: the gradients of networks whose last
    layer is still zero would end some searches at once.
    """

    def __init__(self, model: nn.Module, lead: float) -> None:
        super().__init__()
        self.model, self.lead = model, lead

    def forward(self, x: Tensor) -> Tensor:
        """Logits, `(N, K)`."""
        logits = logits_of(self.model, x)
        classes = torch.arange(logits.shape[1], dtype=logits.dtype, device=logits.device)
        return logits + self.lead * (classes == 0) + _SLOPE * x.flatten(1).mean(1, keepdim=True) * classes


def steady(model: nn.Module, x: Tensor) -> Steady:
    """The network with a lead of class 0 that is larger than all differences between its logits on a few images."""
    with frozen(model), torch.no_grad():
        logits = logits_of(model, x).nan_to_num(0.0, 0.0, 0.0)
    return Steady(model, 4 * float(logits.max() - logits.min()) + 1)


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

    def run_few(name: str) -> None:
        draws = KeyedGenerator(0, torch.arange(few, device=x.device))
        short[name](unbroken, x[:few], y[:few], threat=small, generator=draws)

    copies = Copies(model, {})
    full, half = own_precision(model), "bfloat16"
    layouts = {full: layout} | ({half: "channels_last"} if _converts(copies) else {})

    def pass_of(kind: Kind, precision: str, some: Tensor) -> Work:
        return bare_pass(copies, some, kind, precision, layouts[precision])

    works = {f"{kind} {precision}": pass_of(kind, precision, x) for precision in layouts for kind in TIMED}
    works |= {name: partial(run, name) for name in dict.fromkeys(alike.values())}
    works |= {_few(name): partial(run_few, name) for name in dict.fromkeys(alike.values())}
    rounds = alternating(works, meter, seconds, least=least)
    floor = Floor(
        rounds.spread(f"forward {full}").times(1 / len(x)),
        rounds.spread(f"input_backward {full}").times(1 / len(x)),
    )
    measured = {
        one: _time(short[one], found[one], rounds, one, full, (few, len(x)))
        for one in found
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
    attack: Attack, result: AttackResult, rounds: Rounds, name: str, full: str, counts: tuple[int, int]
) -> AttackTime:
    few, count = counts
    forwards, backwards = (float(one.sum()) for one in (result.forwards, result.backwards))
    wanted = getattr(attack, "precision", "full")
    own = "bfloat16" if wanted == "bfloat16" and "forward bfloat16" in rounds.seconds else full

    def floor_in(precision: str) -> Callable[[Mapping[str, float]], float]:
        keys = f"forward {precision}", f"input_backward {precision}"
        return lambda one: _floor(forwards, backwards, one[keys[0]], one[keys[1]]) / count

    return AttackTime(
        rounds.ratio(name, floor_in(full)),
        rounds.ratio(name, floor_in(own)),
        own,
        forwards / count,
        backwards / count,
        count,
        _fixed(rounds.spread(_few(name)).median, few, rounds.spread(name).median, count),
    )


def _removes(attack: Attack) -> bool:
    """True if the attack removes broken images from its batch."""
    return getattr(attack, "early_stop", not attack.minimum_norm)


def _few(name: str) -> str:
    return f"{name}, few images"


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
