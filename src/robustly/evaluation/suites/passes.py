"""Counted passes of an attack, and those of AutoAttack, per unbroken image."""

import torch
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.randomness import KeyedGenerator
from robustly.threats import Threat


class _Unbreakable(nn.Module):
    """A model that always predicts the first class, with a margin whose gradient is not zero."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.linspace(1, 0, self.classes, dtype=x.dtype)
        return logits + x.flatten(1).mean(1, keepdim=True) * torch.linspace(0, 1e-6, self.classes, dtype=x.dtype)


def passes_of(attack: Attack, threat: Threat, classes: int = 10) -> tuple[int, int]:
    """Forward and backward passes of an attack on one unbroken image."""
    x, y = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    draws = KeyedGenerator(0, torch.arange(1))
    found = attack(_Unbreakable(classes), x, y, threat=threat, generator=draws)
    return int(found.forwards[0]), int(found.backwards[0])


def autoattack_passes(classes: int) -> int:
    """Forward and backward passes of AutoAttack's standard version on an unbroken image.

    These are APGD-CE, APGD-T and FAB-T on at most nine targets, and Square's 5,000 queries, under linf or l2.
    """
    targets = min(9, classes - 1)
    return (102 + 101) + (1 + 2 * 101 * targets) + (1 + 300 * targets) + 5002
