"""Contract check of objectives."""

import torch
from torch import nn

from robustly.objectives import ClassificationGoal, Objective
from robustly.randomness import KeyedGenerator
from robustly.testing.networks import require


def check_objective(objective: Objective, *, classes: int = 5, reference: bool = False) -> None:
    """Check the contract of an objective: per example, differentiable, larger closer to success.

    Args:
        objective: the objective.
        classes: number of classes of the test.
        reference: True if it requires reference logits.

    Raises:
        AssertionError: the first property that does not hold.
    """
    draws = KeyedGenerator(3, torch.arange(9))
    logits = draws.normal(classes).double().requires_grad_()
    y = draws.fold("labels").integers(classes, 1)[:, 0]
    goal = ClassificationGoal(y, reference=draws.fold("reference").normal(classes).double() if reference else None)
    value = objective(logits, goal)
    require(value.shape == (9,), f"an objective must return one number per example, got shape {tuple(value.shape)}")
    require(value.isfinite().all(), "the objective is not finite on ordinary logits")
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    require(gradient.isfinite().all() and gradient.abs().sum() > 0, "the objective has no usable gradient")
    rows = torch.tensor([4, 1])
    part = objective(logits.detach()[rows], goal.select(rows))
    require(torch.allclose(part, value.detach()[rows]), "the objective depends on the other examples of the batch")
    if not reference:
        with torch.no_grad():
            lowered = logits - 3 * nn.functional.one_hot(y, classes)
            require(
                (objective(lowered, goal) >= value).all(),
                "lowering the logit of the true class lowers the objective",
            )
