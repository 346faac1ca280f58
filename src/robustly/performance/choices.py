"""Measured choices for a machine and a model: batch size, layout, threads, precision; kept in a small cache.

A cached choice never changes a result. `robustly evaluate` takes the batch size from here, on which no verdict
depends but for rounding, and times the precision of its searches itself. Threads and bfloat16 are proposals.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

import torch
from torch import Tensor, nn

from robustly.documents import read_json
from robustly.files import write_json
from robustly.models.adapter import model_name
from robustly.performance.passes import Copies, Passes, PassTime, bare_pass
from robustly.performance.timing import Meter, Work, alternating
from robustly.runtime import cores

VARIABLE = "ROBUSTLY_CACHE"
SCHEMA = 1
ENOUGH = 0.97
"""A larger batch has to take less than this share of the time of a smaller one."""


@dataclass(frozen=True)
class Choices:
    """The choices that are faster on a machine.

    Args:
        batch_size: images at a time.
        layout: "contiguous" or "channels_last".
        bfloat16: time of a pass to the input in bfloat16, relative to full precision; None if it was not measured.
        threads: the fastest number of threads.
        threads_gain: time with that number, relative to the number of now; None if only one was tried.
    """

    batch_size: int
    layout: str
    bfloat16: float | None
    threads: int
    threads_gain: float | None

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} should be a whole number of at least 1, got {value!r}")


def choose(
    model: nn.Module, images: Callable[[int], Tensor], passes: Passes, meter: Meter, *, seconds: float
) -> Choices:
    """Choose by the measured passes, and by a measurement of the number of threads.

    Args:
        model: the network.
        images: the first N images.
        passes: measured passes.
        meter: clock and device.
        seconds: wall-clock seconds for the threads, about.
    """
    own = passes.precisions[0]
    full, half = (_by_size(passes, precision) for precision in (own, "bfloat16"))
    sizes = [size for size in full if size > 1] or list(full)  # attacks have work of their own for each batch
    best = sizes[0]
    for size in sizes[1:]:
        here, there = (
            min(full[one].per_image, half[one].per_image if one in half else inf) for one in (size, best)
        )
        best = size if here < ENOUGH * there else best
    gained = half[best].per_image / full[best].per_image if best in half else None
    threads, gain = _threads(model, images(min(best, 64)), own, full[best].layout, meter, seconds)
    return Choices(best, full[best].layout, gained, threads, gain)


def _by_size(passes: Passes, precision: str) -> dict[int, PassTime]:
    """The faster layout of passes to the input, by batch size, ascending."""
    found: dict[int, PassTime] = {}
    for one in passes.times:
        if one.kind == "input_backward" and one.precision == precision and one.seconds is not None:
            before = found.get(one.batch_size)
            found[one.batch_size] = one if before is None or one.per_image < before.per_image else before
    return dict(sorted(found.items()))


def _threads(
    model: nn.Module, x: Tensor, precision: str, layout: str, meter: Meter, seconds: float
) -> tuple[int, float | None]:
    """The fastest number of threads, and its time relative to that of the number of now."""
    now = torch.get_num_threads()
    counts = thread_counts(now)
    if x.device.type != "cpu" or meter.clock == "cpu" or len(counts) == 1:
        return now, None
    work = bare_pass(Copies(model, {}), x, "input_backward", precision, layout)

    def with_threads(count: int) -> Work:
        def run() -> None:
            torch.set_num_threads(count)
            work()

        return run

    try:
        rounds = alternating({str(count): with_threads(count) for count in counts}, meter, seconds)
    finally:
        torch.set_num_threads(now)
    median = {count: rounds.spread(str(count)).median for count in counts if str(count) in rounds.seconds}
    if now not in median:
        return now, None
    best = min(median, key=lambda count: (median[count], count))
    return (best, median[best] / median[now]) if median[best] < ENOUGH * median[now] else (now, 1.0)


def thread_counts(now: int) -> list[int]:
    """Numbers of threads to try: powers of two up to the cores, their number, and the number of now."""
    most = cores()
    powers = {2**power for power in range(most.bit_length()) if 2**power <= most}
    return sorted(powers | {most, now})


def cache_folder() -> Path:
    """Folder of the cache: `ROBUSTLY_CACHE`, else `robustly` in the user's folder of caches."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "robustly"


def machine() -> dict[str, object]:
    """Properties of the machine on which the speed of a computation depends."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """Name of the processor; empty if the system does not state it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def key_of(model: nn.Module, shape: tuple[int, ...], device: torch.device) -> str:
    """Key of a machine, a device, and a model with the shapes of its weights and of an image.

    The values of the weights do not count.
    """
    weights = [(name, list(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    layers = [type(module).__name__ for module in model.modules()]
    content = [machine(), device.type, model_name(model), layers, weights, list(shape)]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:32]


def keep(key: str, choices: Choices) -> Path:
    """Store the choices of a key; returns the file.

    Raises:
        OSError: the cache cannot be written.
    """
    path = cache_folder() / "choices" / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema": SCHEMA, "machine": machine(), **asdict(choices)})
    return path


def kept(key: str) -> Choices | None:
    """The stored choices of a key; None without any, or if the file is damaged or of another version."""
    path = cache_folder() / "choices" / f"{key}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = read_json(path)
        if found["schema"] == SCHEMA:
            half, gain = found["bfloat16"], found["threads_gain"]
            return Choices(
                found["batch_size"],
                str(found["layout"]),
                None if half is None else float(half),
                found["threads"],
                None if gain is None else float(gain),
            )
    return None
