"""Outer loss with the average of the model's own weights as teacher."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import logits_of
from robustly.training.losses.terms import check_positive, check_share, label_loss, tempered_kl
from robustly.training.parameters.averaging import growing_decay, move_average
from robustly.training.parts import Part, Terms, begins_too_late
from robustly.training.step import Moment, Step

_TEACHER = "average"


@dataclass(frozen=True)
class MeanTeacherLoss(Part):
    """(1 - share) CE(z', y) + share T^2 KL(softmax(t(x) / T) || softmax(z' / T)), with t the model's average.

    t has the exponential moving average of the model's weights over the steps, as a mean teacher (Tarvainen and
    Valpola, "Mean teachers are better role models", NeurIPS 2017), and runs on the clean images in evaluation mode.
    It replaces the guide of DYNAT and the teacher of ARD, at one forward pass. Until epoch `begin` it is PGD-AT.

    Args:
        share: weight of the teacher, in [0, 1].
        begin: epochs before the model learns from its average, at least 0.
        temperature: T, positive.
        decay: share of the average that is kept at each step, in [0, 1); lower in the first steps, as
            min(decay, (1 + step) / (10 + step)).

    Raises:
        ValueError: a setting out of range.
    """

    needs_inner = True

    share: float = 0.5
    begin: float = 1.0
    temperature: float = 1.0
    decay: float = 0.99

    def __post_init__(self) -> None:
        check_share("share", self.share)
        check_positive(temperature=self.temperature)
        if not (0 <= self.decay < 1 and self.begin >= 0):
            raise ValueError(f"decay must lie in [0, 1) and begin be at least 0, got {self.decay} and {self.begin}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Adversarial logits, and those of the average."""
        return ("adversarial", _TEACHER)

    def reads_at(self, moment: Moment) -> tuple[str, ...]:
        """Adversarial logits, and those of the average from epoch `begin` on."""
        return self.reads if self._begun(moment) else ("adversarial",)

    def _begun(self, moment: Moment) -> bool:
        return self.share > 0 and moment.time >= self.begin

    @property
    def own_quantities(self) -> Mapping[str, Callable[[Step], Tensor]]:
        """The average's logits of the clean images."""
        return {_TEACHER: self._teach}

    def _teach(self, step: Step) -> Float[Tensor, "n k"]:
        average = step.remember(self)
        with frozen(step.model, full_precision=False), torch.no_grad():
            return logits_of(step.model, step.x, average or None)

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a beginning after the end of the run."""
        return begins_too_late("begin", self.begin, epochs, "the model would never learn from its average")

    def check_sharding(self) -> str | None:
        """Refuse weights in shards."""
        return "runs the network with the average of its weights, which no process holds as a whole"

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" (the labels') and "teacher" (the average's)."""
        labelled = label_loss(step.adversarial_logits, step.labels)
        if not self._begun(step.moment):
            return {"adversarial": labelled, "teacher": torch.zeros_like(labelled)}
        taught = tempered_kl(step.quantity(_TEACHER), step.adversarial_logits, self.temperature)
        return {"adversarial": (1 - self.share) * labelled, "teacher": self.share * taught}

    def after_step(self, step: Step) -> None:
        """Move the average towards the weights; buffers are copied."""
        decay = growing_decay(self.decay, step.moment.count * step.replays + step.replay)
        move_average(step.remember(self), step.model, decay)
