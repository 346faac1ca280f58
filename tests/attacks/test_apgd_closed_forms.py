"""APGD, its targeted form and MALT's order on models with known answers."""

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, PMA, Attack, TargetedAPGD
from robustly.attacks.apgd_ascent import checkpoints
from robustly.attacks.core.linearisation import linearised_distances, ranked_targets
from robustly.attacks.core.search import Search
from robustly.objectives import ClassificationGoal, difference_of_logits_ratio, margin, scaled_cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

WEIGHT = torch.tensor([[0.0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0]], dtype=torch.float64)
BIAS = torch.tensor([0, -4.8, -3.9, -3.606], dtype=torch.float64)
CENTRE = torch.full((100, 1, 2, 2), 0.5, dtype=torch.float64)


def linear(weight: Tensor, bias: Tensor, scale: float = 1.0) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0]).double())
    net[1].weight.data, net[1].bias.data = scale * weight, scale * bias
    return net.requires_grad_(False)


def share_broken(attack: Attack, net: nn.Module, threat: ThreatModel, x: Tensor = CENTRE) -> float:
    y = torch.zeros(len(x), dtype=torch.int64)
    found = attack(net, x, y, threat=threat, generator=KeyedGenerator(0, torch.arange(len(x))))
    return float(found.broken.double().mean())


R1 = linear(WEIGHT, BIAS)
LINF = ThreatModel("linf", 0.1005)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (20, [4, 7, 9, *range(10, 21)]),
        (25, [5, 9, 12, 14, *range(15, 26)]),
        (40, [8, 15, 21, 26, 30, 33, 35, 37, 39]),
        (50, [11, 21, 30, 38, 45]),
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
    ],
)
def test_checkpoints_are_those_published(steps: int, expected: list[int]) -> None:
    assert checkpoints(steps) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.0999), ("l2", 0.1427), ("l1", 0.1499)])
@pytest.mark.parametrize(
    "attack",
    [APGD(), APGD(objective=difference_of_logits_ratio), TargetedAPGD(targets=3), PMA(), APGD(large_epsilon=True)],
    ids=["ce", "dlr", "t", "pma", "large"],
)
def test_nothing_breaks_inside_the_certified_radius(attack: Attack, norm: str, epsilon: float) -> None:
    assert share_broken(attack, R1, ThreatModel(norm, epsilon), CENTRE[:20]) == 0


def test_cross_entropy_reaches_the_linf_corner() -> None:
    assert share_broken(APGD(), R1, LINF) == 1


def test_untargeted_dlr_is_torn_between_classes_as_published() -> None:
    assert 0.1 < share_broken(APGD(objective=difference_of_logits_ratio), R1, LINF) < 0.4  # reference: 0.23


def test_the_most_confident_class_is_not_the_nearest() -> None:
    assert share_broken(TargetedAPGD(targets=1), R1, LINF) < 0.05  # reference: 0.005
    assert share_broken(TargetedAPGD(targets=2), R1, LINF) == 1
    assert share_broken(TargetedAPGD(targets=1, ranking="malt"), R1, LINF) == 1


@pytest.mark.parametrize(
    ("norm", "order", "radii"),
    [
        ("linf", [1, 3, 2], [0.1, 0.101, 0.15]),
        ("l2", [3, 2, 1], [0.142836, 0.15, 0.2]),
        ("l1", [2, 3, 1], [0.15, 0.202, 0.4]),
    ],
)
def test_malt_ranks_by_the_radius_of_a_linear_model(norm: str, order: list[int], radii: list[float]) -> None:
    search = Search(R1, CENTRE[:2], ClassificationGoal(torch.zeros(2, dtype=torch.int64)), ThreatModel(norm, 0.1))
    search.begin()
    assert ranked_targets(search, "malt", 9).tolist() == [order, order]
    assert ranked_targets(search, "confidence", 2).tolist() == [[3, 1], [3, 1]]
    rows = torch.arange(2)
    measured = linearised_distances(search, rows, torch.tensor([order, order]))
    assert torch.allclose(measured, torch.tensor([radii, radii]).double(), atol=1e-5)


@pytest.mark.parametrize(("norm", "radius"), [("linf", 2 / 15), ("l2", 0.185742)])
def test_an_active_box_is_part_of_the_ball(norm: str, radius: float) -> None:
    weight = torch.zeros(4, 3, dtype=torch.float64)
    weight[0] = torch.tensor([4.0, 2, 1])
    net = linear(weight, torch.tensor([-1.1, 0, -10, -20], dtype=torch.float64))
    x = torch.tensor([[0.05, 0.5, 0.5]], dtype=torch.float64).expand(20, -1)
    assert share_broken(APGD(), net, ThreatModel(norm, 1.01 * radius), x) == 1
    assert share_broken(APGD(), net, ThreatModel(norm, 0.99 * radius), x) == 0


@pytest.mark.slow
def test_the_sparse_ascent_finds_the_l1_corner_with_restarts() -> None:
    assert share_broken(APGD(restarts=10, large_epsilon=True), R1, ThreatModel("l1", 0.1515)) == 1
    assert (
        share_broken(TargetedAPGD(targets=3, restarts=10, large_epsilon=True), R1, ThreatModel("l1", 0.1515)) == 1
    )
    assert share_broken(APGD(restarts=10, large_epsilon=True), R1, ThreatModel("l1", 0.1495)) == 0


def test_saturated_logits_blind_cross_entropy_but_not_what_is_scaled() -> None:
    saturated = linear(WEIGHT, BIAS, 1e4)
    threat = ThreatModel("linf", 0.11)
    assert share_broken(APGD(), saturated, threat) < 0.3
    assert share_broken(PMA(steps=20), saturated, threat) < 0.3
    assert share_broken(APGD(25, scaled_cross_entropy), saturated, threat) == 1
    assert share_broken(TargetedAPGD(targets=3), saturated, LINF) == 1


def test_dlr_is_blind_to_the_scale_of_the_logits() -> None:
    """The whole trajectory, not only the verdict."""
    far = ThreatModel("linf", 0.09)
    y = torch.zeros(20, dtype=torch.int64)
    attack = APGD(30, difference_of_logits_ratio)
    one, thousand = (
        attack(net, CENTRE[:20], y, threat=far, generator=KeyedGenerator(3, torch.arange(20)))
        for net in (R1, linear(WEIGHT, BIAS, 1000))
    )
    assert torch.allclose(one.x_adv, thousand.x_adv, atol=1e-6)


def test_a_start_counts_where_the_gradient_is_dead() -> None:
    """R6: one coordinate on the edge finds the way out in 7 of 24 cases."""

    class Dead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x.flatten(1).unbind(1)
            up, left = (first + second - 1.1).relu(), (0.4 - first).relu()
            zero = torch.zeros_like(first)
            return torch.stack([0.2 - 2 * up - left, zero, zero - 10, zero - 20], dim=1)

    x = torch.full((600, 2), 0.5, dtype=torch.float64)
    share = share_broken(APGD(objective=margin), Dead(), ThreatModel("linf", 0.12), x)
    assert abs(share - 7 / 24) < 0.07
