"""Searches that go on to the end: the point of highest objective, whether or not it fools the model on the way."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.objectives import Goal


@dataclass(frozen=True)
class EndlessGoal(Goal):
    """A goal that no answer reaches: an attack climbs its objective to the last step, and keeps its highest point.

    The objective sees the same label, target and reference; only the verdict is withheld. Points made to transfer
    to another model, or to train on, are better climbed to the end than left at the first wrong answer.
    """

    def select(self, index: Tensor) -> "EndlessGoal":
        """The goals of some of the examples."""
        part = super().select(index)
        return EndlessGoal(part.y, part.target, part.reference)

    def reached(self, logits: Float[Tensor, "n k"]) -> Bool[Tensor, " n"]:
        """Never."""
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)


def endless(y: Int64[Tensor, " n"] | Goal) -> EndlessGoal:
    """The same goal, never reached."""
    goal = y if isinstance(y, Goal) else Goal(y)
    return EndlessGoal(goal.y, goal.target, goal.reference)
