"""Forced routes: numbers of the branches, the worst case over them, and a route that masks gradients."""

import pytest
import torch
from torch import Tensor, nn

from robustly.data import ImageData
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.diagnostics import (
    ALL,
    Budget,
    broken_by_routes,
    diagnose,
    forced_routes,
    masking_suspected,
)
from robustly.models import TafdNetwork
from robustly.models.frequency import Route
from robustly.threats.lp import ThreatModel
from routed_experts import DIRECTIONS, Experts

COUNT = 40
SMALL = Budget(steps=8, unbounded_steps=10, restarts=2, queries=20, few=4, points=20, directions=4)
LINF = ThreatModel("linf", 0.2)
GREY = 128 / 255


def logits(body: nn.Module, x: Tensor, route: Route) -> Tensor:
    found: Tensor = body(x, route)
    return found


class Router(nn.Module):
    """Domain 1 where every pixel has moved by 0.19 along its direction; `steep` hides the slope of the route.

    With `sure` the mean of the pixels counts, and 0.15: the router's logits have a slope, its probabilities none.
    """

    def __init__(self, steep: bool, sure: bool) -> None:
        super().__init__()
        self.steep, self.sure = steep or sure, sure

    def forward(self, x: Tensor) -> Tensor:
        along = (x.flatten(1) - GREY) * DIRECTIONS[1]
        near = along.mean(1) - 0.15 if self.sure else along.amin(1) - 0.19
        return torch.stack([torch.zeros_like(near), (1e6 if self.steep else 10) * near], 1)


def target(margins: tuple[float, float], steep: bool = False, sure: bool = False) -> EvaluationTarget:
    """Grey images, whose distance to the margin of a branch is known in closed form."""
    net = TafdNetwork(Experts(margins, GREY), logits, Router(steep, sure), 2)
    grey = torch.full((COUNT, 1, 2, 2), 128, dtype=torch.uint8)
    data = ImageData(grey, torch.zeros(COUNT, dtype=torch.int64), torch.arange(COUNT), ("a", "b"), "grey")
    return EvaluationTarget(net.eval(), data, LINF)


def test_numbers_of_branches_that_differ() -> None:
    """Within 0.2 an image moves by 0.2: branch 0 (margin 0.3) resists, branch 1 (margin 0.1) does not."""
    found = forced_routes(target((0.3, 0.1)), count=COUNT, budget=SMALL)
    first, second = found.branches
    assert (found.count, found.clean) == (COUNT, 1.0)
    assert (first.clean, first.robust, first.routed) == (1.0, 1.0, 1.0)
    assert (second.clean, second.robust, second.routed) == (1.0, 0.0, 0.0)
    assert second.attacked_routed == 1.0, "the attack on branch 1 ends in its domain"
    assert second.fooling == 1.0
    assert found.worst == 0.0
    assert found.worst <= min(found.robust, found.adaptive, 1 - second.fooling)


def test_the_images_that_the_branches_break_are_named() -> None:
    assert broken_by_routes(target((0.3, 0.1)), count=7, budget=SMALL).tolist() == [True] * 7
    assert broken_by_routes(target((0.3, 0.4)), count=7, budget=SMALL).tolist() == [False] * 7


def test_two_robust_branches_are_robust_together() -> None:
    found = forced_routes(target((0.3, 0.4)), count=COUNT, budget=SMALL)
    assert (found.clean, found.robust, found.adaptive, found.worst) == (1.0, 1.0, 1.0, 1.0)


def test_the_attack_on_the_route_is_a_part_of_the_worst_case() -> None:
    """Its own gradient of the router leads to branch 1, where that of the network does not."""
    found = forced_routes(target((0.3, 0.1), sure=True), count=COUNT, budget=SMALL)
    assert found.robust > 0.9, "a random start may lie beyond"
    assert found.adaptive == found.worst == 0.0


@pytest.mark.slow
def test_a_route_that_hides_its_slope_is_suspected() -> None:
    """Gradients of branch 0 lead elsewhere than to the domain of branch 1."""
    hidden = target((0.3, 0.1), steep=True)
    found = diagnose(hidden, count=COUNT, budget=SMALL)
    assert [finding.id for finding in found] == [*ALL, "forced_routes"]
    last = found[-1]
    assert last.passed is False
    assert last.value == 1.0
    assert f"break {COUNT} of {COUNT} images that resist" in last.words
    assert "together with the results on the branches 0.0%" in last.words
    assert last.words in masking_suspected(found)


@pytest.mark.slow
def test_an_honest_route_passes_and_other_networks_have_no_such_finding() -> None:
    found = diagnose(target((0.3, 0.4)), count=COUNT, budget=SMALL)
    assert (found[-1].id, found[-1].passed, found[-1].value) == ("forced_routes", True, 0.0)
    assert "Domain 0: 100.0% of the clean images" in found[-1].words
    assert [one.id for one in diagnose(target((0.3, 0.4)), count=4, tests=("D6",))] == ["D6"]


def test_wrong_arguments_are_refused() -> None:
    given = target((0.3, 0.4))
    with pytest.raises(ValueError, match="at least 1 image"):
        forced_routes(given, count=0)
    with pytest.raises(ValueError, match="at least 1 image"):
        broken_by_routes(given, count=0)
    other = EvaluationTarget(nn.Flatten(), given.data, LINF)
    with pytest.raises(ValueError, match="a network with threat domains, such as tafd_resnet18, not Flatten"):
        forced_routes(other, count=2)
