"""Least values of linear functions over balls inside boxes."""

import math

import pytest
import torch

from robustly.certification.operations import Rows
from robustly.certification.sets import Ball, InputSet
from robustly.threats import ThreatModel


def row(*coefficients: float) -> Rows:
    return Rows(torch.tensor([[coefficients]], dtype=torch.float64))


def ball_in_box(norm: str, radius: float, low: list[float], high: list[float]) -> InputSet:
    center = torch.zeros(1, len(low), dtype=torch.float64)
    ball = Ball(norm, center, torch.tensor([radius], dtype=torch.float64))
    return InputSet(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64), ball)


@pytest.mark.parametrize(
    ("low", "high", "least"),
    [
        ([-0.2, -0.2], [1.0, 1.0], -1.4),
        ([-0.6, -1.0], [1.0, 1.0], -5.0),
        ([-0.2, -1.0], [1.0, 1.0], -0.6 - 4 * math.sqrt(0.96)),
    ],
)
def test_l2_ball_in_box_is_exact(low, high, least):
    found = ball_in_box("l2", 1.0, low, high).least(row(3.0, 4.0), exact=True)
    assert found.item() == pytest.approx(least, abs=1e-9)
    assert found.item() <= least + 1e-12


def test_l2_without_exactness_is_the_better_of_ball_and_box():
    assert ball_in_box("l2", 1.0, [-0.2, -1.0], [1.0, 1.0]).least(row(3.0, 4.0)).item() == pytest.approx(-4.6)


def test_l1_spends_the_budget_on_the_largest_slopes():
    # 0.2 on the slope 4, the rest of 0.5 on the slope 3
    found = ball_in_box("l1", 0.5, [-1.0, -0.2], [1.0, 1.0]).least(row(3.0, 4.0), exact=True)
    assert found.item() == pytest.approx(-0.8 - 0.9, abs=1e-12)


def test_l0_changes_the_best_pixel():
    found = ball_in_box("l0", 1.0, [-1.0, -0.2], [1.0, 1.0]).least(row(3.0, 4.0))
    assert found.item() == pytest.approx(-3.0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_exact_least_value_against_samples(norm):
    draws = torch.Generator().manual_seed(3)
    for _ in range(20):
        slopes = torch.randn(1, 1, 5, generator=draws, dtype=torch.float64)
        low, high = -torch.rand(5, generator=draws), torch.rand(5, generator=draws)
        sets = ball_in_box(norm, 0.7, low.tolist(), high.tolist())
        exact = sets.least(Rows(slopes), exact=True).item()
        rough = sets.least(Rows(slopes)).item()
        points = torch.randn(4000, 5, generator=draws, dtype=torch.float64)
        size = points.norm(dim=1) if norm == "l2" else points.abs().sum(1)
        points = (0.7 * points / size[:, None]).clamp(low.double(), high.double())
        points = torch.cat([points, greedy(slopes[0, 0], low.double(), high.double(), 0.7)[None]])
        reached = (points @ slopes[0, 0]).min().item()
        assert rough <= exact + 1e-12
        assert exact <= reached + 1e-9
        assert reached - exact < (0.5 if norm == "l2" else 1e-9)


def greedy(slopes, low, high, budget):
    """The point that spends an l1 budget on the steepest slopes first."""
    point = torch.zeros_like(slopes)
    for index in slopes.abs().argsort(descending=True).tolist():
        room = -low[index] if slopes[index] > 0 else high[index]
        step = min(budget, float(room))
        point[index] = -step if slopes[index] > 0 else step
        budget -= step
    return point


def test_set_of_a_threat_lies_in_the_box_and_holds_the_ball():
    x = torch.tensor([[[[0.0, 0.05], [0.5, 1.0]]]])
    sets = InputSet.of(ThreatModel("linf", 0.1), x, torch.float64)
    assert sets.lower.flatten().tolist() == pytest.approx([0.0, 0.0, 0.4, 0.9])
    assert sets.upper.flatten().tolist() == pytest.approx([0.1, 0.15, 0.6, 1.0])
    assert bool((sets.lower[0, 0, 1] <= x[0, 0, 1].double() - 0.1).all())


def test_masked_pixels_do_not_move():
    mask = torch.tensor([[True, False], [False, True]])
    sets = InputSet.of(ThreatModel("l2", 0.1, mask=mask), torch.full((1, 1, 2, 2), 0.5))
    assert sets.lower.flatten()[1:3].tolist() == [0.5, 0.5]
    found = sets.least(Rows(torch.ones(1, 1, 1, 2, 2)))
    assert found.item() == pytest.approx(2.0 - 0.1 * math.sqrt(2), abs=1e-5)
