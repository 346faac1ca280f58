"""A weight perturbation that came later: AWP (Wu, Xia and Wang, NeurIPS 2020), on any method's own loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustly.training import ParameterPart, Step


@dataclass(frozen=True)
class WeightPerturbation(ParameterPart):
    """Adds gamma |w| g / |g| to every weight matrix around the outer step.

    Args:
        gamma: relative size of the perturbation, per tensor.
    """

    gamma: float = 0.01

    def before_outer(self, step: Step, loss: Callable[[Step], Tensor]) -> None:
        matrices = {name: p for name, p in step.model.named_parameters() if p.ndim > 1 and p.requires_grad}
        gradients = torch.autograd.grad(loss(step.again()), list(matrices.values()), allow_unused=True)
        memory = step.remember(self)
        with torch.no_grad():
            for (name, weight), gradient in zip(matrices.items(), gradients, strict=True):
                mean = torch.zeros_like(weight) if gradient is None else step.global_mean(gradient)
                memory[name] = self.gamma * weight.norm() * mean / (mean.norm() + 1e-20)
                weight.add_(memory[name])

    def after_step(self, step: Step) -> None:
        memory = step.remember(self)
        with torch.no_grad():
            for name, weight in step.model.named_parameters():
                if name in memory:
                    weight.sub_(memory.pop(name))
