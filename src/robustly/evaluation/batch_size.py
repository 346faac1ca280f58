"""Measurement of the fastest batch size and precision of searches."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import half_precision_copy, input_gradient, logits_of
from robustly.evaluation.target import EvaluationTarget
from robustly.memory import is_out_of_memory

CPU_SIZES, GPU_SIZES = (32, 128, 256), (256, 512, 1024)
FEW = 16  # images that are timed in a small job
LARGE_JOB = 1000  # images from which on all sizes are timed


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


def measure(target: EvaluationTarget, sizes: Sequence[int] | None = None, known: int | None = None) -> Tuning:
    """Time one forward and backward pass at two or three batch sizes, in full precision and in bfloat16.

    The measurement has to cost far less than the evaluation. Where all images fit into the batches of the largest
    size, only the precisions are timed, on `FEW` images; below `LARGE_JOB` images, the two smaller sizes.

    Args:
        target: model and images.
        sizes: batch sizes; None for the usual ones.
        known: the fastest size, if it was measured on this machine before; only the precisions are timed then.
    """
    data = target.data
    if known is not None:
        return replace(_timed(target, [min(FEW, len(data))]), batch_size=min(known, len(data)))
    device = data.device
    if sizes is None:
        sizes = CPU_SIZES if device.type == "cpu" else GPU_SIZES
        if len(data) <= sizes[-1]:
            return replace(_timed(target, [min(FEW, len(data))]), batch_size=min(sizes[1], len(data)))
        sizes = sizes if len(data) >= LARGE_JOB else sizes[:2]
    return _timed(target, sorted({min(size, len(data)) for size in sizes}))


def _timed(target: EvaluationTarget, sizes: Sequence[int]) -> Tuning:
    data = target.data
    device = data.device
    with frozen(target.model):
        first = data.first(FEW)
        twin = half_precision_copy(target.model, first)
        best = Tuning(sizes[0], float("inf"), None)
        for model in (target.model, twin):
            if model is not None:
                pass_seconds(model, first)  # the first pass of a model takes longer
        for size in sizes:
            x = data.floats(torch.arange(size, device=device))
            try:
                full = pass_seconds(target.model, x) / size
                half = None if twin is None else pass_seconds(twin, x) / size
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break  # larger ones do not fit either
            now = Tuning(size, full, half)
            if min(full, half or full) < 0.97 * min(best.seconds, best.half_seconds or best.seconds):
                best = now
    return best


def pass_seconds(model: nn.Module, x: Tensor) -> float:
    """Time of a pass: of small batches, the shorter of two."""
    seconds = []
    for _ in range(1 if len(x) > FEW else 2):
        _wait(x)
        began = time.perf_counter()
        input_pass(model, x)
        _wait(x)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def input_pass(model: nn.Module, x: Tensor) -> None:
    """Take a forward pass, and a backward pass to the input."""
    here = x.detach().requires_grad_()
    input_gradient(logits_of(model, here).square().sum(), here)


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
