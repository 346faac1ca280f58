"""Fast adaptive boundary attack: steps to linearised boundaries with a bias towards the original."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.linearisation import (
    ORDER,
    lead_of_target,
    nearest_boundary,
    ranked_targets,
    step_to_hyperplane,
)
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.attacks.core.together import in_turn, together
from robustly.objectives import ClassificationGoal, Goal, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import LpBall
from robustly.threats.contract import Threat, per_example

_TINY = 1e-8  # smaller steps to the boundary count as zero, on a scale from 0 to 1


@dataclass(frozen=True)
class FAB:
    """Search for the nearest adversarial example (Croce and Hein, ICML 2020, algorithm 1).

    Each step projects the point and the original on the linearised boundary inside the box, overshoots a little,
    and moves to a mean of the two. Where that is adversarial, it moves back towards the original. A step costs two
    forward passes and K - 1 backward passes; with `targets` one, for each target in turn (FAB-T). Given target
    classes, only these are searched and counted.

    Args:
        steps: per start, at least 1.
        restarts: starts per target; the first at the image, later ones at random at half the smaller of epsilon
            and the smallest distance found, in the threat's norm.
        targets: 0 uses the nearest of all boundaries; T makes one run for each of the T wrong classes of largest
            clean logits, the largest first.
        alpha_max: largest weight of the original, in [0, 1].
        eta: overshoot of the boundary, at least 1.
        beta: share of the distance from the original that an adversarial point keeps, in (0, 1).
        stop_inside: True stops an example once it is broken within epsilon: cheaper at a fixed epsilon, as in
            AutoAttack. Its distance is then not minimised, so `minimum_norm` is False.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("linf", "l2", "l1")

    steps: int = 100
    restarts: int = 1
    targets: int = 0
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    stop_inside: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.targets < 0:
            raise AttackError(
                "steps and restarts must be at least 1 and targets at least 0, "
                f"got {self.steps}, {self.restarts}, {self.targets}"
            )
        if not (0 <= self.alpha_max <= 1 and 1 <= self.eta < float("inf") and 0 < self.beta < 1):
            raise AttackError(
                "alpha_max must be in [0, 1], eta at least 1 and beta in (0, 1), "
                f"got {self.alpha_max}, {self.eta}, {self.beta}"
            )

    @property
    def minimum_norm(self) -> bool:
        """True if one run gives the whole security curve."""
        return not self.stop_inside

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
        """All targets, each with all restarts; with one restart, the targets after the first run at once."""
        aims = self._targets_of_runs(search)
        if self.restarts == 1:
            for runs in in_turn(len(aims)):
                rows = search.unbroken[self._unfinished(search, search.unbroken)]
                if len(rows) == 0:
                    return
                targets = torch.stack([aims[run][rows] for run in runs], dim=1)

                def run_all(part: Search, each: Rows, place: Tensor, targets: Tensor = targets) -> None:
                    self._run_start(part, each, part.x[each], targets[place].flatten(0, 1))

                together(search, rows, len(runs), run_all)
            return
        for targets in aims:  # a later start is at half the distance that the runs before it found
            for restart in range(self.restarts):
                rows = search.unbroken[self._unfinished(search, search.unbroken)]
                if len(rows) == 0:
                    return
                draws = generator.select(rows).fold("restart", restart)
                start = search.x[rows] if restart == 0 else _random_start(search, rows, draws)
                self._run_start(search, rows, start, targets[rows])

    def _targets_of_runs(self, search: Search) -> list[Int64[Tensor, "n c"]]:
        """Target classes of each run: all wrong classes `(N, K - 1)` at once, or a single one `(N, 1)`."""
        if search.labels.target is not None:
            return [search.labels.target[:, None]]
        classes = search.clean.shape[1]
        ranked = ranked_targets(search, "confidence", self.targets or classes - 1)
        return [aim[:, None] for aim in ranked.unbind(1)] if self.targets else [ranked]

    def _unfinished(self, search: Search, rows: Rows) -> Tensor:
        """Mask of the examples to continue with `(M,)`."""
        if not self.stop_inside:
            return ~search.invalid[rows]
        inside = search.in_any_run(search.distance <= search.ball.radius)
        return ~(search.invalid | inside)[rows]

    def _run_start(self, search: Search, rows: Rows, point: Images, targets: Int64[Tensor, "m c"]) -> None:
        """Steps from one start."""
        ball = search.ball.select(rows)
        for _ in range(self.steps):
            gap, gradient = self._boundary(search, point, rows, targets)
            # where the gradient is zero at the original itself, every further step would be the same
            keep = ((gradient != 0) | (point != ball.x)).flatten(1).any(1) & self._unfinished(search, rows)
            if not bool(keep.all()):
                rows, point, targets, ball = rows[keep], point[keep], targets[keep], ball.select(keep)
                gap, gradient = gap[keep], gradient[keep]
                if len(rows) == 0:
                    return
            point, x = self._step(ball, point, gap, gradient), ball.x
            reached = search.goal.select(rows).reached(search.evaluate(point, rows))
            point = torch.where(per_example(reached, x), x + self.beta * (point - x), point)

    def _boundary(
        self, search: Search, point: Images, rows: Rows, targets: Int64[Tensor, "m c"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, "m ..."]]:
        """Value and gradient of the linearised boundary."""
        if self.targets == 0 and search.labels.target is None:
            return nearest_boundary(search, point, rows, targets)
        objective = margin if search.labels.target is None else lead_of_target
        found = search.value_and_grad(
            point, rows, objective, goal=ClassificationGoal(search.labels.y[rows], target=targets[:, 0])
        )
        return found.value.nan_to_num(0.0, 0.0, 0.0), found.gradient

    def _step(
        self,
        ball: LpBall,
        point: Images,
        gap: Float[Tensor, " m"],
        gradient: Images,
    ) -> Images:
        """Point beyond the boundary: a mean of the projections of the point and of the original."""
        x, low, high = ball.x, ball.low, ball.high
        along = (gradient.double() * (point - x).double()).flatten(1).sum(1)
        both = torch.cat([point, x]), torch.cat([gradient, gradient])
        rises = torch.cat([-gap, (along - gap.double()).to(gap)])
        limits = [limit if isinstance(limit, float) else torch.cat([limit, limit]) for limit in (low, high)]
        from_point, from_x = step_to_hyperplane(*both, rises, ball.norm, *limits).chunk(2)
        tiny = _TINY * (ball.box[1] - ball.box[0])
        near, far = (
            torch.linalg.vector_norm(step.flatten(1), ORDER[ball.norm], dim=1).clamp_min(tiny)
            for step in (from_point, from_x)
        )
        weight = per_example((near / (near + far)).clamp_max(self.alpha_max), x)
        moved = (1 - weight) * (point + self.eta * from_point) + weight * (x + self.eta * from_x)
        return ball.clamp(moved)


def _random_start(search: Search, rows: Rows, draws: KeyedGenerator) -> Images:
    """Random direction, half as long in the threat's norm as the smaller of epsilon and the distance found."""
    ball = search.ball.select(rows)
    x, norm, shape = ball.x, ball.norm, ball.x.shape[1:]
    noise = ball.along_free((draws.uniform(*shape) * 2 - 1 if norm == "linf" else draws.normal(*shape)).to(x))
    length = torch.linalg.vector_norm(noise.flatten(1), ORDER[norm], dim=1).clamp_min(_TINY)
    reach = torch.minimum(search.distance[rows], ball.radius) / 2
    return ball.clamp(x + noise * per_example(reach / length, x))
