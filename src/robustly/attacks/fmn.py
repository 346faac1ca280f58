"""Fast minimum-norm attack: ascent on the margin in a ball of adaptive radius."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import ANY_BALL, AttackError, AttackResult, Images, Needs
from robustly.attacks.core.linearisation import lead_of_target, ranked_targets, steepness, unit
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Evaluated, Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import ClassificationGoal, Goal, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import LpBall, laid_out_like
from robustly.threats.contract import Threat, per_example

_BISECTIONS = 10
TRIALS = 10  # largest number of random points for a start
MORE_STARTS = 5  # for examples that no ordinary start broke


@dataclass(frozen=True)
class FMN:
    """Ascent on the margin in a ball with adaptive radius (Pintor et al., NeurIPS 2021, alg. 1).

    Differs from the published algorithm where that one fails (each measured on linear models with closed-form
    solutions). While nothing is found the radius grows at least by the share `gamma` and reaches 1 % beyond the
    linearised boundary; the published one approaches that boundary from inside without crossing it. Points are
    projected on ball and box together. The l0 radius counts pixels and is at least 1. An example that no start
    broke, as where the gradient at the image is zero, gets up to five more from random points, until one succeeds.

    A start costs steps + 1 forward and steps backward passes per target, a random one up to 20 forward passes more,
    the choice of targets one forward and up to 21 backward passes.

    Args:
        steps: gradient steps per start and target, at least 1.
        restarts: starts of every example; the first at the image, later ones on the boundary between it and
            random points.
        targets: 0 maximises the margin to the largest other logit, which in l1 and linf settles early on one
            class; T maximises the margins to the T wrong classes whose linearised boundaries are nearest.
        step_size: Euclidean length of the first step, for a box of width 1; it falls to 1 % on a cosine.
        gamma: relative change of the radius at the first step, in (0, 1).
        final_gamma: the same at the last step, in (0, gamma].

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = ANY_BALL
    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    restarts: int = 1
    targets: int = 1
    step_size: float = 1.0
    gamma: float = 0.05
    final_gamma: float = 0.001

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.targets < 0:
            raise AttackError(
                "steps and restarts must be at least 1 and targets at least 0, "
                f"got {self.steps}, {self.restarts}, {self.targets}"
            )
        if not 0 < self.step_size < float("inf"):
            raise AttackError(f"step_size must be a positive number, got {self.step_size}")
        if not 0 < self.final_gamma <= self.gamma < 1:
            raise AttackError(
                f"gamma must be in (0, 1) and final_gamma in (0, gamma], got {self.gamma}, {self.final_gamma}"
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
        """All starts; more of them for examples that none broke."""
        targets: list[Tensor | None] = [None]
        if search.labels.target is not None:
            targets = [search.labels.target]
        elif self.targets:
            targets = list(ranked_targets(search, "malt", self.targets).unbind(1))
        for restart in range(self.restarts + MORE_STARTS):
            rows = search.unbroken
            if restart >= self.restarts:
                rows = rows[search.distance[rows].isinf()]
            if len(rows) == 0:
                return
            start = search.x[rows]
            if restart > 0:
                start = _random_start(search, rows, generator.select(rows).fold("restart", restart))
            for target in targets:
                self._run_start(search, rows, start, None if target is None else target[rows])

    def _run_start(self, search: Search, rows: Rows, point: Images, target: Int64[Tensor, " m"] | None) -> None:
        """Steps from one start to one target."""
        low, high = search.ball.box
        goal, ball = search.labels.select(rows), search.ball.select(rows)
        objective = margin if goal.target is None else lead_of_target
        worst = ball.size(ball.clamp(torch.where(ball.x - low > high - ball.x, low, high).to(ball.x)))
        radius = ball.size(point).clamp_min(1.0) if search.ball.norm == "l0" else torch.zeros_like(worst)
        best = torch.full_like(worst, torch.inf)
        for step in range(self.steps):
            found = search.value_and_grad(
                point, rows, objective, goal=goal if target is None else ClassificationGoal(goal.y, target=target)
            )
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            reached, length = goal.reached(found.output), ball.size(point)
            best = torch.where(reached, torch.minimum(best, length), best)
            gamma = self.final_gamma + (self.gamma - self.final_gamma) * cosine
            radius = _adapted(radius, best, length, reached, found, gamma, ball)
            radius = torch.minimum(radius, worst)
            # without a gradient, and nothing found, every further step would be the same
            stuck = (found.gradient == 0).flatten(1).all(1) & best.isinf()
            keep, gradient = found.going & ~stuck, found.gradient
            if not bool(keep.all()):
                rows, point, gradient, goal, ball = (
                    rows[keep], point[keep], gradient[keep], goal.select(keep), ball.select(keep),
                )  # fmt: skip
                target = None if target is None else target[keep]
                radius, best, worst = radius[keep], best[keep], worst[keep]
                if len(rows) == 0:
                    return
            size = self.step_size * (high - low) * (0.01 + 0.99 * cosine)
            point = ball.resized(radius).project(point + size * unit(gradient))
        search.evaluate(point, rows)


def _adapted(
    radius: Float[Tensor, " m"],
    best: Float[Tensor, " m"],
    length: Float[Tensor, " m"],
    reached: Bool[Tensor, " m"],
    found: Evaluated,
    gamma: float,
    ball: LpBall,
) -> Float[Tensor, " m"]:
    """Next radius: smaller where the point is adversarial, larger where it is not."""
    if ball.norm == "l0":
        change = (gamma * radius).floor().clamp_min(1.0)
        return torch.where(reached, torch.minimum(radius - change, best), radius + change).clamp_min(1.0)
    gain = steepness(found.gradient, ball.norm)
    away = torch.where(gain > 0, found.value.nan_to_num(0.0).abs() / gain, torch.inf)
    beyond = length + 1.01 * away + 1e-6 * (ball.box[1] - ball.box[0])
    first = radius == 0  # an example that starts at an adversarial point has no distance yet
    smaller = torch.where(first, best, torch.minimum(radius * (1 - gamma), best))
    larger = torch.where(best.isfinite(), radius * (1 + gamma), torch.maximum(radius * (1 + gamma), beyond))
    return torch.where(reached, smaller, larger)


def _random_start(search: Search, rows: Rows, draws: KeyedGenerator) -> Images:
    """Boundary point between the image and the first adversarial one of some random points.

    The points are uniform in the box, moved towards the image by a random share. Where none of them is adversarial,
    the last point is returned.
    """
    goal, ball = search.labels.select(rows), search.ball.select(rows)
    far, reached = ball.x.clone(), torch.zeros_like(rows).bool()
    for trial in range(TRIALS):
        left = (~reached).nonzero()[:, 0]
        if len(left) == 0:
            break
        far[left] = _random_points(ball.select(left), draws.select(left).fold("trial", trial))
        reached[left] = goal.select(left).reached(search.evaluate(far[left], rows[left]))
    place = reached.nonzero()[:, 0]
    if len(place) == 0:
        return far
    ball, goal, rows, edge = ball.select(place), goal.select(place), rows[place], far[place]
    length = ball.size(edge)
    inner, outer = torch.zeros_like(length), torch.ones_like(length)
    for _ in range(_BISECTIONS):
        middle = (inner + outer) / 2
        point = ball.resized(length * middle).project(far[place])
        there = goal.reached(search.evaluate(point, rows))
        edge = torch.where(per_example(there, edge), point, edge)
        inner, outer = torch.where(there, inner, middle), torch.where(there, middle, outer)
    far[place] = edge
    return far


def _random_points(ball: LpBall, draws: KeyedGenerator) -> Images:
    x, (low, high) = ball.x, ball.box
    anywhere = laid_out_like(x, draws.fold("point").uniform(*x.shape[1:]).to(x) * (high - low) + low)
    share = draws.fold("share").uniform(1)[:, 0].to(x)
    return ball.clamp(x + per_example(share, x) * (anywhere - x))
