"""The goal and the objective of costly confusions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustly.attacks import APGD, PGD, AttackError
from robustly.objectives import ClassificationGoal, CostGoal, Goal, cost_weighted, margin
from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat

COSTS = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
GOAL = CostGoal(torch.tensor([0, 1]), COSTS)


def test_only_costly_classes_are_reached() -> None:
    assert isinstance(GOAL, Goal)
    for predicted, reached in ((0, [False, False]), (1, [True, False]), (2, [False, True])):
        output = torch.nn.functional.one_hot(torch.tensor([predicted, predicted]), 3).double()
        assert GOAL.reached(output).tolist() == reached


def test_margin_and_objective_by_hand() -> None:
    output = torch.tensor([[3.0, 1.0, 9.0], [9.0, 4.0, 5.0]], dtype=torch.float64)
    assert GOAL.margin(output).tolist() == [-2.0, 1.0]
    assert cost_weighted(output, GOAL).tolist() == pytest.approx([math.log(2) - 2, 1.0])


@settings(max_examples=25)
@given(seed=st.integers(0, 2**30), scale=st.floats(1e-3, 1e3))
def test_equal_costs_are_ordinary_misclassification_and_scale_is_a_constant(seed: int, scale: float) -> None:
    draws = KeyedGenerator(seed, torch.arange(8))
    logits, y = 3 * draws.normal(5).double(), draws.fold("y").integers(5, 1)[:, 0]
    goal = CostGoal(y, (1.0 - torch.eye(5, dtype=torch.float64))[y])
    assert torch.equal(goal.reached(logits), ClassificationGoal(y).reached(logits))
    assert torch.equal(goal.margin(logits), margin(logits, ClassificationGoal(y)))
    # sum_j exp(z_j - z_y) is the odds against the label
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(cost_weighted(logits, goal), ((1 - p) / p).log())
    scaled = CostGoal(y, scale * goal.costs)
    assert torch.allclose(cost_weighted(logits, scaled), cost_weighted(logits, goal) + math.log(scale))


def test_wrong_shapes_and_examples_without_costs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"costs have the shape \(2, 3\), the logits \(2, 4\)"):
        GOAL.check(torch.zeros(2, 4))
    free = CostGoal(GOAL.y, COSTS * torch.tensor([[1.0], [0.0]]))
    with pytest.raises(ValueError, match="leave these examples out"):
        free.check(torch.zeros(2, 3))
    threat, draws = parse_threat("linf:0.1"), KeyedGenerator(0, torch.arange(2))
    with pytest.raises(AttackError, match="leave these examples out"):
        PGD(steps=1)(nn.Flatten(), torch.rand(2, 3), free, threat=threat, generator=draws)


@pytest.mark.parametrize(
    "attack", [PGD(steps=20, objective=cost_weighted), APGD(steps=20, objective=cost_weighted)]
)
def test_an_untargeted_attack_finds_the_costly_class_past_a_nearer_one(attack: PGD | APGD) -> None:
    """The images are the logits: class 2 is nearer than class 1 and free; class 1 costs, and is in reach or not."""
    x, y = torch.tensor([[0.5, 0.35, 0.45], [0.5, 0.2, 0.45]]), torch.tensor([0, 0])
    goal = CostGoal(y, torch.tensor([[0.0, 3.0, 0.0]]).expand(2, 3))
    found = attack(
        nn.Flatten(), x, goal, threat=parse_threat("linf:0.1"), generator=KeyedGenerator(0, torch.arange(2))
    )
    assert found.broken.tolist() == [True, False]
    assert found.x_adv[0].argmax() == 1
