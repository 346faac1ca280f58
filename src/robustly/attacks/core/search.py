"""What every search shares: questions to the model are counted, answers judged, and the best find kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import (
    AttackResult,
    Images,
    ModelMode,
    check_device,
    check_ids,
    check_logits,
    check_norm,
    frozen,
    prepare,
)
from robustly.attacks.core.model_access import half_precision_copy, input_gradient, logits_of
from robustly.objectives import Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import Ball, laid_out_like, per_example
from robustly.threats.lp import NORMS, ThreatModel

Precision = Literal["full", "ambient", "bfloat16"]
Rows = Int64[Tensor, " m"]


@runtime_checkable
class GradientEstimator(Protocol):
    """Another source of gradients than one backward pass: finite differences, or an average over random draws."""

    def __call__(
        self,
        ask: Callable[[Tensor], Tensor],
        points: Tensor,
        value: Callable[[Tensor], Tensor],
        draws: KeyedGenerator,
    ) -> tuple[Tensor, int, int]:
        """Estimate the gradient of `value(ask(points)).sum()`, `(M, ...)`.

        Args:
            ask: from images `(M, ...)` (or several times as many: example after example, each repeated) to logits.
            points: where, `(M, ...)`.
            value: from logits of as many rows as points to the objective `(M,)`.
            draws: random numbers of the M examples.

        Returns:
            The gradient, and how many forward and backward passes each example cost.
        """
        ...


@dataclass(frozen=True)
class Ascent:
    """The answer at M points.

    Args:
        logits: `(M, K)`, float32 or wider.
        gradient: of the objective with respect to the points, zeros where it is no number.
        value: the objective `(M,)`.
        reached: whether the goal was reached, confirmed in full precision `(M,)`.
        standing: which examples are still to be broken `(M,)`.
    """

    logits: Float[Tensor, "m k"]
    gradient: Float[Tensor, "m ..."]
    value: Float[Tensor, " m"]
    reached: Bool[Tensor, " m"]
    unbroken: Bool[Tensor, " m"]


class Search:
    """One attack on one batch: all questions to the model go through here.

    Examples are addressed by `rows`, positions in the batch `(M,)`, each at most once in a call. Every answer is
    judged: answers that are no numbers make an example invalid, the first point that reaches the goal is kept
    (under `nearest`, the nearest one, whatever epsilon is), and of failing points that of highest objective.

    Args:
        model: the model, held still by `frozen`.
        x: images `(N, ...)`.
        goal: what counts as success.
        threat: the threat.
        nearest: for minimum-norm attacks.
        by_margin: whether failing points are ranked by how close they come to any wrong prediction, for searches
            whose objective is not the same throughout.
        twin: a faster model of lower precision to search in; what it finds counts only if `model` agrees.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Images,
        goal: Goal,
        threat: ThreatModel,
        *,
        nearest: bool = False,
        by_margin: bool = False,
        twin: nn.Module | None = None,
    ) -> None:
        self.model, self.x, self.goal, self.threat = model, x, goal, threat
        self.nearest, self.by_margin, self.twin = nearest, by_margin, twin
        self.ball: Ball = threat.around(x)
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.x_adv = x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        self.highest = torch.full_like(self.distance, -torch.inf)
        self.margin = torch.full_like(self.distance, -torch.inf)
        self.forwards, self.backwards = count, count.clone()
        self.correct_iterates, self.zero_gradients = count.clone(), count.clone()
        self.broken, self.invalid = count.bool(), count.bool()
        self.clean = x.new_zeros(len(x), 0)

    def begin(self) -> None:
        """The clean pass: what is wrong already is broken at distance 0 and not attacked."""
        with torch.no_grad():
            self.clean = check_logits(logits_of(self.model, self.x), self.goal)
        self.forwards += 1
        finite = self.clean.isfinite().all(1)
        self.invalid |= ~finite
        self.broken = self.goal.reached(self.clean) | ~finite
        self.distance[self.broken] = 0.0
        self.margin = _margin(self.clean, self.goal).to(self.margin)

    @property
    def unbroken(self) -> Rows:
        """The examples that are still to be broken; under `nearest`, those that were not wrong from the outset."""
        return (~self.broken & ~self.invalid).nonzero()[:, 0]

    def select(self, rows: Rows) -> tuple[Goal, Ball]:
        """The goals of some examples, and the balls around them."""
        return self.goal.select(rows), self.ball.select(rows)

    def evaluate(self, points: Images, rows: Rows) -> Float[Tensor, "m k"]:
        """Logits at allowed points: one forward pass each, in full precision."""
        with torch.no_grad():
            logits = logits_of(self.model, points)
        self.forwards[rows] += 1
        self.record(points, rows, logits, None, exact=True)
        return logits

    def value_and_grad(
        self,
        points: Images,
        rows: Rows,
        objective: Objective,
        *,
        goal: Goal | None = None,
        estimator: GradientEstimator | None = None,
        draws: KeyedGenerator | None = None,
        gradient: bool = True,
        record: bool = True,
        rank: bool = True,
    ) -> Ascent:
        """Logits, objective and gradient at some points: one forward and one backward pass each.

        Args:
            points: `(M, ...)`.
            rows: which examples they belong to.
            objective: what is maximised.
            goal: the goal that the objective is told of, where it is not that of the verdict (a target class that
                merely directs an untargeted search).
            estimator: another source of gradients.
            draws: random numbers of the M examples, for the estimator.
            gradient: False spares the backward pass; the gradient is then zero.
            record: whether the points are allowed ones, that may be kept.
            rank: whether the objective may rank failing points.
        """
        aim = self.goal.select(rows) if goal is None else goal
        fast = self.model if self.twin is None else self.twin
        self.forwards[rows] += 1
        if not gradient or estimator is not None:
            with torch.no_grad():
                logits = logits_of(fast, points)
                value = objective(logits, aim)
            found = points.new_zeros(()).expand_as(points)
            if gradient and estimator is not None:
                assert draws is not None
                found, forwards, backwards = estimator(
                    lambda images: logits_of(fast, images), points, lambda given: objective(given, aim), draws
                )
                self.forwards[rows] += forwards
                self.backwards[rows] += backwards
        else:
            here = points.detach().requires_grad_()
            logits = logits_of(fast, here)
            value = objective(logits, aim)
            found = input_gradient(value.sum(), here)
            self.backwards[rows] += 1
        if gradient:
            self.zero_gradients[rows] += (found.flatten(1) == 0).all(1)
        logits, value = logits.detach(), value.detach().to(points.dtype)
        if gradient:
            self.correct_iterates[rows] += ~self.goal.select(rows).reached(logits)
        if record:
            worth = _margin(logits, self.goal.select(rows)).to(value) if self.by_margin else value
            reached = self.record(points, rows, logits, worth if rank else None, exact=self.twin is None)
        else:
            reached = torch.zeros_like(rows).bool()  # answers outside the threat set prove nothing
        unbroken = ~self.invalid[rows] & ~self.broken[rows]
        return Ascent(logits, found, value, reached, unbroken)

    def jacobian(
        self, points: Images, rows: Rows, classes: Int64[Tensor, "m c"]
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m c ..."]]:
        """Logits, and the gradients of the named logits of each point: one forward and C backward passes.

        Returns:
            Logits `(M, K)` and gradients `(M, C, ...)`.
        """
        here = points.detach().requires_grad_()
        logits = logits_of(self.model, here)
        gradients = []
        for column in range(classes.shape[1]):
            chosen = logits.gather(1, classes[:, column : column + 1]).sum()
            gradients.append(input_gradient(chosen, here, keep_graph=column + 1 < classes.shape[1]))
        self.forwards[rows] += 1
        self.backwards[rows] += classes.shape[1]
        self.correct_iterates[rows] += ~self.goal.select(rows).reached(logits)
        self.record(points, rows, logits.detach(), None, exact=True)
        return logits.detach(), torch.stack(gradients, dim=1)

    def settle(self) -> None:
        """After a search in a twin: the best failing points are looked at in full precision."""
        rows = self.unbroken
        if self.twin is not None and len(rows):
            self.evaluate(self.x_adv[rows], rows)

    def result(self) -> AttackResult:
        """What was found."""
        inside, beyond = self.broken, None
        if self.nearest:
            found = self.distance.isfinite() & ~self.invalid
            inside = (found & self.ball.contains(self.x_adv)) | self.invalid
            beyond = self.x_adv
        else:
            self.distance = torch.where(inside, self.ball.distance(self.x_adv), torch.inf)
        x_adv = self.x_adv
        if self.nearest:
            x_adv = torch.where(per_example(inside, self.x), self.x_adv, self.x)
        return AttackResult(
            laid_out_like(self.x, x_adv),
            inside,
            self.distance,
            self.forwards,
            self.backwards,
            self.correct_iterates,
            self.invalid,
            None if beyond is None else laid_out_like(self.x, beyond),
            self.margin,
            self.zero_gradients,
        )

    def record(
        self, points: Images, rows: Rows, logits: Tensor, value: Tensor | None, *, exact: bool
    ) -> Bool[Tensor, " m"]:
        """Keep what these points are worth; for searches that ask the model themselves.

        Args:
            points: allowed points (under `nearest`: points in the box) `(M, ...)`.
            rows: which examples they belong to.
            logits: what the model says of them.
            value: the objective, by which failing points are ranked; None ranks none.
            exact: whether the logits are the model's own, in full precision.

        Returns:
            Which reached the goal, `(M,)`.
        """
        goal = self.goal.select(rows)
        finite = logits.isfinite().all(1)
        reached = goal.reached(logits) & finite & ~self.broken[rows]
        if self.nearest:
            distance = self.ball.select(rows).distance(points).to(self.distance)
            closer = reached & (distance < self.distance[rows])
            if not exact:
                closer = self._confirmed(points, rows, closer)
            self.x_adv[rows[closer]] = points[closer]
            self.distance[rows[closer]] = distance[closer]
        else:
            if not exact:
                reached = self._confirmed(points, rows, reached)
            kept = reached
            if value is not None:
                kept = reached | ((value > self.highest[rows]) & ~self.broken[rows])
                self.highest[rows[kept]] = value[kept]
            self.x_adv[rows[kept]] = points[kept]
            self.broken[rows] |= reached
        self.invalid[rows] |= ~finite
        if not self.nearest:
            self.broken[rows] |= ~finite
        self.margin[rows] = torch.maximum(self.margin[rows], _margin(logits, goal).to(self.margin))
        return reached

    def _confirmed(self, points: Images, rows: Rows, claimed: Bool[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Which of the points that the twin calls successes are ones: a forward pass in full precision."""
        place = claimed.nonzero()[:, 0]
        if len(place) == 0:
            return claimed
        with torch.no_grad():
            logits = logits_of(self.model, points[place])
        self.forwards[rows[place]] += 1
        holds = torch.zeros_like(claimed)
        holds[place] = self.goal.select(rows[place]).reached(logits) & logits.isfinite().all(1)
        return holds


def run_search(
    run: Callable[[Search, KeyedGenerator], None],
    model: nn.Module,
    x: Images,
    y: Int64[Tensor, " n"] | Goal,
    *,
    threat: ThreatModel,
    generator: KeyedGenerator,
    norms: tuple[str, ...] = NORMS,
    nearest: bool = False,
    by_margin: bool = False,
    mode: ModelMode = "eval",
    precision: Precision = "full",
) -> AttackResult:
    """What every attack does: check, hold the model still, spare what is wrong already, search, report.

    Args:
        run: the search; it is called with the state after the clean pass, if anything is left to attack.
        model: as `Attack` has it, like the four that follow.
        x: the clean images.
        y: what they show, or a goal.
        threat: what is allowed.
        generator: keyed by example.
        norms: the norms that the attack is defined for.
        nearest: for minimum-norm attacks.
        by_margin: how failing points are ranked; see `Search`.
        mode: how batch normalisation behaves; see `frozen`.
        precision: "full", "ambient" (autocast as it is), or "bfloat16": the search runs in a bfloat16 copy of the
            model, verdicts in full precision.

    Raises:
        AttackError: see `prepare`; a norm that the attack is not defined for; a model on another device.
    """
    check_norm(threat, norms)
    x, goal = prepare(x, y, threat)
    check_ids(x, generator)
    check_device(model, x)
    with frozen(model, mode, precision != "ambient"):
        twin = half_precision_copy(model, x) if precision == "bfloat16" and len(x) else None
        search = Search(model, x, goal, threat, nearest=nearest, by_margin=by_margin, twin=twin)
        if precision == "bfloat16":
            search.forwards[:1] += 1  # the first image tried the twin
        if len(x):
            search.begin()
            if len(search.unbroken):
                run(search, generator)
                search.settle()
        return search.result()


def _margin(logits: Tensor, goal: Goal) -> Float[Tensor, " m"]:
    """How far the example is from being misclassified, whatever the attack's own target."""
    return margin(logits, Goal(goal.y)).nan_to_num(-torch.inf)
