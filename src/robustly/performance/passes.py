"""Bare passes of a network: forward, to the input, to the weights; per precision, layout and batch size."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import logits_of
from robustly.evaluation import batch_size as tuning
from robustly.evaluation.batch_size import input_pass
from robustly.models.layout import put_in_layout
from robustly.performance.timing import LEAST, BenchError, Meter, Spread, Work, alternating, failure_words

Kind = Literal["forward", "input_backward", "full_backward"]
KINDS: tuple[Kind, ...] = ("forward", "input_backward", "full_backward")
"""A forward pass; a forward and a backward pass to the input; a forward and a backward pass to the weights."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_SIZES, GPU_SIZES = (1, *tuning.CPU_SIZES), (1, *tuning.GPU_SIZES)
"""Batch sizes that are measured: one image, and the sizes among which an evaluation chooses."""
PATIENCE = 3.0
"""The first batch of several images may take this times the seconds of all."""
PROBED = 16
"""Images of the first timing, from which the time of each batch size is estimated."""
_PROBES_PER_ROUND = 2.6
"""Time of the three kinds together, relative to the second; decides only which batch sizes are tried."""


@dataclass(frozen=True)
class PassTime:
    """Time of one kind of pass.

    Args:
        kind: see `KINDS`.
        precision: "float32" (or the model's own type), "bfloat16"; on a GPU also "tf32" and "float16".
        layout: "contiguous" or "channels_last".
        batch_size: images of the batch.
        seconds: seconds of a batch; None if it failed.
        failure: reason; empty without one.
    """

    kind: Kind
    precision: str
    layout: str
    batch_size: int
    seconds: Spread | None
    failure: str = ""

    @property
    def per_image(self) -> float:
        """Median seconds of an image; infinity if it failed."""
        return self.seconds.median / self.batch_size if self.seconds else float("inf")


@dataclass(frozen=True)
class Passes:
    """All measured passes.

    Args:
        times: one for each kind, precision, layout and batch size.
        left_out: batch sizes that would have taken too long.
    """

    times: tuple[PassTime, ...]
    left_out: tuple[int, ...] = ()

    def best(self, kind: Kind, precision: str | None = None) -> PassTime:
        """The fastest measurement per image of a kind, in one precision or in any.

        Raises:
            BenchError: every one failed.
        """
        some = [one for one in self.times if one.kind == kind and precision in (None, one.precision)]
        found = min((one for one in some if one.seconds), key=lambda one: one.per_image, default=None)
        if found is None:
            raise BenchError(f"the model fails in every pass: {some[0].failure if some else 'none was tried'}")
        return found

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions in the order of the measurements."""
        return tuple(dict.fromkeys(one.precision for one in self.times))


def own_precision(model: nn.Module) -> str:
    """Name of the type of a network's weights, such as "float32"."""
    return str(next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)).split(".")[1]


def precisions_of(model: nn.Module, device: torch.device) -> tuple[str, ...]:
    """Precisions to measure: the model's own type first."""
    own = own_precision(model)
    more = ("tf32", "bfloat16", "float16") if device.type == "cuda" else ("bfloat16",)
    return (own, *(one for one in more if one != own))


def measure_passes(
    model: nn.Module, images: Callable[[int], Tensor], meter: Meter, *, sizes: Sequence[int], seconds: float
) -> Passes:
    """Measure every kind of pass in every precision and layout; the model is not changed.

    Args:
        model: the network, on the device.
        images: the first N images, `(N, C, H, W)` in [0, 1].
        meter: clock and device.
        sizes: batch sizes, ascending. Those that would take too long are left out, but for the first that works,
            and the first above 1 unless it would take far too long.
        seconds: wall-clock seconds for everything, about.

    Raises:
        BenchError: every pass failed.
    """
    precisions = precisions_of(model, meter.device)
    layouts = tuple(LAYOUTS) if images(1).ndim == 4 else ("contiguous",)
    per_image = _probed(model, images, meter)
    each = per_image * _PROBES_PER_ROUND * len(precisions) * len(layouts)
    times: list[PassTime] = []
    left_out: list[int] = []
    spent = 0.0
    for size in sizes:
        fits = spent + each * size * (1 + LEAST) <= seconds
        measured = [one.batch_size for one in times if one.seconds]
        # one batch of several images is worth more time, because it decides on the layout and the precision
        needed = not measured or (max(measured) == 1 and each * size * 2 <= PATIENCE * seconds)
        if not fits and not needed:
            left_out.append(size)
            continue
        spent += each * size * (1 + LEAST)
        share = max(seconds * size / sum(sizes), seconds / 20)
        times += _of_size(model, images(size), meter, precisions, layouts, share, least=LEAST if fits else 1)
    found = Passes(tuple(times), tuple(left_out))
    found.best("input_backward", precisions[0])
    return found


