"""Predicted time of a suite from measured attacks, announced passes, and the images that an attack breaks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from robustly.evaluation.curve import curve_radii
from robustly.evaluation.suites.cost import announced_cost, attack_cost
from robustly.evaluation.suites.suite import Suite
from robustly.evidence import Evidence
from robustly.evidence.provenance import Mode
from robustly.performance.attack_times import AttackTime, Floor
from robustly.performance.new_sizes import expected_new_sizes
from robustly.performance.timing import Spread
from robustly.statistics import Proportion
from robustly.threats import Threat

ENDS = ("median", "low", "high")
FULL_AND_REST = 2
"""Batch sizes that an attack begins with: the full one, and that of the last batch."""
AT_ONCE = (3, 1)
"""Forward and backward passes of an attack on an image that its first step breaks: clean, broken, confirmed."""


@dataclass(frozen=True)
class Survival:
    """Shares of the images of an earlier evaluation, on which the cost of a suite depends.

    Args:
        correct: share that is classified correctly without an attack.
        robust: share that no attack broke.
        early: passes of the first attack on an image that it breaks, as a share of those on one that it does not.
        evaluation: folder of the evaluation.
        count: its images.
        eight_bit: passes of the search for an image of 8 bits, for each image that was broken.
    """

    correct: float
    robust: float
    early: float
    evaluation: str
    count: int
    eight_bit: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.robust <= self.correct <= 1 and 0 <= self.early <= 1):
            raise ValueError(
                "the shares of robust and correct images should be between 0 and 1, and the first at most the "
                f"second, got {self.robust}, {self.correct} and {self.early}"
            )

    @property
    def ends(self) -> tuple["Survival", "Survival"]:
        """The shares at both ends of the 95 % interval of the robust share, which is at most `correct`."""
        low, high = Proportion(round(self.robust * self.count), self.count).interval
        return replace(self, robust=min(low, self.robust)), replace(self, robust=min(high, self.correct))


@dataclass(frozen=True)
class SuitePrediction:
    """Predicted cost of the attacks of a suite.

    Args:
        suite: name of the suite.
        count: number of images.
        passes: counted passes, forward and backward: fewest, expected (None without an earlier evaluation), most.
        lower: seconds if the first step of the first attack breaks every image.
        expected: seconds with the shares of an earlier evaluation, whose 95 % interval is part of the range; None
            without one.
        upper: seconds if no attack breaks any image.
        ratio: `upper`, relative to the same passes in full precision made by hand.
        curve: seconds of the security curve at most, which come on top; 0 without one.
        on_suspicion: attacks that run after a sign of masked gradients only, and are not in the numbers.
        unknown: attacks that could not be timed, and are not in the numbers.
    """

    suite: str
    count: int
    passes: tuple[int, int | None, int]
    lower: Spread
    expected: Spread | None
    upper: Spread
    ratio: float
    curve: float
    on_suspicion: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Load:
    """Work of one attack: images, forward and backward passes for each of them, and the batches of the images."""

    attack: str
    images: float
    forwards: float
    backwards: float
    batches: float


def survival_of(evidence: Evidence, folder: str) -> Survival:
    """The shares of an evaluation; its first attack gives `early`."""
    table = evidence.table
    correct = table.examples.correct
    first = table.attacks[evidence.summary.suite.names[0]]
    passes = (first.forwards + first.backwards).astype(np.float64)
    broken = first.broken & first.tried & correct
    early = float(passes[broken].mean() / passes.max()) if broken.any() and passes.max() else 1.0
    robust = float((correct & ~table.worst_case.broken).mean())
    lost = correct & table.worst_case.broken
    searched = sum(one.passes_8bit[lost].sum() for one in table.attacks.values()) / max(int(lost.sum()), 1)
    return Survival(float(correct.mean()), robust, early, folder, len(correct), float(searched))


def predict_suite(
    suite: Suite,
    threat: Threat,
    *,
    count: int,
    classes: int,
    size: int,
    floor: Floor,
    times: Mapping[str, AttackTime],
    survival: Survival | None,
    batch_size: int = 128,
    mode: Mode = "every",
    curve_count: int | None = None,
) -> SuitePrediction:
    """Predict the time of the attacks of a suite.

    Args:
        suite: the suite.
        threat: the threat.
        count: number of images.
        classes: number of classes.
        size: number of values of an image.
        floor: bare passes.
        times: measured attacks by name.
        survival: shares of an earlier evaluation; None without one.
        batch_size: images at a time.
        mode: of suites that do not state it, see `robustly.evaluation.evaluate`.
        curve_count: images of the security curve; None for all.
    """
    worst = suite.worst_case or mode == "worst_case"
    most = _loads(suite, threat, classes, size, count, count, batch_size)
    fewest = [Load(one.attack, count, *AT_ONCE, one.batches) for one in (most[:1] if worst else most)]
    usual = (
        None if survival is None else _expected(suite, threat, classes, size, count, survival, worst, batch_size)
    )
    expected = None
    if survival is not None and usual is not None:
        ends = (_expected(suite, threat, classes, size, count, end, worst, batch_size) for end in survival.ends)
        low, high = (_seconds(loads, count, floor, times) for loads in ends)
        more = count * (survival.correct - survival.robust) * survival.eight_bit / 2 * floor.both.median
        more += _compiling(usual, survival, times, batch_size)
        middle = _seconds(usual, count, floor, times)
        least, greatest = min(low.low, middle.median), max(high.high, middle.median)  # but for rounding
        expected = Spread(middle.median + more, least + more, greatest + more, middle.runs)
    suspicious = tuple(name for name in suite.attacks if suite.plan(name).on_suspicion)
    radii = [radius for radius in curve_radii(threat, suite) if radius]
    drawn = min(count, curve_count or count)
    curve = [
        Load(one.attack, drawn * len(radii), one.forwards, one.backwards, len(radii) * ceil(drawn / batch_size))
        for one in most
    ]
    lower, upper = _seconds(fewest, count, floor, times), _seconds(most, count, floor, times)
    whole = upper.median
    if expected is not None:  # few images that are broken one by one can take longer than if none were
        most_of = [max(getattr(one, end) for one in (expected, upper)) for end in ENDS]
        upper = Spread(most_of[0], most_of[1], most_of[2], upper.runs)
    bare = count * floor.forward.median + sum(
        one.images * floor.seconds(one.forwards, one.backwards) for one in most if one.attack in times
    )
    return SuitePrediction(
        suite=suite.name,
        count=count,
        passes=(_passes(fewest, count), None if usual is None else _passes(usual, count), _passes(most, count)),
        lower=lower,
        expected=expected,
        upper=upper,
        ratio=whole / max(bare, 1e-12),
        curve=_seconds([one for one in curve if one.attack == suite.curve], 0, floor, times).median,
        on_suspicion=suspicious,
        unknown=tuple(name for name in suite.attacks if name not in times and name not in suspicious),
    )


def _loads(
    suite: Suite, threat: Threat, classes: int, size: int, first: float, rest: float, batch_size: int
) -> list[Load]:
    """Work on images that nothing breaks: `first` of them for the first attack, `rest` for each of the others."""
    images = announced_cost(suite, threat, max(round(rest), 0), classes, size).images
    found = []
    for number, (name, attack) in enumerate(suite.attacks.items()):
        if not suite.plan(name).on_suspicion:
            here = first if number == 0 else images[name]
            found.append(Load(name, here, *attack_cost(attack, threat, classes, size), ceil(here / batch_size)))
    return found


def _expected(
    suite: Suite,
    threat: Threat,
    classes: int,
    size: int,
    count: int,
    survival: Survival,
    worst: bool,
    batch_size: int,
) -> list[Load]:
    """Work with the shares of an earlier evaluation: survivors cost all passes, broken images a part of them."""
    robust, broken = count * survival.robust, count * (survival.correct - survival.robust)
    full = _loads(suite, threat, classes, size, robust, robust, batch_size)
    early = [
        Load(one.attack, broken, one.forwards * survival.early, one.backwards * survival.early, 0)
        for one in (full[:1] if worst else full)
    ]
    return [*full, *early]


def _passes(loads: list[Load], count: int) -> int:
    return count + round(sum(one.images * (one.forwards + one.backwards) for one in loads))


def _seconds(loads: list[Load], count: int, floor: Floor, times: Mapping[str, AttackTime]) -> Spread:
    """Seconds of work and of a clean forward pass of `count` images, with the range of the measured ratios."""
    clean = count * floor.forward.median
    known = [
        (
            floor.seconds(one.forwards, one.backwards) * one.images * time.relative(one.images, one.batches),
            time,
        )
        for one in loads
        if (time := times.get(one.attack)) is not None
    ]
    clean += sum(one.batches * times[one.attack].call for one in loads if one.attack in times)
    totals = [clean + sum(bare * getattr(time.ratio, name) for bare, time in known) for name in ENDS]
    runs = min((time.ratio.runs for _, time in known), default=floor.forward.runs)
    return Spread(totals[0], totals[1], totals[2], runs)


def _compiling(loads: list[Load], survival: Survival, times: Mapping[str, AttackTime], batch_size: int) -> float:
    """Seconds of the first passes of new batch sizes. Compiled code is kept, so each size costs once at most."""
    seconds, sizes = dict[str, float](), dict[str, float]()
    surviving = {one.attack: one.images for one in loads if one.batches}
    for one in loads:
        time = times.get(one.attack)
        if one.batches or not one.images or time is None:  # not the images that the attack breaks
            continue
        batches = ceil((surviving.get(one.attack, 0.0) + one.images) / batch_size)
        steps = (one.backwards or one.forwards) / max(survival.early, 1e-9)
        new = expected_new_sizes(steps, survival.early, one.images, batches) + min(batches, FULL_AND_REST)
        sizes[time.precision] = min(sizes.get(time.precision, 0.0) + new, batch_size)
        seconds[time.precision] = max(seconds.get(time.precision, 0.0), time.new_size)
    return sum(sizes[precision] * each for precision, each in seconds.items())


def duration_words(seconds: float) -> str:
    """A duration with at most two units: "0.4 s", "52 s", "3 min 20 s", "3 h 10 min", "4 days 2 h"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{round(seconds / 60)} min"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h" if hours % 24 else f"{hours // 24} days"
