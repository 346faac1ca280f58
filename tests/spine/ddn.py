"""A minimum-norm attack that came later: DDN (Rony et al., CVPR 2019), l2."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustly.attacks import AttackError, AttackResult
from robustly.attacks.core.contract import Needs, check_output, frozen, lp_balls, prepare
from robustly.objectives import ClassificationGoal, Objective, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel


@dataclass(frozen=True)
class DDN:
    """Decoupled direction and norm: follow the gradient, and shrink or grow the norm by whether it sufficed.

    Args:
        steps: gradient steps.
        gamma: relative change of the norm per step.
        objective: what is maximised.
    """

    needs: ClassVar[Needs] = lp_balls("l2")
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    gamma: float = 0.05
    objective: Objective = cross_entropy

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | ClassificationGoal,
        *,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> AttackResult:
        if threat.norm != "l2":
            raise AttackError(f"DDN is an l2 attack, the threat is {threat}")
        x, goal = prepare(x, y, threat)
        low, high = threat.box
        flat = [-1, *[1] * (x.ndim - 1)]
        best, distance = x.clone(), torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device)
        kappa, invalid = torch.zeros_like(goal.y), torch.zeros_like(goal.y).bool()
        norm = torch.ones_like(distance)
        furthest = torch.linalg.vector_norm(torch.maximum(x - low, high - x).flatten(1), dim=1)
        point = x
        with frozen(model):
            for step in range(self.steps):
                here = point.detach().requires_grad_()
                logits = check_output(model(here), goal)
                (gradient,) = torch.autograd.grad(self.objective(logits, goal).sum(), here)
                finite = logits.detach().isfinite().all(1)
                invalid |= ~finite
                reached = goal.reached(logits.detach()) & finite
                kappa += (~reached).long()
                length = torch.linalg.vector_norm((point - x).flatten(1), dim=1)
                closer = reached & (length < distance)
                best = torch.where(closer.view(flat), point, best)
                distance = torch.where(closer, length, distance)
                still = gradient.flatten(1).norm(dim=1) < 1e-12
                noise = generator.fold("direction", step).normal(*x.shape[1:]).to(x)
                gradient = torch.where(still.view(flat), noise, gradient.nan_to_num(0.0))
                size = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
                delta = point - x + size * gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(flat)
                norm = torch.minimum(norm * torch.where(reached, 1 - self.gamma, 1 + self.gamma), furthest)
                delta = delta * (norm / delta.flatten(1).norm(dim=1).clamp_min(1e-12)).view(flat)
                point = (x + delta).clamp(low, high)
        inside = distance.isfinite() & threat.contains(best, x)
        x_adv = torch.where(inside.view(flat), best, x)
        spent = torch.full_like(goal.y, self.steps)
        return AttackResult(x_adv, inside | invalid, distance, spent, spent.clone(), kappa, invalid, best)
