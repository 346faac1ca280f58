"""Instance weights that came later: GAIRAT and MAIL, on the public contracts of `robustly.training` alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustly.training import Step


@dataclass(frozen=True)
class Gairat:
    """Weight (1 + tanh(lambda + 5 (1 - 2 kappa / K))) / 2, batch mean 1 (Zhang et al., ICLR 2021, eq. 6).

    Args:
        shift: lambda of the paper.
        burn_in: epochs that count every example once.
        term: the term of the loss that is weighted.
    """

    shift: float = -1.0
    burn_in: int = 0
    term: str = "adversarial"

    def __call__(self, step: Step) -> Tensor | None:
        if step.moment.epoch < self.burn_in:
            return None
        attack = step.adversarial
        weight = self.raw(attack.correct_iterates, attack.backwards)
        return weight / step.batch_mean(weight)

    def raw(self, kappa: Tensor, steps: Tensor) -> Tensor:
        return (1 + torch.tanh(self.shift + 5 * (1 - 2 * kappa / steps))) / 2


@dataclass(frozen=True)
class Mail:
    """Weight sigmoid(slope (PM + bias)) of the adversarial probability margin (Wang et al., NeurIPS 2021)."""

    gradient: float = 10.0
    bias: float = -0.5
    term: str = "adversarial"
    mean_one: bool = True
    burn_in: int = 0

    def __call__(self, step: Step) -> Tensor | None:
        if step.moment.epoch < self.burn_in:
            return None
        weight = self.raw(step.adversarial_logits.detach(), step.labels.hard)
        return weight / step.batch_mean(weight) if self.mean_one else weight

    def raw(self, logits: Tensor, y: Tensor) -> Tensor:
        p = logits.softmax(1)
        others = p.scatter(1, y[:, None], -1.0).amax(1)
        return torch.sigmoid(self.gradient * (others - p.gather(1, y[:, None])[:, 0] + self.bias))
