"""The cost of a suite: passes of an image that no attack breaks, counted and not estimated."""

import torch
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.evaluation.suites.suite import Suite, in_full_precision
from robustly.randomness import KeyedGenerator
from robustly.threats import Threat


class _Unbreakable(nn.Module):
    """The first class wins everywhere, by a margin that has a slope."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.linspace(1, 0, self.classes, dtype=x.dtype)
        return logits + x.flatten(1).mean(1, keepdim=True) * torch.linspace(0, 1e-6, self.classes, dtype=x.dtype)


def passes_of(attack: Attack, threat: Threat, classes: int = 10) -> tuple[int, int]:
    """Forward and backward passes of an attack on one image that it cannot break."""
    x, y = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    draws = KeyedGenerator(0, torch.arange(1))
    found = attack(_Unbreakable(classes), x, y, threat=threat, generator=draws)
    return int(found.forwards[0]), int(found.backwards[0])


def suite_passes(suite: Suite, threat: Threat, classes: int = 10) -> dict[str, tuple[int, int]]:
    """Forward and backward passes of every attack of a suite on an image that it is run on and cannot break.

    Args:
        suite: the suite.
        threat: the threat of the evaluation.
        classes: of the model.
    """
    attacks = in_full_precision(suite).attacks
    return {name: passes_of(attack, threat, classes) for name, attack in attacks.items()}


def autoattack_passes(classes: int) -> int:
    """Forward and backward passes that AutoAttack's standard version spends on an image that nothing breaks.

    APGD-CE, APGD-T and FAB-T on at most nine targets, and Square's 5,000 queries, under linf or l2.
    """
    targets = min(9, classes - 1)
    return (102 + 101) + (1 + 2 * 101 * targets) + (1 + 300 * targets) + 5002
