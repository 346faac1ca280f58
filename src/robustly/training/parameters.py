"""Fifth part of a method: what happens to the parameters around the optimiser's step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustly.training.losses import Terms
from robustly.training.step import Step


@dataclass(frozen=True)
class EpochEnd:
    """What a part hears of when an epoch is over, before validation.

    Args:
        epoch: the finished epoch, from 0.
        epochs: epochs of the run.
        model: the network in training.
        images: the training images batch by batch, in the run's order and augmentation of this epoch.
        remember: a part's own memory; see `Step.remember`.
        global_mean: mean of a tensor over all processes.
    """

    epoch: int
    epochs: int
    model: nn.Module
    images: Callable[[], Iterator[Tensor]]
    remember: Callable[[object], dict[str, Tensor]]
    global_mean: Callable[[Tensor], Tensor]


class ParameterPart:
    """Does nothing at every occasion; parts override the occasions that they need.

    State lives in `step.remember(self)`, which every checkpoint saves.
    """

    def before_outer(self, step: Step, loss: Callable[[Step], Tensor]) -> None:
        """Called when labels and adversarial examples are there: perturb the weights here.

        `loss(step.again())` evaluates the method's outer loss on the same examples without touching `step`.
        Logits of the model that were computed before are forgotten afterwards: its weights may have moved.
        """

    def extra_terms(self, step: Step) -> Terms:
        """More terms of the loss (regularisers)."""
        return {}

    def after_step(self, step: Step) -> None:
        """Called after the optimiser's step (undo a perturbation, average weights)."""

    def after_epoch(self, end: EpochEnd) -> None:
        """Called when an epoch is over, before validation."""

    def evaluation_state(self, memory: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The state dict to validate, select and release instead of the model's own, or None."""
        return None


@dataclass(frozen=True)
class ExponentialAverage(ParameterPart):
    """Exponential moving average of the weights; validation, selection and release use the average.

    After step t (counted from the end of the warm-up) average <- d average + (1 - d) weights with
    d = min(decay, (1 + t) / (10 + t)); d = 0 during the warm-up. The average starts from the weights after the
    first step. Batch-norm buffers are copied, not averaged (Gowal et al., arXiv 2010.03593, and the released code
    of Wang et al., ICML 2023), unless `buffers` says otherwise.

    Args:
        decay: upper bound of d, in [0, 1).
        warm_up: share of the run's steps during which the average only follows, in [0, 1].
        buffers: whether running statistics are those of the last step ("copy") or averaged like weights
            ("average"); counters are copied in any case.
    """

    decay: float = 0.995
    warm_up: float = 0.025
    buffers: Literal["copy", "average"] = "copy"

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and 0 <= self.warm_up <= 1):
            raise ValueError(f"decay must lie in [0, 1) and warm_up in [0, 1], got {self.decay} and {self.warm_up}")

    def decay_at(self, count: int, total: int) -> float:
        """The factor d after step `count` (from 0) of `total`."""
        since = count - int(self.warm_up * total)
        return 0.0 if since < 0 else min(self.decay, (1 + since) / (10 + since))

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Move the average towards the weights."""
        average = step.remember(self)
        moment, replays = step.moment, step.replays
        total = moment.epochs * moment.steps_per_epoch * replays
        decay = self.decay_at(moment.count * replays + step.replay, total)
        trained = {name for name, _ in step.model.named_parameters(remove_duplicate=False)}
        for name, value in step.model.state_dict().items():
            averaged = name in trained or (self.buffers == "average" and value.is_floating_point())
            if name in average and averaged:
                average[name].lerp_(value, 1 - decay)
            else:
                average[name] = value.detach().clone()

    def evaluation_state(self, memory: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the average, once there is one."""
        return memory or None
