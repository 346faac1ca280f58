"""Auto-PGD: projected ascent with an adaptive step size (Croce and Hein, "Reliable evaluation", ICML 2020)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.apgd_l1 import ascend_l1
from robustly.attacks.core.ascent import random_direction_ascent
from robustly.attacks.core.contract import ANY_BUT_L0, AttackError, AttackResult, Images, Needs
from robustly.attacks.core.gradient_estimators import GradientEstimator
from robustly.attacks.core.linearisation import Ranking, ranked_targets
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Rows, Search
from robustly.objectives import (
    ClassificationGoal,
    Goal,
    Objective,
    at_step,
    cross_entropy,
    difference_of_logits_ratio,
)
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import L1Ball, LpBall
from robustly.threats.contract import Theta, Threat, per_example

APGDStart = Literal["sphere", "odi"]
INCREASES = 0.75  # rho: a window with a smaller share of increasing steps halves the step size
MOMENTUM = 0.75  # alpha: share of the new step; the rest repeats the last move


@dataclass(frozen=True)
class APGD:
    """Ascent with momentum; the step size halves where progress stops (Croce and Hein 2020, alg. 1).

    A robust example costs 1 + restarts * (steps + 1) forward and restarts * (steps + 1) backward passes. Under l1
    the steps are sparse (Croce and Hein, "Mind the box", ICML 2021, alg. 2).

    Args:
        steps: ascent steps per restart, at least 0.
        objective: function to maximise.
        restarts: independent starts; later ones attack only unbroken examples.
        start: "sphere" (a random point with one coordinate at epsilon, under l2 on the sphere), or "odi" (ascent on
            a random combination of the logits from there, Tashiro et al., NeurIPS 2020).
        odi_steps: steps of that ascent.
        large_epsilon: l1 only: search at 3 epsilon, then 2 epsilon, then epsilon, each from the best point before,
            in 30, 30 and 40 % of the steps.
        early_stop: True removes an example from the batch as soon as it is broken.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.
        estimator: computes gradients in place of the backward pass.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = ANY_BUT_L0
    minimum_norm: ClassVar[bool] = False

    steps: int = 100
    objective: Objective = cross_entropy
    restarts: int = 1
    start: APGDStart = "sphere"
    odi_steps: int = 7
    large_epsilon: bool = False
    early_stop: bool = True
    precision: Precision = "full"
    estimator: GradientEstimator | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.restarts, self.odi_steps, self.start)

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
        ascent = _Run(
            self.steps,
            self.objective,
            self.start,
            self.odi_steps,
            self.large_epsilon,
            self.early_stop,
            self.estimator,
        )
        for restart in range(self.restarts):
            rows = search.unbroken
            if len(rows) == 0:
                return
            ascent(search, rows, search.goal.select(rows), generator.select(rows).fold("restart", restart))


