"""Gradient ascent whose examples may settle one by one: what training attacks beside plain PGD are made of."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.attacks import PGD, AttackResult
from robustly.attacks.core.contract import Images, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.objectives import ClassificationGoal, at_step
from robustly.threats.balls import laid_out_like
from robustly.training.step import Step

Rows = Int64[Tensor, " m"]
Logits = Float[Tensor, "m k"]
Value = Callable[[Images, Logits, ClassificationGoal], Float[Tensor, " m"]]
Settled = Callable[[Rows, Images, Logits, ClassificationGoal], Bool[Tensor, " m"]]


def ascend(
    step: Step,
    settings: PGD,
    goal: ClassificationGoal,
    *,
    value: Value | None = None,
    settled: Settled | None = None,
    noise: float = 0.0,
) -> AttackResult:
    """Projected gradient ascent on the batch of a step; every example's last iterate is returned.

    Args:
        step: the step.
        settings: steps, step size, start, mode and (without `value`) objective.
        goal: the adversary's, for all N examples.
        value: what is maximised at M points, from the points, the model's logits there and their goals.
        settled: which of some rows, by their iterate and its logits, stay where they are from now on; asked once
            per step, before it.
        noise: standard deviation of Gaussian noise that every step adds before it projects.

    Returns:
        The points, with the passes that each example took part in, and the iterates that were classified correctly
        (kappa of GAIRAT).
    """
    x, model = step.x, step.model
    ball = step.threat.around(x)
    draws = step.generator.fold("inner").fold("restart", 0)
    x_adv, sizes = settings.started(ball, draws), settings.step_sizes(ball)
    if settled is not None:
        x_adv = ball.project(x_adv)  # an example may settle where it starts, which no step then projects
    rows = torch.arange(len(x), device=x.device)
    forwards = torch.zeros_like(step.y)
    backwards, correct = forwards.clone(), forwards.clone()
    with frozen(model, settings.mode, full_precision=False):
        for count in range(settings.steps):
            point = x_adv[rows].detach().requires_grad_()
            here = goal.select(rows)
            logits = logits_of(model, point)
            forwards[rows] += 1
            correct[rows] += (~here.reached(logits.detach())).long()
            going = None if settled is None else ~settled(rows, point.detach(), logits.detach(), here)
            if going is not None and not bool(going.any()):
                break
            maximised = (
                at_step(settings.objective, count, settings.steps)(logits, here)
                if value is None
                else value(point, logits, here)
            )
            (gradient,) = torch.autograd.grad((maximised if going is None else maximised[going]).sum(), point)
            backwards[rows] += 1
            if going is not None:
                rows, gradient = rows[going], gradient[going]
            current, near = x_adv[rows], ball.select(rows)
            if noise > 0:
                current = current + noise * draws.select(rows).fold("noise", count).normal(*x.shape[1:]).to(x)
            x_adv = x_adv.index_copy(0, rows, near.step(current, gradient, sizes[rows]).to(x_adv.dtype))
    none = torch.zeros_like(forwards, dtype=torch.bool)
    distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    found = laid_out_like(x, x_adv)
    return AttackResult(found, none, distance, forwards, backwards, correct, none.clone())
