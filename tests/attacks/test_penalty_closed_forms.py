"""C&W, EAD, sigma-zero and JSMA on linear models whose radii are known."""

import pytest
import torch
from torch import nn

from robustly.attacks import Attack
from robustly.attacks.carlini_wagner import CarliniWagner
from robustly.attacks.core.penalty import PenaltyWeight
from robustly.attacks.ead import EAD
from robustly.attacks.jsma import JSMA
from robustly.attacks.sigma_zero import SigmaZero
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

R1 = ([[0.0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0]], [0, -4.8, -3.9, -3.606], [0.5] * 4)
R2 = ([[4.0, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], [-1.1, 0, -10, -20], [0.05, 0.5, 0.5])
R3 = ([[2, 1.5, 1, 0.5], [-2, -1.5, -1, -0.5], [0, 0, 0, 0], [0, 0, 0, 0]], [-0.4, 0.4, -50, -60], [0.5] * 4)
Case = tuple[list[list[float]], list[float], list[float]]


def distance(attack: Attack, case: Case, norm: str, target: int | None = None) -> float:
    weight, bias, point = case
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(point), 4).double()).requires_grad_(False)
    net[1].weight.data, net[1].bias.data = torch.tensor(weight).double(), torch.tensor(bias).double()
    x, y = torch.tensor([point]).double(), torch.zeros(1, dtype=torch.int64)
    goal = ClassificationGoal(y, None if target is None else torch.full_like(y, target))
    threat = ThreatModel(norm, 4 if norm == "l0" else 2)
    found = attack(net, x, goal, threat=threat, generator=KeyedGenerator(0, torch.arange(1)))
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    return float(found.distance)


def test_the_weight_goes_up_tenfold_and_then_halves_its_interval() -> None:
    weight, seen = PenaltyWeight.starting_at(1e-3, torch.ones(1)), []
    for success in (False, False, True):
        weight = weight.after(torch.tensor([success]))
        seen.append(round(float(weight.c), 6))
    assert seen == [0.01, 0.1, 0.055]
    assert abs(float(weight.best_known().c) - 0.1) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "radius"), [(R1, 0.142836), (R2, 0.185742), (R3, 0.771825)], ids=["R1", "R2", "R3"]
)
def test_carlini_and_wagner_come_within_a_hundredth_of_the_l2_radius(case: Case, radius: float) -> None:
    assert radius * (1 - 1e-6) <= distance(CarliniWagner(), case, "l2") <= 1.01 * radius


@pytest.mark.slow
@pytest.mark.parametrize(("case", "radius"), [(R1, 0.202), (R2, 0.25), (R3, 1.35)], ids=["R1", "R2", "R3"])
def test_ead_comes_within_a_fiftieth_of_the_l1_radius_of_the_runner_up(case: Case, radius: float) -> None:
    assert radius * (1 - 1e-6) <= distance(EAD(steps=400), case, "l1") <= 1.02 * radius


@pytest.mark.slow
def test_ead_reaches_the_nearest_class_when_it_is_named() -> None:
    assert 0.15 <= distance(EAD(steps=400), R1, "l1", target=2) <= 0.1515


@pytest.mark.slow
def test_sigma_zero_counts_pixels_as_published() -> None:
    assert distance(SigmaZero(steps=300), R1, "l0") <= 2
    assert distance(SigmaZero(steps=300), R2, "l0") == 1
    assert distance(SigmaZero(steps=300), R3, "l0") == 3


def test_saliency_maps_take_four_features_in_pairs_and_three_one_by_one() -> None:
    assert distance(JSMA(theta=-1.0, gamma=1.0, pairs=True), R3, "l0", target=1) == 4
    assert distance(JSMA(theta=-1.0, gamma=1.0, pairs=False), R3, "l0", target=1) == 3
    assert distance(JSMA(theta=-1.0, gamma=0.5, pairs=False), R3, "l0", target=1) == float("inf")
