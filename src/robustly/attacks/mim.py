"""Ascent with momentum, and input diversity and smoothing for transfer (Dong et al., CVPR 2018 and 2019)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.ascent import Ascent, constant_step_size
from robustly.attacks.core.contract import ANY_BUT_L0, AttackError, AttackResult, Images, Needs
from robustly.attacks.core.gradient_estimators import GradientEstimator
from robustly.attacks.core.model_access import input_gradient
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.core.update_rules import Momentum
from robustly.attacks.transfer import endless
from robustly.objectives import Goal, Objective, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat, per_example

MIMStart = Literal["none", "random"]
Keep = Literal["best", "last"]


@dataclass(frozen=True)
class InputDiversity:
    """Gradients at images that are shrunk and padded at random (DI-FGSM, Xie et al., CVPR 2019).

    With probability `probability` an image is resized (bilinearly) to a random size between `least` of its own and
    the whole, and put at a random place of a black image of its own size, because models may have a fixed input
    size. Size and place are drawn anew for each example and step. The verdict is always that of the image itself,
    which costs one more forward pass. This is a gradient estimator: any search with an `estimator` can use it.

    Args:
        probability: of changing an image, in [0, 1].
        least: smallest size, as a share of the image's own, in (0, 1].

    Raises:
        AttackError: a setting that is out of range; at a call, inputs that are not `(N, C, H, W)`.
    """

    probability: float = 0.5
    least: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not 0 < self.least <= 1:
            raise AttackError(
                f"probability must be in [0, 1] and least in (0, 1], got {self.probability}, {self.least}"
            )

    def __call__(
        self,
        outputs_of: Callable[[Tensor], Tensor],
        points: Tensor,
        value: Callable[[Tensor], Tensor],
        draws: KeyedGenerator,
    ) -> tuple[Tensor, int, int]:
        """Gradient through the change; see `GradientEstimator`."""
        here = points.detach().requires_grad_()
        return input_gradient(value(outputs_of(self.changed(here, draws))).sum(), here), 1, 1

    def changed(self, x: Images, draws: KeyedGenerator) -> Images:
        """Shrunk and padded images; linear in `x`."""
        if x.ndim != 4:
            raise AttackError(f"input diversity resizes images (N, C, H, W), got {tuple(x.shape)}")
        chance, share, top, left = draws.uniform(4).to(x).unbind(1)
        share = self.least + share * (1 - self.least)
        rows, columns = (
            _shrinking(size, share, place) for size, place in zip(x.shape[2:], (top, left), strict=True)
        )
        shrunk = rows[:, None] @ x @ columns[:, None].mT
        return torch.where(per_example(chance < self.probability, x), shrunk, x)


@dataclass(frozen=True)
class MIM:
    """Steps along a decaying sum of normalised gradients: MI-FGSM (Dong et al., CVPR 2018, algorithm 1).

    g <- decay * g + gradient / |gradient|_1, then a step of the threat's norm along g. Without decay, diversity and
    smoothing it equals `PGD` from the image itself. A robust example costs 1 + restarts * (steps + 1) forward and
    restarts * steps backward passes (input diversity: restarts * steps more forward passes).

    Args:
        steps: per restart, at least 1.
        decay: mu, at least 0; 1 sums all gradients, 0 uses the last one alone.
        objective: function to maximise.
        step_size: length of a step in units of the images; None uses epsilon / steps.
        start: "none" (the image itself) or "random" (a random point of the threat set).
        restarts: independent runs; more than one requires a random start or random diversity.
        early_stop: True removes an example from the batch as soon as it is broken.
        keep: "best" returns the first broken iterate, or else the iterate of highest objective; "last" returns the
            last iterate of all examples without evaluating it, for transfer and training.
        diversity: resize and pad before each gradient (DI-FGSM).
        smoothing: side in pixels, odd, of the Gaussian kernel (sigma 3) that each gradient is convolved with
            (TI-FGSM, Dong et al., CVPR 2019, eq. 8; they use 7 to 15); None for no smoothing.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.
        estimator: computes gradients in place of the backward pass; not together with `diversity`.

    Raises:
        AttackError: a setting that is out of range; at a call, smoothing of inputs that are not `(N, C, H, W)`.
    """

    needs: ClassVar[Needs] = ANY_BUT_L0
    minimum_norm: ClassVar[bool] = False

    steps: int = 10
    decay: float = 1.0
    objective: Objective = cross_entropy
    step_size: float | None = None
    start: MIMStart = "none"
    restarts: int = 1
    early_stop: bool = True
    keep: Keep = "best"
    diversity: InputDiversity | None = None
    smoothing: int | None = None
    precision: Precision = "full"
    estimator: GradientEstimator | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise AttackError(f"steps and restarts must be at least 1, got {self.steps}, {self.restarts}")
        if not 0 <= self.decay < float("inf"):
            raise AttackError(f"decay must be a finite number of at least 0, got {self.decay}")
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise AttackError(f"step_size must be a positive number, got {self.step_size}")
        if self.smoothing is not None and (self.smoothing < 1 or self.smoothing % 2 == 0):
            raise AttackError(f"smoothing must be an odd number of pixels, got {self.smoothing}")
        if self.diversity is not None and self.estimator is not None:
            raise AttackError("give diversity or estimator, not both: each defines the gradient")
        if self.keep == "last" and self.restarts > 1:
            raise AttackError("keep='last' requires restarts=1, because it returns the last iterate of one run")

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`."""
        return run_search(
            self._restarts,
            model,
            x,
            endless(y) if self.keep == "last" else y,
            threat=threat,
            generator=generator,
            needs=self.needs,
            precision=self.precision,
        )

    def _restarts(self, search: Search, generator: KeyedGenerator) -> None:
        ascent = Ascent(
            self.steps,
            self.objective,
            constant_step_size(self.step_size, self.steps),
            Momentum(self.decay, self.smoothing),
            early_stop=self.early_stop,
            finish="evaluate" if self.keep == "best" else "keep",
            estimator=self.diversity or self.estimator,
        )
        for restart in range(self.restarts):
            rows = search.unbroken
            if len(rows) == 0:
                return
            draws, threat_set = generator.select(rows).fold("restart", restart), search.threat_set.select(rows)
            is_random = self.start == "random"
            start = threat_set.random_start(draws.fold("start")) if is_random else threat_set.identity()
            ascent.run(search, rows, start, search.goal.select(rows), draws)


def _shrinking(size: int, share: Float[Tensor, " n"], place: Float[Tensor, " n"]) -> Float[Tensor, "n size size"]:
    """Matrices that resize a line of pixels bilinearly to a share of its length, with zeros around it."""
    length = (share * size).round().clamp_min(1)[:, None]
    first = (place[:, None] * (size - length + 1)).floor()
    pixel = torch.arange(size, device=share.device, dtype=share.dtype)
    inside = (pixel >= first) & (pixel < first + length)
    source = ((pixel - first + 0.5) * size / length - 0.5).clamp(0, size - 1)
    weight = (1 - (source[:, :, None] - pixel).abs()).clamp_min(0)
    return weight * inside[:, :, None]
