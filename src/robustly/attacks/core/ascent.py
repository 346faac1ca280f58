"""Gradient ascent on an objective over any threat set: one loop with an update rule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustly.attacks.core.gradient_estimators import GradientEstimator
from robustly.attacks.core.search import Evaluated, Penalty, PointValue, Search, Settled
from robustly.attacks.core.search_state import Rows
from robustly.attacks.core.update_rules import Iterate, Steepest, UpdateRule, select_state
from robustly.objectives import Goal, Objective, at_step
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import PerExample, Theta, ThreatSet

STEEPEST = Steepest()
StepSize = Callable[[int, ThreatSet], PerExample]


def constant_step_size(length: float | None, steps: int) -> StepSize:
    """The same step size throughout: a length in units of the images, or the radius over the number of steps."""

    def step_size(_: int, threat_set: ThreatSet) -> PerExample:
        radius = threat_set.radius
        return radius / steps if length is None else torch.full_like(radius, length)

    return step_size


@dataclass(frozen=True)
class Ascent:
    """Gradient ascent from a given start.

    Args:
        steps: gradient steps, at least 0.
        objective: function to maximise; it may change from step to step.
        step_size: size of a step `(M,)`, from its number and the allowed parameters.
        rule: the update rule.
        early_stop: True removes an example as soon as it is broken.
        finish: "evaluate" also evaluates the last iterate, with one more forward pass; "keep" returns the last
            iterate without evaluating it.
        estimator: computes gradients in place of the backward pass.
        value_at: an objective that depends on the inputs too, in place of `objective`.
        penalty: a cost of the parameters that the steps also lower; see `Search.value_and_grad`.
        settled: examples that stop where they are, tested before every step (early stopping in training).
    """

    steps: int
    objective: Objective
    step_size: StepSize
    rule: UpdateRule = STEEPEST
    early_stop: bool = True
    finish: Literal["evaluate", "keep"] = "evaluate"
    estimator: GradientEstimator | None = None
    value_at: PointValue | None = None
    penalty: Penalty | None = None
    settled: Settled | None = None

    def run(self, search: Search, rows: Rows, theta: Theta, goal: Goal, draws: KeyedGenerator) -> None:
        """Move some examples; the best points are kept in `search`.

        Args:
            search: evaluates and records the points.
            rows: examples `(M,)`.
            theta: their starts, `(M, ...)`.
            goal: the goal of their objective.
            draws: their random numbers.
        """
        threat_set, state = search.set_of(rows), self.rule.init(theta)
        removes = self._removes(search)
        search.keeps_invalid = search.verdicts and not removes
        for step in range(self.steps + 1):
            if step == self.steps:
                self._finish(search, rows, theta, goal)
                return
            found = self._evaluate(search, rows, theta, goal, draws, step)
            gradient = found.gradient
            if removes:
                going = found.going if self.early_stop else ~search.invalid[rows]
                keep = going.nonzero()[:, 0]  # positions: a mask would wait for the device in each selection
                if len(keep) < len(rows):
                    if self.finish == "keep":
                        search.theta[rows[~going]] = theta[~going].to(search.theta.dtype)
                    rows, theta, gradient = rows[keep], theta[keep], gradient[keep]
                    state = select_state(state, keep)
                    goal, threat_set, draws = goal.select(keep), threat_set.select(keep), draws.select(keep)
                if len(rows) == 0:
                    return
            here = self._iterate(search, rows, theta, gradient, threat_set, goal, draws, step)
            theta, state = self.rule.update(state, here)

    def _removes(self, search: Search) -> bool:
        """Return True if examples may leave the ascent, which to find out waits for the device."""
        if self.early_stop or self.settled is not None:
            return True
        return search.verdicts and not (search.masked and self.finish == "evaluate")  # only invalid ones

    def _evaluate(
        self, search: Search, rows: Rows, theta: Theta, goal: Goal, draws: KeyedGenerator, step: int
    ) -> Evaluated:
        return search.value_and_grad(
            theta,
            rows,
            self._objective_at(step),
            goal=goal,
            estimator=self.estimator,
            draws=draws.fold("estimate", step) if self.estimator is not None else None,
            value_at=self.value_at,
            penalty=self.penalty,
            settled=self.settled,
        )

    def _iterate(
        self,
        search: Search,
        rows: Rows,
        theta: Theta,
        gradient: Theta,
        threat_set: ThreatSet,
        goal: Goal,
        draws: KeyedGenerator,
        step: int,
    ) -> Iterate:
        def gradient_at(points: Theta) -> Theta:
            return search.sample_gradient(points, rows, self._objective_at(step), goal)

        sizes = self.step_size(step, threat_set)
        return Iterate(step, theta, gradient, threat_set, sizes, draws, gradient_at)

    def _finish(self, search: Search, rows: Rows, theta: Theta, goal: Goal) -> None:
        if self.finish == "keep":
            search.put(search.theta, rows, theta)
        else:
            search.value_and_grad(theta, rows, self._objective_at(self.steps), goal=goal, gradient=False)

    def _objective_at(self, step: int) -> Objective:
        """Objective of a step; the last iterate has that of the last step."""
        return at_step(self.objective, min(step, self.steps - 1), self.steps)


def random_direction_ascent(search: Search, rows: Rows, theta: Theta, draws: KeyedGenerator, steps: int) -> Theta:
    """Output-diversified initialisation: ascent with steps of the radius on w . z(x), w uniform in (-1, 1)^K.

    Such starts differ in the model's outputs, not only in their pixels (Tashiro, Song and Ermon, "Diversity can be
    transferred", NeurIPS 2020; with seven steps the "ADI" of Liu et al., CVPR 2022).

    Args:
        search: evaluates and records the points on the way.
        rows: examples `(M,)`.
        theta: their parameters, `(M, ...)`.
        draws: their random numbers.
        steps: each one forward and one backward pass.
    """
    weights = draws.fold("weights").uniform(search.clean.shape[1]).to(theta) * 2 - 1
    threat_set = search.set_of(rows)

    def diversity(logits: Tensor, goal: Goal) -> Tensor:
        return (weights.to(logits) * logits).sum(1)

    for _ in range(steps):
        found = search.value_and_grad(theta, rows, diversity, rank=False)
        theta = threat_set.step(theta, found.gradient, threat_set.radius)
    return theta
