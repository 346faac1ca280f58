"""HopSkipJump: the boundary's normal from predicted classes alone (Chen, Jordan and Wainwright, IEEE S&P 2020)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.decision_boundary import (
    MOST_BISECTIONS,
    bisect,
    decide,
    evaluate_decisions,
    random_adversarials,
)
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import laid_out_like
from robustly.threats.contract import Threat, per_example

FIRST_DELTA = 0.1  # length of the first finite differences, as a share of the width of the box
COARSEST = 1e-3  # bisection ends at this share of the interval, or sooner in high dimension
MOST_SHRINKING = 20  # largest number of halvings of a step
DIRECTIONS = 32  # evaluated together for each example
_VALUES = 2**24  # of random directions in memory at once
_TINY = 1e-12


@dataclass(frozen=True)
class HopSkipJump:
    """Steps along an estimate of the boundary's normal, each followed by a bisection back to the boundary.

    Algorithm 2 of Chen, Jordan and Wainwright, "HopSkipJumpAttack" (IEEE S&P 2020): at a point on the boundary,
    the predicted classes at random directions nearby give the normal by Monte Carlo. The attack uses neither logits
    nor gradients, only success or failure. Minimum-norm: the result is the nearest adversarial point evaluated,
    whatever epsilon is.

    Step t evaluates min(evaluations * sqrt(t + 1), most_evaluations) directions, some 25,000 to 50,000 forward
    passes in all, and no backward pass. Examples for which no random image reaches the goal are not attacked: rare
    without a target class, common with one.

    Args:
        steps: at least 1.
        evaluations: directions of the first step, at least 1.
        most_evaluations: largest number of directions of a step, at least 1.
        tries: largest number of random images for the start, at least 1.
        gamma: precision of the boundary search, positive: theta is gamma / d^1.5 under l2, gamma / d^2 under linf.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("linf", "l2")
    minimum_norm: ClassVar[bool] = True

    steps: int = 64
    evaluations: int = 100
    most_evaluations: int = 10_000
    tries: int = 1000
    gamma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "evaluations", "most_evaluations", "tries"):
            if getattr(self, name) < 1:
                raise AttackError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.gamma < float("inf"):
            raise AttackError(f"gamma must be a positive number, got {self.gamma}")

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
        rows = search.unbroken
        rows, points = random_adversarials(search, rows, generator.select(rows).fold("start"), self.tries)
        size = search.x[0].numel()
        sup = search.ball.norm == "linf"
        theta = self.gamma / (size**2 if sup else size**1.5)
        halvings = min(math.ceil(-math.log2(min(theta, COARSEST))), MOST_BISECTIONS)
        low, high = search.ball.box
        points = bisect(search, rows, points, halvings)
        for step in range(self.steps):
            valid = ~search.invalid[rows]
            rows, points = rows[valid], points[valid]
            if len(rows) == 0:
                return
            distance = search.ball.select(rows).size(points)
            delta = theta * distance * (size if sup else math.sqrt(size))
            if step == 0:
                delta = torch.full_like(distance, FIRST_DELTA * (high - low))
            count = max(min(int(self.evaluations * math.sqrt(step + 1)), self.most_evaluations), 1)
            normal = _normals(search, rows, points, delta, generator.fold("step", step), count)
            direction = normal.sign() if sup else normal
            stepped, moved = _stepped(search, rows, points, direction, distance / math.sqrt(step + 1))
            points = torch.where(per_example(moved, points), stepped, points)
            points = bisect(search, rows, points, halvings)


def _normals(
    search: Search, rows: Rows, points: Images, delta: Float[Tensor, " m"], generator: KeyedGenerator, count: int
) -> Images:
    """Normals by `_normal`, for as many examples at once as fit into memory."""
    group = max(_VALUES // (DIRECTIONS * points[0].numel()), 1)
    parts = [slice(first, first + group) for first in range(0, len(rows), group)]
    normals = [
        _normal(search, rows[part], points[part], delta[part], generator.select(rows[part]), count)
        for part in parts
    ]
    return torch.cat(normals)


def _normal(
    search: Search, rows: Rows, points: Images, delta: Float[Tensor, " m"], draws: KeyedGenerator, count: int
) -> Images:
    """Unit normals of the boundary, towards the goal (eq. 16 of the paper, with its baseline)."""
    low, high = search.ball.box
    shape, uniform = points.shape[1:], search.ball.norm == "linf"
    along, noise_sum = torch.zeros_like(points), torch.zeros_like(points)
    sign_sum = torch.zeros_like(delta)
    width = per_example(delta, points)[:, None]
    for first in range(0, count, DIRECTIONS):
        several, chunk = min(DIRECTIONS, count - first), draws.fold("directions", first)
        noise = (chunk.uniform(several, *shape) * 2 - 1) if uniform else chunk.normal(several, *shape)
        noise = search.ball.along_free(noise.to(points))
        length = torch.linalg.vector_norm(noise.flatten(2), dim=2).clamp_min(_TINY)
        noise = noise / length.view(*length.shape, *[1] * len(shape))
        points_near = (points[:, None] + width * noise).clamp(low, high)
        noise = (points_near - points[:, None]) / width.clamp_min(_TINY)  # after clipping to the box
        sign = torch.where(decide(search, rows, points_near), 1.0, -1.0).to(points)
        along += (sign.view(*sign.shape, *[1] * len(shape)) * noise).sum(1)
        noise_sum += noise.sum(1)
        sign_sum += sign.sum(1)
    mean = sign_sum / count
    centred = along - per_example(mean, points) * noise_sum
    unanimous = per_example(mean.abs() == 1, points)
    normal = torch.where(unanimous, along, centred)
    length = torch.linalg.vector_norm(normal.flatten(1), dim=1)
    return laid_out_like(points, normal / per_example(length.clamp_min(_TINY), points))


def _stepped(
    search: Search, rows: Rows, points: Images, direction: Images, length: Float[Tensor, " m"]
) -> tuple[Images, Bool[Tensor, " m"]]:
    """The first point at length, length / 2, length / 4, ... along a direction that reaches the goal."""
    low, high = search.ball.box
    stepped, moved = points.clone(), torch.zeros_like(rows).bool()
    for halving in range(MOST_SHRINKING):
        left = (~moved & ~search.invalid[rows]).nonzero()[:, 0]
        if len(left) == 0:
            break
        reach = per_example(length[left] / 2**halving, points[left])
        tried = (points[left] + reach * direction[left]).clamp(low, high)
        reached = evaluate_decisions(search, tried, rows[left])
        stepped[left[reached]], moved[left[reached]] = tried[reached], True
    return stepped, moved
