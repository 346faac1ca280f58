"""Auto-PGD's sparse ascent in the l1 ball (Croce and Hein, "Mind the box", ICML 2021)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.attacks.core.contract import Images
from robustly.attacks.core.gradient_estimators import GradientEstimator
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal, Objective, at_step
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import LpBall
from robustly.threats.contract import per_example

DENSITY = 0.2  # share of the coordinates that the first steps move
SHRINK = 1.5  # a step moves this many times fewer coordinates than the best point has changed
SPARSER = 0.95  # if the best point has fewer changes than this share of before, restart there with full steps
SHORTEST = 0.1  # least step, as a share of the radius
STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius and share of the steps, of the large-epsilon schedule


def ascend_l1(
    search: Search,
    rows: Rows,
    goal: Goal,
    x_adv: Images,
    *,
    steps: int,
    objective: Objective,
    large_epsilon: bool,
    early_stop: bool,
    estimator: GradientEstimator | None,
    draws: KeyedGenerator,
) -> None:
    """Ascent from `x_adv`; each step moves the coordinates with the largest gradients.

    Every 4 % of the steps the number of coordinates is set from the number of changes of the best point. If these
    became sparser, the search restarts from the best point with steps of length epsilon; otherwise the step size
    shrinks.

    Args:
        search: evaluates and records the points.
        rows: examples `(M,)`.
        goal: goal of their objective.
        x_adv: their starts, `(M, ...)`.
        steps: ascent steps in all.
        objective: function to maximise.
        large_epsilon: True searches in 3 and 2 times the ball first, each time from the best point before.
        early_stop: True removes examples as soon as they are broken.
        estimator: computes gradients in place of the backward pass.
        draws: random numbers of the examples.
    """
    stages = STAGES if large_epsilon else ((1.0, 1.0),)
    left = steps
    for stage, (factor, share) in enumerate(stages):
        unbroken = ~search.invalid[rows]
        if early_stop:
            unbroken &= ~search.broken[rows]
        rows, goal, x_adv, draws = rows[unbroken], goal.select(unbroken), x_adv[unbroken], draws.select(unbroken)
        if len(rows) == 0:
            return
        is_last = stage == len(stages) - 1
        length = left if is_last else int(share * steps)
        left -= length
        narrow = search.ball.select(rows)
        ball = narrow.resized(factor * narrow.radius)
        rows, goal, draws, x_adv = _stage(
            search,
            rows,
            goal,
            ball,
            ball.project(x_adv),
            steps=length,
            objective=objective,
            early_stop=early_stop,
            estimator=estimator,
            draws=draws.fold("stage", stage),
            warm=large_epsilon,
            inside=is_last,
        )


def _stage(
    search: Search,
    rows: Rows,
    goal: Goal,
    ball: LpBall,
    x_adv: Images,
    *,
    steps: int,
    objective: Objective,
    early_stop: bool,
    estimator: GradientEstimator | None,
    draws: KeyedGenerator,
    warm: bool,
    inside: bool,
) -> tuple[Int64[Tensor, " left"], Goal, KeyedGenerator, Float[Tensor, "left ..."]]:
    """Ascent at one radius; returns the remaining examples, and the best point of each."""
    size = ball.x[0].numel()
    found = search.value_and_grad(
        x_adv, rows, at_step(objective, 0, steps), goal=goal, estimator=estimator, draws=draws, inside=inside
    )
    gradient, best, best_gradient, best_value = found.gradient, x_adv, found.gradient, found.value
    unbroken, step_size, window = found.going, ball.radius.clone(), max(int(0.04 * steps), 1)
    changed = _changes(x_adv, ball) if warm else torch.full_like(best_value, size)
    density = changed / size / SHRINK if warm else torch.full_like(best_value, DENSITY)
    for step in range(steps):
        keep = unbroken if early_stop else ~search.invalid[rows]
        if not bool(keep.all()):
            rows, goal, ball, draws = rows[keep], goal.select(keep), ball.select(keep), draws.select(keep)
            if len(rows) == 0:
                return rows, goal, draws, best[keep]
            x_adv, gradient, best, best_gradient = x_adv[keep], gradient[keep], best[keep], best_gradient[keep]
            best_value, changed, density, step_size = (
                best_value[keep], changed[keep], density[keep], step_size[keep],
            )  # fmt: skip
        x_adv = ball.project(x_adv + per_example(step_size, x_adv) * sparse_direction(gradient, density))
        found = search.value_and_grad(
            x_adv,
            rows,
            at_step(objective, step + 1, steps + 1),
            goal=goal,
            estimator=estimator,
            draws=draws.fold("step", step),
            inside=inside,
        )
        gradient, unbroken = found.gradient, found.going
        higher = found.value > best_value
        wide = per_example(higher, x_adv)
        best, best_gradient = torch.where(wide, x_adv, best), torch.where(wide, gradient, best_gradient)
        best_value = torch.where(higher, found.value, best_value)
        if (step + 1) % window == 0:
            now = _changes(best, ball)
            density = now / size / SHRINK
            sparser = now < SPARSER * changed
            shorter = (step_size / SHRINK).clamp_min(SHORTEST * ball.radius)
            step_size = torch.where(sparser, ball.radius, shorter)
            wide = per_example(sparser, x_adv)
            x_adv, gradient = torch.where(wide, best, x_adv), torch.where(wide, best_gradient, gradient)
            changed = now
    return rows, goal, draws, best


def sparse_direction(gradient: Images, density: Float[Tensor, " m"]) -> Images:
    """Signs of the largest gradients, a share `density` of each example (at least one), divided by their number."""
    flat = gradient.flatten(1)
    size = flat.abs()
    place = ((1 - density.clamp(0, 1)) * size.shape[1]).long().clamp(0, size.shape[1] - 1)
    threshold = size.sort(dim=1).values.gather(1, place[:, None])
    signs = flat.sign() * (size >= threshold)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1.0)).view_as(gradient)


def _changes(x_adv: Images, ball: LpBall) -> Float[Tensor, " m"]:
    """Number of changed values."""
    return (x_adv != ball.x).flatten(1).sum(1).to(x_adv.dtype)
