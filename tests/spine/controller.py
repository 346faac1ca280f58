"""Methods with a controller that came later: E-AT (which threat?) and the loss balancer of B-MTARD."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from robustly.attacks import PGD, AttackResult
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threat import ThreatModel, parse_threat
from robustly.training import MixtureLoss, ParameterPart, Step


@dataclass(frozen=True)
class AlternatingThreats(ParameterPart):
    """E-AT: one threat per batch, drawn with weights 1 - running robust accuracy (Croce and Hein, ICML 2022).

    One value that is put into two slots of a method: `inner`, where it chooses and attacks, and `parameters`,
    whose `after_step` is the only occasion to learn how the step went. Both see one memory, as it goes by class.
    """

    threats: tuple[str, ...] = ("linf:0.2", "l1:8")
    steps: int = 5

    @cached_property
    def _threats(self) -> tuple[ThreatModel, ...]:
        return tuple(parse_threat(text) for text in self.threats)

    def __call__(self, step: Step) -> AttackResult:
        memory = self._memory(step)
        draw = KeyedGenerator(step.generator.fold("threat").seed, step.ids.new_tensor([step.moment.index]))
        chosen = int((self.shares(memory).cumsum(0) <= draw.uniform(1)[0]).sum())
        memory["chosen"] = torch.tensor(min(chosen, len(self.threats) - 1))
        attack = PGD(steps=self.steps, early_stop=False, keep="last", full_precision=False)
        goal = Goal(step.labels.hard)
        threat = self._threats[int(memory["chosen"])]
        return attack(step.model, step.x, goal, threat=threat, generator=step.generator.fold("inner"))

    def after_step(self, step: Step) -> None:
        memory = self._memory(step)
        right = (step.adversarial_logits.detach().argmax(1) == step.y).double()
        memory["accuracies"][memory["chosen"]] += step.batch_mean(right)
        memory["batches"][memory["chosen"]] += 1

    @staticmethod
    def shares(memory: dict[str, Tensor]) -> Tensor:
        if bool((memory["batches"] == 0).any()):
            return torch.full_like(memory["batches"], 1 / len(memory["batches"]))
        weight = 1 - memory["accuracies"] / memory["batches"]
        return weight / weight.sum()

    def _memory(self, step: Step) -> dict[str, Tensor]:
        memory = step.remember(self)
        for name in ("accuracies", "batches"):
            memory.setdefault(name, torch.zeros(len(self.threats), dtype=torch.float64))
        return memory


@dataclass(frozen=True)
class BalancedLoss:
    """w_clean CE(z, y) + w_adv CE(z', y), the w moved each step to equal relative progress (B-MTARD, eq. 8)."""

    needs_inner: ClassVar[bool] = True
    rate: float = 0.025

    def __call__(self, step: Step) -> dict[str, Tensor]:
        terms = {name: 2 * term for name, term in MixtureLoss(0.5)(step).items()}
        now = torch.stack([step.batch_mean(term.detach().double()) for term in terms.values()])
        memory = step.remember(self)
        weight = self.moved(
            memory.setdefault("weight", torch.full_like(now, 0.5)), now, memory.setdefault("first", now)
        )
        memory["weight"] = weight
        return {name: weight[row].float() * term for row, (name, term) in enumerate(terms.items())}

    def moved(self, weight: Tensor, loss: Tensor, first: Tensor) -> Tensor:
        progress = loss / first
        moved = (weight - self.rate * (weight - progress / progress.sum())).clamp_min(0)
        return moved / moved.sum()