@dataclass(frozen=True)
class TargetedAPGD:
    """APGD towards one wrong class after the other: APGD-T, and its MALT-ordered variant.

    Any wrong prediction breaks an example, not only the target class of the search.

    Args:
        steps: ascent steps per target.
        objective: function to maximise, in its targeted form.
        targets: number of target classes, in the order of `ranking`; at most K - 1 are used.
        first: rank of the first target, from 0, so that a later stage of a suite can continue an earlier one.
        ranking: "confidence" (largest clean logits first, as AutoAttack), or "malt" (smallest linearised distance
            first, Melamed et al., NeurIPS 2024; costs K - 1 more backward passes).
        restarts: starts per target.
        start: as in `APGD`, like all that follow.
        odi_steps: steps of an ODI start.
        large_epsilon: True starts the l1 schedule in larger balls.
        early_stop: True removes a broken example from the batch.
        precision: of the search; verdicts are in full precision.
        estimator: computes gradients in place of the backward pass.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = ANY_BUT_L0
    minimum_norm: ClassVar[bool] = False

    steps: int = 100
    objective: Objective = difference_of_logits_ratio
    targets: int = 9
    first: int = 0
    ranking: Ranking = "confidence"
    restarts: int = 1
    start: APGDStart = "sphere"
    odi_steps: int = 7
    large_epsilon: bool = False
    early_stop: bool = True
    precision: Precision = "full"
    estimator: GradientEstimator | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.restarts, self.odi_steps, self.start)
        if self.targets < 1 or self.first < 0:
            raise AttackError(f"targets must be at least 1 and first at least 0, got {self.targets}, {self.first}")

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`. A goal with targets is attacked at these targets alone."""
        return run_search(
            self._run,
            model,
            x,
            y,
            threat=threat,
            generator=generator,
            needs=self.needs,
            by_margin=True,
            precision=self.precision,
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        ascent = _Run(
            self.steps,
            self.objective,
            self.start,
            self.odi_steps,
            self.large_epsilon,
            self.early_stop,
            self.estimator,
        )
        order = _targets_of(search, self.ranking, self.first + self.targets)
        for rank in range(min(self.first, order.shape[1]), order.shape[1]):
            for restart in range(self.restarts):
                rows = search.unbroken
                if len(rows) == 0:
                    return
                goal = ClassificationGoal(search.labels.y[rows], order[rows, rank])
                ascent(search, rows, goal, generator.select(rows).fold("target", rank, restart))


@dataclass(frozen=True)
class _Run:
    """One run from one start on some rows."""

    steps: int
    objective: Objective
    start: APGDStart
    odi_steps: int
    large_epsilon: bool
    early_stop: bool
    estimator: GradientEstimator | None

    def __call__(self, search: Search, rows: Rows, goal: Goal, draws: KeyedGenerator) -> None:
        """Search for adversarial examples of some rows; `goal` is that of the objective."""
        allowed, starts = search.threat_set.select(rows), draws.fold("start")
        theta = allowed.boundary_start(starts) if isinstance(allowed, LpBall) else allowed.random_start(starts)
        if self.start == "odi":
            theta = random_direction_ascent(search, rows, theta, draws.fold("odi"), self.odi_steps)
        if isinstance(allowed, L1Ball):
            ascend_l1(
                search,
                rows,
                goal,
                theta,
                steps=self.steps,
                objective=self.objective,
                large_epsilon=self.large_epsilon,
                early_stop=self.early_stop,
                estimator=self.estimator,
                draws=draws,
            )
        else:
            self._ascend(search, rows, goal, theta, draws)

    def _ascend(self, search: Search, rows: Rows, goal: Goal, theta: Theta, draws: KeyedGenerator) -> None:
        allowed = search.threat_set.select(rows)
        found = search.value_and_grad(
            theta, rows, at_step(self.objective, 0, self.steps), goal=goal, estimator=self.estimator, draws=draws
        )
        state = _State.at_start(theta, found.gradient, found.value, 2 * allowed.radius)
        unbroken = found.going
        windows = dict(zip(checkpoints(self.steps), window_lengths(self.steps), strict=True))
        for step in range(self.steps):
            keep = unbroken if self.early_stop else ~search.invalid[rows]
            if not bool(keep.all()):
                rows, goal, draws = rows[keep], goal.select(keep), draws.select(keep)
                allowed = allowed.select(keep)
                if len(rows) == 0:
                    return
                state = state.select(keep)
            share = 1.0 if step == 0 else MOMENTUM
            ahead = allowed.step(state.theta, state.gradient, state.step_size)
            moved = state.theta + share * (ahead - state.theta) + (1 - share) * (state.theta - state.previous)
            theta = allowed.project(moved)
            objective = at_step(self.objective, step + 1, self.steps + 1)
            found = search.value_and_grad(
                theta, rows, objective, goal=goal, estimator=self.estimator, draws=draws.fold("step", step)
            )
            unbroken = found.going
            state = state.moved(theta, found.gradient, found.value)
            if step + 1 in windows:
                state = state.checked(windows[step + 1])


@dataclass(frozen=True)
class _State:
    """State of an ascent per example, `(M, ...)` or `(M,)`."""

    theta: Theta
    previous: Theta
    best: Theta
    gradient: Theta
    best_gradient: Theta
    value: Float[Tensor, " m"]
    best_value: Float[Tensor, " m"]
    step_size: Float[Tensor, " m"]
    rises: Float[Tensor, " m"]
    checked_value: Float[Tensor, " m"]
    just_halved: Bool[Tensor, " m"]

    @staticmethod
    def at_start(
        theta: Theta, gradient: Theta, value: Float[Tensor, " m"], step_size: Float[Tensor, " m"]
    ) -> "_State":
        """State before the first step."""
        none, yes = torch.zeros_like(value), torch.ones_like(value).bool()
        return _State(theta, theta, theta, gradient, gradient, value, value, step_size, none, value, yes)

    def select(self, index: Tensor) -> "_State":
        """The state of some of the examples."""
        return _State(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def moved(self, theta: Theta, gradient: Theta, value: Float[Tensor, " m"]) -> "_State":
        """State after a step to `theta`."""
        higher = value > self.best_value
        wide = per_example(higher, theta)
        return _State(
            theta,
            self.theta,
            torch.where(wide, theta, self.best),
            gradient,
            torch.where(wide, gradient, self.best_gradient),
            value,
            torch.where(higher, value, self.best_value),
            self.step_size,
            self.rises + (value > self.value),
            self.checked_value,
            self.just_halved,
        )

    def checked(self, window: int) -> "_State":
        """State after a window; after too little progress, the best point with half the step size."""
        halved = (self.rises <= INCREASES * window) | (~self.just_halved & (self.best_value <= self.checked_value))
        wide = per_example(halved, self.theta)
        return _State(
            torch.where(wide, self.best, self.theta),
            self.previous,
            self.best,
            torch.where(wide, self.best_gradient, self.gradient),
            self.best_gradient,
            self.value,
            self.best_value,
            torch.where(halved, self.step_size / 2, self.step_size),
            torch.zeros_like(self.rises),
            self.best_value,
            halved,
        )


def window_lengths(steps: int) -> list[int]:
    """Lengths of the windows that end at `checkpoints`: 22 % of the steps, each time 3 % less, at least 6 %."""
    lengths: list[int] = []
    window, shortest, shorter = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    while sum(lengths) + window <= steps:
        lengths.append(window)
        window = max(window - shorter, shortest)
    return lengths


def checkpoints(steps: int) -> list[int]:
    """Steps after which the step size is checked: 22, 41, 57, 70, 80, 87, 93, 99 of 100."""
    ends, total = [], 0
    for length in window_lengths(steps):
        total += length
        ends.append(total)
    return ends


def _targets_of(search: Search, ranking: Ranking, count: int) -> Int64[Tensor, "n t"]:
    """Target classes, one column per rank."""
    if search.labels.target is not None:
        return search.labels.target[:, None]
    return ranked_targets(search, ranking, count)


def _check(steps: int, restarts: int, odi_steps: int, start: str) -> None:
    if steps < 0 or restarts < 1 or odi_steps < 1:
        raise AttackError(
            f"steps must be at least 0, restarts and odi_steps at least 1, got {steps}, {restarts}, {odi_steps}"
        )
    if start not in ("sphere", "odi"):
        raise AttackError(f"start must be 'sphere' or 'odi', got {start!r}")
