"""Measurement of the fastest batch size and precision of searches."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import half_precision_copy, input_gradient, logits_of
from robustly.evaluation.target import EvaluationTarget

CPU_SIZES, GPU_SIZES = (32, 128, 256), (256, 512, 1024)
REPEATS = 3


@dataclass(frozen=True)
class Tuning:
    """The measured batch size and times.

    Args:
        batch_size: the fastest size.
        seconds: time of a forward and input-backward pass per image at that size, in full precision.
        half_seconds: the same in the bfloat16 copy of the model; None without such a copy.
    """

    batch_size: int
    seconds: float
    half_seconds: float | None

    @property
    def half_pays(self) -> bool:
        """True if bfloat16 is faster on this machine."""
        return self.half_seconds is not None and self.half_seconds < self.seconds


def measure(target: EvaluationTarget, sizes: Sequence[int] | None = None) -> Tuning:
    """Time one forward and backward pass at two or three batch sizes, in full precision and in bfloat16."""
    data = target.data
    device = data.images.device
    sizes = sizes or (CPU_SIZES if device.type == "cpu" else GPU_SIZES)
    sizes = sorted({min(size, len(data)) for size in sizes})
    with frozen(target.model):
        first = data.floats(torch.arange(min(2, len(data)), device=device))
        twin = half_precision_copy(target.model, first)
        best = Tuning(sizes[0], float("inf"), None)
        for size in sizes:
            x = data.floats(torch.arange(size, device=device))
            full = _pass_seconds(target.model, x) / size
            half = None if twin is None else _pass_seconds(twin, x) / size
            now = Tuning(size, full, half)
            if min(full, half or full) < 0.97 * min(best.seconds, best.half_seconds or best.seconds):
                best = now
    return best


def _pass_seconds(model: nn.Module, x: Tensor) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        _wait(x)
        began = time.perf_counter()
        here = x.detach().requires_grad_()
        input_gradient(logits_of(model, here).square().sum(), here)
        _wait(x)
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])  # the first pass warms up


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
