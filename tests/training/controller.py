"""Methods with a controller that came later: E-AT (which threat?) and the loss balancer of B-MTARD."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustly.attacks import PGD, AttackResult
from robustly.threats import parse_threat
from robustly.threats.lp import ThreatModel
from robustly.training import MixtureLoss, Part, Step
from robustly.training.inner.pgd import attack_step


@dataclass(frozen=True)
class AlternatingThreats(Part):
    """E-AT: one threat per batch, drawn with weights 1 - running robust accuracy (Croce and Hein, ICML 2022)."""

    reads = ("adversarial",)

    threats: tuple[str, ...] = ("linf:0.2", "l1:8")
    steps: int = 5

    @cached_property
    def _threats(self) -> tuple[ThreatModel, ...]:
        return tuple(parse_threat(text) for text in self.threats)

    def __call__(self, step: Step) -> AttackResult:
        memory = self._memory(step)
        draw = step.batch_generator.fold("threat").uniform(1)[0]
        chosen = int((self.shares(memory).cumsum(0) <= draw).sum())
        memory["chosen"] = torch.tensor(min(chosen, len(self.threats) - 1))
        attack = PGD(steps=self.steps, early_stop=False, keep="last", precision="ambient")
        return attack_step(step, attack, threat=self._threats[int(memory["chosen"])])

    def after_step(self, step: Step) -> None:
        memory = self._memory(step)
        correct = (step.adversarial_logits.detach().argmax(1) == step.y).double()
        memory["accuracies"][memory["chosen"]] += step.batch_mean(correct)
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
class BalancedLoss(Part):
    """w_clean CE(z, y) + w_adv CE(z', y), the w moved each step to equal relative progress (B-MTARD, eq. 8)."""

    reads = ("clean", "adversarial")

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
