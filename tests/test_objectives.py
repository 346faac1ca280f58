"""Objectives: what they are blind to, their signs, their slopes, and their words when they cannot be taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustly.objectives import (
    OBJECTIVES,
    ClassificationGoal,
    Objective,
    cross_entropy,
    difference_of_logits_ratio,
    kl_divergence,
    margin,
    scaled_cross_entropy,
)
from robustly.randomness import KeyedGenerator

seeds = st.integers(0, 2**30)


def problem(
    seed: int, classes: int = 6, targeted: bool = False, count: int = 8
) -> tuple[Tensor, ClassificationGoal]:
    draws = KeyedGenerator(seed, torch.arange(count))
    logits = 3 * draws.normal(classes).double()
    y = draws.fold("y").integers(classes, 1)[:, 0]
    other = (y + 1 + draws.fold("target").integers(classes - 1, 1)[:, 0]) % classes
    return logits, ClassificationGoal(
        y, other if targeted else None, draws.fold("reference").normal(classes).double()
    )


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@settings(max_examples=20)
@given(seed=seeds, shift=st.floats(-50, 50))
def test_adding_the_same_to_every_logit_changes_nothing(
    objective: Objective, targeted: bool, seed: int, shift: float
) -> None:
    logits, goal = problem(seed, targeted=targeted)
    assert torch.allclose(objective(logits + shift, goal), objective(logits, goal), atol=1e-9)


@pytest.mark.parametrize("targeted", [False, True])
@settings(max_examples=20)
@given(seed=seeds, scale=st.floats(0.01, 1e4))
def test_dlr_alone_ignores_the_scale(targeted: bool, seed: int, scale: float) -> None:
    logits, goal = problem(seed, targeted=targeted)
    dlr = OBJECTIVES["dlr"]
    assert torch.allclose(dlr(scale * logits, goal), dlr(logits, goal), atol=1e-6)
    assert torch.allclose(margin(scale * logits, goal), scale * margin(logits, goal))


@pytest.mark.parametrize("name", ["margin", "dlr", "probability_margin"])
@pytest.mark.parametrize("targeted", [False, True])
@settings(max_examples=20)
@given(seed=seeds)
def test_margins_are_positive_exactly_where_the_adversary_wins(name: str, targeted: bool, seed: int) -> None:
    """Targeted: the target only has to pass the true class, so the sign is necessary, not sufficient."""
    logits, goal = problem(seed, targeted=targeted)
    positive = OBJECTIVES[name](logits, goal) > 0
    if targeted:
        assert positive[goal.reached(logits)].all()
    else:
        assert torch.equal(positive, goal.reached(logits))


@settings(max_examples=20)
@given(seed=seeds)
def test_ranges(seed: int) -> None:
    logits, goal = problem(seed)
    correct = logits.argmax(1) == goal.y
    assert (OBJECTIVES["probability_margin"](logits, goal).abs() < 1).all()
    assert (OBJECTIVES["cross_entropy"](logits, goal) > 0).all()
    assert (OBJECTIVES["dlr"](logits, goal)[correct] >= -1).all()
    assert (OBJECTIVES["kl"](logits, goal) > 0).all()
    assert goal.reference is not None
    assert (kl_divergence(goal.reference, goal).abs() < 1e-12).all()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "scaled_cross_entropy"])
def test_slopes_agree_with_finite_differences(name: str, targeted: bool) -> None:
    objective = OBJECTIVES[name]
    logits, goal = problem(4, targeted=targeted)
    assert torch.autograd.gradcheck(lambda z: objective(z, goal), logits.requires_grad_())


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "probability_margin"])
def test_a_target_pulls_towards_itself_and_away_from_the_label(name: str) -> None:
    logits, goal = problem(1, targeted=True)
    assert goal.target is not None
    point = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(OBJECTIVES[name](point, goal).sum(), point)
    assert (gradient.gather(1, goal.target[:, None]) > 0).all()
    gradient.scatter_(1, goal.target[:, None], 0.0)
    assert (gradient.gather(1, goal.y[:, None]) < 0).all()
    if name != "probability_margin":  # whose slope is one between two classes, weighed by all
        assert (gradient <= 0).all()


def test_targeted_divergence_approaches_the_reference() -> None:
    logits, goal = problem(2, targeted=True)
    assert torch.equal(
        kl_divergence(logits, goal), -kl_divergence(logits, ClassificationGoal(goal.y, reference=goal.reference))
    )


@pytest.mark.parametrize(("classes", "targeted"), [(2, False), (2, True), (3, True)])
def test_dlr_is_the_margin_where_there_are_too_few_classes_for_it(classes: int, targeted: bool) -> None:
    logits, goal = problem(0, classes, targeted)
    assert torch.equal(difference_of_logits_ratio(logits, goal), margin(logits, goal))


def test_divergence_asks_for_its_reference() -> None:
    logits, goal = problem(0)
    with pytest.raises(ValueError, match="reference=logits"):
        kl_divergence(logits, ClassificationGoal(goal.y))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("gap", [0.0, 200.0, 1e6])
def test_extreme_and_tied_logits_stay_finite_in_float32(objective: Objective, gap: float) -> None:
    logits = torch.tensor([[gap, 0.0, 0.0, 0.0], [0.0, gap, 0.0, 0.0]])
    goal = ClassificationGoal(torch.zeros(2, dtype=torch.int64), reference=torch.zeros(2, 4))
    assert objective(logits, goal).isfinite().all()


def test_a_goal_is_reached_by_the_prediction_and_ties_go_to_the_lowest_class() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    y = torch.tensor([0, 0, 2])
    assert ClassificationGoal(y).reached(logits).tolist() == [False, True, False]
    assert ClassificationGoal(y, target=torch.tensor([1, 1, 0])).reached(logits).tolist() == [False, True, False]


def test_goals_of_some_examples() -> None:
    logits, goal = problem(3, targeted=True)
    mask = torch.tensor([True, False] * 4)
    by_mask, by_rows = goal.select(mask), goal.select(mask.nonzero()[:, 0])
    for part in (by_mask, by_rows):
        assert part.target is not None
        assert goal.target is not None
        assert part.reference is not None
        assert goal.reference is not None
        assert torch.equal(part.y, goal.y[::2])
        assert torch.equal(part.target, goal.target[::2])
        assert torch.equal(part.reference, goal.reference[::2])
    bare = ClassificationGoal(goal.y).select(mask)
    assert bare.target is None
    assert bare.reference is None
    assert torch.equal(margin(logits[mask], by_mask), margin(logits, goal)[mask])


def test_scaled_cross_entropy_has_a_slope_where_cross_entropy_has_none() -> None:
    logits = torch.tensor([[0.0, -8000.0, -9000.0]], requires_grad=True)
    goal = ClassificationGoal(torch.tensor([0]))
    (flat,) = torch.autograd.grad(cross_entropy(logits, goal).sum(), logits)
    (steep,) = torch.autograd.grad(scaled_cross_entropy(logits, goal).sum(), logits)
    assert (flat == 0).all()
    assert (steep != 0).any()


def test_scaled_cross_entropy_of_the_reference_point() -> None:
    logits = torch.tensor([[0.0, -0.8, -0.9, -0.606]], dtype=torch.float64)
    assert abs(float(scaled_cross_entropy(logits, ClassificationGoal(torch.tensor([0])))) - 0.621355) < 1e-6
