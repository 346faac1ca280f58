"""Exhaustive search over a finite threat set: every corruption at every severity."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackResult, Images, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.objectives import Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat
from robustly.threats.corruption import NUMBERS, CorruptionSet


@dataclass(frozen=True)
class ExhaustiveSearch:
    """All elements of a finite threat set, the smallest first, until one is misclassified.

    For corruptions these are 15 times the severity forward passes; random corruptions are drawn `restarts` times.

    Args:
        restarts: number of draws of the random numbers of each corruption, at least 1.
        objective: ranks the failing points.

    Raises:
        ValueError: fewer than one restart.
    """

    restarts: int = 1
    objective: Objective = margin

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise ValueError(f"restarts must be at least 1, got {self.restarts}")

    @property
    def needs(self) -> Needs:
        """Finite sets: corruptions."""
        return Needs((CorruptionSet,))

    @property
    def minimum_norm(self) -> bool:
        """False: the search stops at the first success."""
        return False

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`."""
        return run_search(self._run, model, x, y, threat=threat, generator=generator, needs=self.needs)

    def _run(self, search: Search, draws: KeyedGenerator) -> None:
        allowed = search.threat_set
        assert isinstance(allowed, CorruptionSet)  # `check_needs` rejects other threats before
        starts = []
        for restart in range(self.restarts):
            theta = allowed.identity()
            theta[:, 2] = draws.fold("exhaustive", restart).integers(NUMBERS, 1)[:, 0].to(theta)
            starts.append(allowed.candidates(theta, torch.zeros_like(theta), allowed.count))
        for place in range(allowed.count):
            for points in starts:
                rows = search.unbroken
                if len(rows) == 0:
                    return
                search.value_and_grad(points[rows, place], rows, self.objective, gradient=False, counts=False)
