"""A training step as a module, and the passes of a batch through it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustly.training.method import Method, outer_loss
from robustly.training.quantities import Networks
from robustly.training.step import Step


class StepModule(nn.Module):
    """A training step as one forward pass of a module, which data parallelism needs."""

    def __init__(self, method: Method, networks: Networks) -> None:
        super().__init__()
        self.model = networks.model
        self.beside = nn.ModuleDict(dict(networks.trained))
        self._method = method
        self.step: Step | None = None

    def forward(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of `self.step` (an argument would be copied field by field).

        Without a step, a loss whose gradients are zero: its backward pass averages those of before over processes.
        """
        if self.step is None:
            sums = [weight.sum() for weight in self.parameters() if weight.requires_grad]
            return torch.stack(sums).sum() * 0.0, {}
        return outer_loss(self._method, self.step)


@dataclass
class Passes:
    """Forward and backward passes of a batch.

    Args:
        steps: a step for each part of the batch.
        losses: the loss of each part, without gradient.
        terms: the terms of each part.
        loss: the loss of this process, then that of all processes.
    """

    steps: list[Step] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    terms: list[dict[str, Tensor]] = field(default_factory=list)
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, step: Step, loss: Tensor, share: float, terms: dict[str, Tensor]) -> None:
        """Add the pass of a part.

        Args:
            step: its step.
            loss: its loss, without gradient.
            share: the weight of the loss in that of the batch.
            terms: the terms of the loss.
        """
        self.loss = self.loss.to(loss.device) + loss * share
        self.steps.append(step)
        self.losses.append(loss)
        self.terms.append(terms)

    def summed_terms(self) -> dict[str, Tensor]:
        """Sums of the terms over the parts."""
        return {name: torch.stack([one[name] for one in self.terms]).sum() for name in self.terms[0]}
