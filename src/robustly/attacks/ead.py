"""Elastic-net attack: sparse changes under l1 (Chen et al., "EAD", AAAI 2018)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.contract import AttackError, AttackResult, Images
from robustly.attacks.penalty import PenaltyWeight, capped_lead, check_penalty_search
from robustly.attacks.search import Rows, Search, run_search
from robustly.balls import per_example
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threat import ThreatModel


@dataclass(frozen=True)
class EAD:
    """Minimises c max(z_y - max_{j != y} z_j, 0) + |x' - x|_2^2 + beta |x' - x|_1 by FISTA.

    c is searched for each example (see `PenaltyWeight`); of all successes the nearest in l1 is kept (the published
    decision rule "L1"). A step costs two forward passes and one backward pass.

    Args:
        steps: per value of c, at least 1.
        search_steps: values of c, at least 1.
        beta: weight of the l1 norm, and how much every change shrinks in a step, on a box of width 1; at least 0.
        initial_c: first value of c.
        learning_rate: first step size; it falls as the root of what is left of the steps.

    Raises:
        AttackError: a setting that is out of range.
    """

    norms: ClassVar[tuple[str, ...]] = ("l1",)
    minimum_norm: ClassVar[bool] = True

    steps: int = 1000
    search_steps: int = 9
    beta: float = 1e-3
    initial_c: float = 1e-3
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        check_penalty_search(self.steps, self.search_steps, self.initial_c, self.learning_rate)
        if not self.beta >= 0:
            raise AttackError(f"beta must be at least 0, got {self.beta}")

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`."""
        return run_search(
            self._run, model, x, y, threat=threat, generator=generator, norms=self.norms, nearest=True
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        rows = search.standing
        weight = PenaltyWeight.starting_at(self.initial_c, search.distance[rows])
        for _ in range(self.search_steps):
            weight = weight.after(self._descend(search, rows, weight.c))

    def _descend(self, search: Search, rows: Rows, c: Float[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """One run with given weights; returns which reached the goal."""
        low, high = search.threat.box
        shrink = self.beta * (high - low)
        place = torch.arange(len(rows), device=rows.device)
        success = torch.zeros_like(rows).bool()
        x = search.x[rows]
        point, ahead = x, x
        objective = capped_lead(0.0)
        for step in range(self.steps):
            here = rows[place]
            found = search.climb(ahead, here, objective, record=False)
            slope = 2 * (ahead - x) - per_example(c, x) * found.gradient
            size = self.learning_rate * (1 - step / self.steps) ** 0.5
            change = ahead - size * slope - x
            moved = x + change.sign() * (change.abs() - shrink).clamp_min(0.0)
            moved = moved.clamp(low, high)
            success[place] |= search.goal.select(here).reached(search.look(moved, here))
            ahead = moved + step / (step + 3) * (moved - point)
            point = moved
            keep = ~search.invalid[here]
            if not bool(keep.all()):
                place, x, c, point, ahead = place[keep], x[keep], c[keep], point[keep], ahead[keep]
                if len(place) == 0:
                    break
        return success
