"""Repeated measurements of durations: warm-up, alternating runs, medians with their range."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal

import torch

from robustly.memory import is_out_of_memory
from robustly.output_text import first_line

Work = Callable[[], object]
ClockName = Literal["wall", "cpu"]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks by name: of the wall, or the time that the process has spent on all cores."""
LEAST, MOST = 3, 15
"""Fewest and most measured runs of each work."""


class BenchError(ValueError):
    """A measurement that is not possible; the message gives the reason and what is allowed."""


@dataclass(frozen=True)
class Spread:
    """Values of repeated measurements.

    Args:
        median: their median.
        low: lower quartile; the smallest of fewer than four.
        high: upper quartile; the largest of fewer than four.
        runs: their number.
    """

    median: float
    low: float
    high: float
    runs: int

    def times(self, factor: float) -> "Spread":
        """The values multiplied by a positive factor."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.runs)


def spread_of(values: list[float]) -> Spread:
    """Median and quartiles of values, at least one."""
    if len(values) < 4:
        return Spread(median(values), min(values), max(values), len(values))
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


@dataclass(frozen=True)
class Meter:
    """A clock and a device.

    Args:
        clock: "wall", or "cpu" for the time of the process, which other processes hardly change. On a GPU the time
            between two events of its stream is measured instead, whatever the clock.
        device: device of the works.
    """

    clock: ClockName = "wall"
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a constant)

    def seconds(self, work: Work) -> float:
        """Seconds of a work, the end of everything that it has started on the device included."""
        if self.device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(self.device)
            began.record()
            work()
            ended.record()
            torch.cuda.synchronize(self.device)
            return float(began.elapsed_time(ended)) / 1000
        now = CLOCKS[self.clock]
        start = now()
        work()
        if self.device.type == "mps":
            torch.mps.synchronize()
        return now() - start


@dataclass(frozen=True)
class Rounds:
    """Alternating measurements of several works.

    Args:
        seconds: seconds of each work, by name, one for each round; round i of all works ran side by side.
        failures: first line of the error of each work that failed, by name.
    """

    seconds: Mapping[str, list[float]]
    failures: Mapping[str, str]

    def spread(self, name: str) -> Spread:
        """Median and quartiles of a work."""
        return spread_of(self.seconds[name])

    def ratio(self, name: str, floor: Callable[[Mapping[str, float]], float]) -> Spread:
        """Time of a work relative to a sum of others, round by round, so that a slow phase changes both.

        Args:
            name: the work.
            floor: computes the sum from the seconds of all works in one round.
        """
        rounds = range(len(self.seconds[name]))
        each = [{one: values[number] for one, values in self.seconds.items()} for number in rounds]
        return spread_of([one[name] / max(floor(one), 1e-12) for one in each])


def alternating(
    works: Mapping[str, Work], meter: Meter, seconds: float, *, least: int = LEAST, most: int = MOST
) -> Rounds:
    """Measure works in turn, after one run of each that does not count.

    Args:
        works: functions without arguments, by name.
        meter: clock and device.
        seconds: time on the meter's clock after which no new round begins, once there are `least`.
        least: fewest rounds.
        most: most rounds.

    Returns:
        The rounds. A work that fails in its warm-up is left out of them; one that fails later raises its error.
    """
    now = CLOCKS[meter.clock]
    began = now()
    failures: dict[str, str] = {}
    for name, work in works.items():
        try:
            meter.seconds(work)
        except Exception as error:  # the model is the user's
            failures[name] = failure_words(error)
            if meter.device.type == "cuda":
                torch.cuda.empty_cache()
    left = {name: work for name, work in works.items() if name not in failures}
    found: dict[str, list[float]] = {name: [] for name in left}
    for number in range(most if left else 0):
        if number >= least and now() - began > seconds:
            break
        for name, work in left.items():
            found[name].append(meter.seconds(work))
    return Rounds(found, failures)


def affordable(wanted: int, per_image: float, seconds: float, *, smallest: int, least: int = LEAST) -> int:
    """The batch size of which a warm-up and the fewest rounds fit into a time.

    Args:
        wanted: the largest batch size.
        per_image: seconds of all works of a round for one image.
        seconds: the time.
        smallest: the least batch size, whatever its time, but at most `wanted`.
        least: fewest rounds.
    """
    most = seconds / max((1 + least) * per_image, 1e-12)
    return wanted if most >= wanted else max(int(most), min(wanted, smallest))


def failure_words(error: Exception) -> str:
    """The reason of a failure in a few words."""
    return "not enough memory" if is_out_of_memory(error) else f"{type(error).__name__}: {first_line(error)}"[:160]
