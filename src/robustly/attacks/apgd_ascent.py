"""Ascent with momentum and an adaptive step size: the loop of APGD (Croce and Hein, ICML 2020, algorithm 1)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.attacks.apgd_l1 import ascend_l1
from robustly.attacks.core.ascent import random_direction_ascent
from robustly.attacks.core.gradient_estimators import GradientEstimator
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal, Objective, at_step
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import L1Ball, LpBall
from robustly.threats.contract import Theta, per_example

APGDStart = Literal["sphere", "odi"]
INCREASES = 0.75  # rho: a window with a smaller share of increasing steps halves the step size
MOMENTUM = 0.75  # alpha: share of the new step; the rest repeats the last move


@dataclass(frozen=True)
class AdaptiveAscent:
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
            keep = (unbroken if self.early_stop else ~search.invalid[rows]).nonzero()[:, 0]
            if len(keep) < len(rows):  # positions: a mask would wait for the device in each selection
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
