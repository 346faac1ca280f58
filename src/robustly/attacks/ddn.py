"""Decoupled direction and norm: direction from the gradient, norm from success or failure."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.linearisation import unit
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.objectives import Goal, Objective, at_step, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import LpBall, laid_out_like
from robustly.threats.contract import Threat, per_example

_LAST_STEP = 0.01  # the step size falls from 1 to this share on a cosine


@dataclass(frozen=True)
class DDN:
    """Gradient steps on a sphere that shrinks while the point is adversarial (Rony et al., CVPR 2019, algorithm 1).

    Costs steps + 1 forward and steps backward passes, and the clean pass. It converges to the best point of its
    objective, which for cross-entropy need not be the nearest adversarial one: `margin` can be closer. Where the
    gradient is zero, a random direction is used.

    Args:
        steps: gradient steps, at least 1.
        initial_norm: length of the first perturbation, for a box of width 1 (scaled with other boxes, like the
            steps, of length 1 to 0.01).
        gamma: relative change of the norm per step, in (0, 1).
        objective: function to maximise.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("l2")
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    initial_norm: float = 1.0
    gamma: float = 0.05
    objective: Objective = cross_entropy

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise AttackError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.initial_norm < float("inf") or not 0 < self.gamma < 1:
            raise AttackError(
                f"initial_norm must be a positive number and gamma in (0, 1), got {self.initial_norm}, {self.gamma}"
            )

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
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, nearest=True
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        low, high = search.ball.box
        rows = search.unbroken
        ball, draws = search.ball.select(rows), generator.select(rows)
        x = ball.x
        furthest = _length(torch.maximum(x - ball.low, ball.high - x))
        norm, point = torch.full_like(furthest, self.initial_norm * (high - low)), x
        for step in range(self.steps):
            found = search.value_and_grad(point, rows, at_step(self.objective, step, self.steps))
            reached = search.goal.select(rows).reached(found.output)
            direction = _direction(found.gradient, ball, draws.fold("direction", step))
            decay = _LAST_STEP + (1 - _LAST_STEP) * (1 + math.cos(math.pi * step / self.steps)) / 2
            delta = point - x + decay * (high - low) * direction
            norm = torch.minimum(norm * torch.where(reached, 1 - self.gamma, 1 + self.gamma), furthest)
            point = ball.clamp(x + unit(delta) * per_example(norm, x))
            if not bool(found.going.all()):
                keep = found.going
                rows, ball, draws, furthest = rows[keep], ball.select(keep), draws.select(keep), furthest[keep]
                x = ball.x
                norm, point = norm[keep], point[keep]
                if len(rows) == 0:
                    return
        search.evaluate(point, rows)


def _direction(gradient: Images, ball: LpBall, draws: KeyedGenerator) -> Images:
    """Gradient at length 1; where it is zero, a random direction."""
    still = (gradient == 0).flatten(1).all(1)
    if bool(still.any()):
        noise = ball.along_free(laid_out_like(gradient, draws.normal(*gradient.shape[1:])))
        gradient = torch.where(per_example(still, gradient), noise, gradient)
    return unit(gradient)


def _length(delta: Images) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return length
