"""Gradient ascent that keeps perturbations smooth: StAdv and ReColorAdv."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.ascent import Ascent
from robustly.attacks.core.contract import AttackError, AttackResult, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.core.search_state import Rows
from robustly.attacks.pgd import UPDATES, Update
from robustly.objectives import Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Images, PerExample, Smooth, Theta, Threat


@dataclass(frozen=True)
class SmoothPGD:
    """Projected ascent on the objective less a multiple of the perturbation's roughness.

    The function of theta is objective - `smoothness` * roughness(theta) / radius. The division makes `smoothness`
    independent of the unit. Points are ranked by the objective alone, and a success may be rough: the penalty only
    directs the search. The defaults are those of StAdv's bounded form (Xiao et al., ICLR 2018; settings of Laidlaw
    and Feizi, NeurIPS 2019): Adam at 0.01 for a bound of 0.05, and a weight of 0.0025 / bound.

    A robust example costs 1 + restarts * (steps + 1) forward and restarts * steps backward passes.

    Args:
        steps: gradient steps per restart, at least 0.
        objective: function to maximise.
        relative_step_size: length of a step as a share of the radius, positive.
        smoothness: weight of the roughness, at least 0; 0 is `PGD`.
        update: update rule, as in `PGD`.
        restarts: starts in total, at least 1; the first is the input itself, later ones are random and attack
            only unbroken examples.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.

    Raises:
        AttackError: a setting that is out of range; at use, a threat without a roughness.
    """

    needs: ClassVar[Needs] = Needs((Smooth,))
    minimum_norm: ClassVar[bool] = False

    steps: int = 100
    objective: Objective = margin
    relative_step_size: float = 0.2
    smoothness: float = 0.0025
    update: Update = "adam"
    restarts: int = 1
    precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.steps < 0 or self.restarts < 1:
            raise AttackError(
                f"steps must be at least 0 and restarts at least 1, got {self.steps}, {self.restarts}"
            )
        if not 0 < self.relative_step_size < float("inf"):
            raise AttackError(f"relative_step_size must be a positive number, got {self.relative_step_size}")
        if not 0 <= self.smoothness < float("inf"):
            raise AttackError(f"smoothness must be a number of at least 0, got {self.smoothness}")
        if self.update not in UPDATES:
            raise AttackError(f"update must be one of {', '.join(UPDATES)}, got {self.update!r}")

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
        return run_search(
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, precision=self.precision
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        def penalty(theta: Theta, rows: Rows) -> PerExample:
            allowed = search.threat_set.select(rows)
            assert isinstance(allowed, Smooth)  # the only sets that the attack is defined for
            return self.smoothness * allowed.roughness(theta) / torch.where(allowed.radius > 0, allowed.radius, 1.0)

        ascent = Ascent(
            self.steps,
            self.objective,
            lambda step, allowed: allowed.radius * self.relative_step_size,
            UPDATES[self.update],
            penalty=penalty if self.smoothness > 0 else None,
        )
        for restart in range(self.restarts):
            rows = search.unbroken
            if len(rows) == 0:
                return
            draws, allowed = generator.select(rows).fold("restart", restart), search.threat_set.select(rows)
            start = allowed.random_start(draws.fold("start")) if restart else allowed.identity()
            ascent.run(search, rows, start, search.goal.select(rows), draws)


def recoloradv() -> SmoothPGD:
    """Projected ascent with the step size and smoothness of ReColorAdv (Laidlaw and Feizi, NeurIPS 2019).

    Adam at 0.001 for a bound of 0.06, and a weight of 0.0036 / bound, for 100 steps.
    """
    return SmoothPGD(relative_step_size=1 / 60, smoothness=0.0036)
