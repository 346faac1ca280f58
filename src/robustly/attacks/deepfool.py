"""DeepFool: repeated steps to the nearest boundary of the linearised model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.linearisation import nearest_boundary, ranked_targets, steepness, unit
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.objectives import ClassificationGoal, Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import LpBall
from robustly.threats.contract import Threat, per_example

_BEYOND = 1e-4  # added to the distance of the boundary in each step, on a scale from 0 to 1


@dataclass(frozen=True)
class DeepFool:
    """Steps to the nearest linearised boundary until misclassification (Moosavi-Dezfooli et al., CVPR 2016).

    Untargeted, without random numbers. The overshoot applies to the sum of the steps, as in the authors' code: the
    point is x + (1 + overshoot) * (r_1 + ... + r_i), clipped to the box. A step costs two forward passes and one
    backward pass per candidate; an example stops at the first adversarial point.

    Args:
        steps: largest number of steps, at least 1.
        overshoot: distance beyond the sum of the steps, as a share of it, at least 0.
        candidates: number of wrong classes of largest clean logits to linearise, at least 1.

    Raises:
        AttackError: a setting that is out of range; at a call, a goal with target classes.
    """

    needs: ClassVar[Needs] = lp_balls("l2", "linf")
    minimum_norm: ClassVar[bool] = True

    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 9

    def __post_init__(self) -> None:
        if self.steps < 1 or self.candidates < 1:
            raise AttackError(f"steps and candidates must be at least 1, got {self.steps}, {self.candidates}")
        if not 0 <= self.overshoot < float("inf"):
            raise AttackError(f"overshoot must be a finite number of at least 0, got {self.overshoot}")

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
        if isinstance(y, ClassificationGoal) and y.target is not None:
            raise AttackError("DeepFool has no targeted form: give labels without target classes")
        return run_search(
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, nearest=True
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        rows = search.unbroken
        classes = ranked_targets(search, "confidence", self.candidates)[rows]
        ball = search.ball.select(rows)
        point, total = ball.x, torch.zeros_like(ball.x)
        for _ in range(self.steps):
            gap, gradient = nearest_boundary(search, point, rows, classes)
            x, stretch = ball.x, 1 + self.overshoot
            total = total + self._step(ball, gap, gradient)
            total = torch.minimum(torch.maximum(total, (ball.low - x) / stretch), (ball.high - x) / stretch)
            point = ball.clamp(x + stretch * total)
            reached = search.goal.select(rows).reached(search.evaluate(point, rows))
            # without a gradient every further step would be the same
            keep = ~reached & ~search.invalid[rows] & (gradient != 0).flatten(1).any(1)
            rows, point, total, classes = rows[keep], point[keep], total[keep], classes[keep]
            ball = ball.select(keep)
            if len(rows) == 0:
                return

    @staticmethod
    def _step(ball: LpBall, gap: Float[Tensor, " m"], gradient: Images) -> Images:
        gain = steepness(gradient, ball.norm)
        length = gap.abs() / torch.where(gain > 0, gain, 1.0) + _BEYOND * (ball.box[1] - ball.box[0])
        direction = gradient.sign() if ball.norm == "linf" else unit(gradient)
        return direction * per_example(length, gradient)
