"""Penalty methods: distance plus c times the missing lead, and the search for the smallest sufficient c."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.attacks.core.contract import AttackError
from robustly.attacks.core.linearisation import lead_of_target
from robustly.objectives import ClassificationGoal, margin

LARGEST = 1e10  # upper end of the search before a first success


@dataclass(frozen=True)
class PenaltyWeight:
    """Weight c of each example, `(M,)`, between the largest that failed and the smallest that sufficed.

    Carlini and Wagner ("Towards evaluating the robustness of neural networks", S&P 2017, sec. VI): c is multiplied
    by ten after every failure until a first success, then bisected.
    """

    c: Float[Tensor, " m"]
    failed: Float[Tensor, " m"]
    sufficed: Float[Tensor, " m"]

    @staticmethod
    def starting_at(c: float, like: Float[Tensor, " m"]) -> "PenaltyWeight":
        """Equal weights."""
        return PenaltyWeight(torch.full_like(like, c), torch.zeros_like(like), torch.full_like(like, LARGEST))

    def after(self, success: Bool[Tensor, " m"]) -> "PenaltyWeight":
        """Weight of the next run."""
        sufficed = torch.where(success, torch.minimum(self.sufficed, self.c), self.sufficed)
        failed = torch.where(success, self.failed, torch.maximum(self.failed, self.c))
        c = torch.where(sufficed < LARGEST, (failed + sufficed) / 2, self.c * 10)
        return PenaltyWeight(c, failed, sufficed)

    def best_known(self) -> "PenaltyWeight":
        """Weight that sufficed, for a last run."""
        return PenaltyWeight(
            torch.where(self.sufficed < LARGEST, self.sufficed, self.c), self.failed, self.sufficed
        )


def check_penalty_search(steps: int, search_steps: int, initial_c: float, learning_rate: float) -> None:
    """Reject settings that are out of range.

    Raises:
        AttackError: no step, no value of c, or a rate that is not positive.
    """
    if steps < 1 or search_steps < 1:
        raise AttackError(f"steps and search_steps must be at least 1, got {steps}, {search_steps}")
    if not (initial_c > 0 and learning_rate > 0):
        raise AttackError(f"initial_c and learning_rate must be positive, got {initial_c}, {learning_rate}")


def capped_lead(confidence: float) -> Callable[[Tensor, ClassificationGoal], Tensor]:
    """The adversary's lead, capped at `confidence`: max_{j != y} z_j - z_y, targeted z_t - max_{j != t} z_j."""

    def objective(logits: Tensor, goal: ClassificationGoal) -> Tensor:
        lead = margin(logits, goal) if goal.target is None else lead_of_target(logits, goal)
        return lead.clamp_max(confidence)

    return objective