def _probed(model: nn.Module, images: Callable[[int], Tensor], meter: Meter) -> float:
    """Seconds of a pass to the input for one image: of a small batch, or of one image of a slow network."""
    found = float("inf")
    for count in (1, PROBED):
        x = images(count)
        with frozen(model):
            rounds = alternating({"probe": partial(input_pass, model, x)}, meter, 0.0, least=1, most=1)
        found = min([*rounds.seconds.get("probe", []), found * count]) / count
        if 0.1 < found < float("inf"):
            break
    return found


def _of_size(
    model: nn.Module,
    x: Tensor,
    meter: Meter,
    precisions: Sequence[str],
    layouts: Sequence[str],
    seconds: float,
    least: int,
) -> list[PassTime]:
    """All passes of one batch size, in turn."""
    works: dict[str, Work] = {}
    failed: dict[str, str] = {}
    copies = Copies(model, {})
    for precision in precisions:
        for layout in layouts:
            for kind in KINDS:
                name = f"{kind} {precision} {layout}"
                try:
                    works[name] = bare_pass(copies, x, kind, precision, layout)
                except Exception as error:  # a model that cannot be copied or converted
                    failed[name] = failure_words(error)
    rounds = alternating(works, meter, seconds, least=least)
    failed |= rounds.failures
    return [
        PassTime(
            kind,
            precision,
            layout,
            len(x),
            None if (name := f"{kind} {precision} {layout}") in failed else rounds.spread(name),
            failed.get(name, ""),
        )
        for precision in precisions
        for layout in layouts
        for kind in KINDS
    ]


@dataclass(frozen=True)
class Copies:
    """Copies of a network for bare passes, made when they are first needed.

    Args:
        model: the network, which is not changed.
        made: the copies so far, by type, layout and mode.
    """

    model: nn.Module
    made: dict[tuple[torch.dtype | None, str, bool], nn.Module]

    def of(self, half: torch.dtype | None, layout: str, trains: bool) -> nn.Module:
        """The copy in half precision or as it is, in a layout, in training or evaluation mode."""
        key = half, layout, trains
        if key not in self.made:
            net = copy.deepcopy(self.model)
            net = net if half is None else net.to(half)
            put_in_layout(net, LAYOUTS[layout])
            net.train(trains)
            for parameter in net.parameters():
                parameter.requires_grad_(trains and parameter.is_floating_point())
                parameter.grad = None
            self.made[key] = net
        return self.made[key]


def bare_pass(copies: Copies, x: Tensor, kind: Kind, precision: str, layout: str) -> Work:
    """A pass as a function without arguments, on a copy of a network.

    In half precision, forward and input passes use weights of that type, as attacks do, and the pass to the weights
    uses autocast, as training does. The pass to the weights is in training mode, the others in evaluation mode.

    Args:
        copies: the network.
        x: images, `(N, C, H, W)`.
        kind: the kind of pass.
        precision: a name as in `PassTime`.
        layout: a name as in `PassTime`.
    """
    half = HALVES.get(precision)
    trains = kind == "full_backward"
    net = copies.of(None if trains else half, layout, trains)
    if x.ndim == 4:
        x = x.contiguous(memory_format=LAYOUTS[layout])
    x = x.to(next((p.dtype for p in net.parameters() if p.is_floating_point()), x.dtype))

    def work() -> None:
        with _tf32(precision == "tf32"):
            if kind == "forward":
                with torch.no_grad():
                    logits_of(net, x)
            elif kind == "input_backward":
                input_pass(net, x)
            else:
                with torch.autocast(x.device.type, dtype=half, enabled=half is not None):
                    logits = logits_of(net, x)
                labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
                F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
                net.zero_grad(set_to_none=True)

    return work


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 in matrix products and convolutions, or forbid it; restored at the end."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
