"""PGD on class and route: its objective by hand, a route that PGD does not move, and networks without a route."""

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD, AttackError, RoutePGD
from robustly.attacks.route_pgd import route_margin, with_route
from robustly.models import TafdNetwork, as_classifier
from robustly.models.tafd import routed_network
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack, small_network
from robustly.threats import ThreatModel, parse_threat
from routed_experts import DIRECTIONS, Experts

LINF = ThreatModel("linf", 0.2)


class Router(nn.Module):
    """Domain 1 where the image has moved by 0.15 along its direction; its probabilities are 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        near = (x.flatten(1) - 0.5) @ DIRECTIONS[1].to(x.dtype) / 4 - 0.15
        return torch.stack([torch.zeros_like(near), 1e6 * near], 1)


def routed(first: float, second: float) -> TafdNetwork:
    return TafdNetwork(Experts((first, second), 0.5), lambda body, x, route: body(x, route), Router(), 2).eval()


def attack(search: PGD | RoutePGD, net: nn.Module, x: Tensor | None = None, text: str = "linf:0.2") -> Tensor:
    x = torch.full((6, 1, 2, 2), 0.5) if x is None else x
    draws = KeyedGenerator(0, torch.arange(len(x)))
    return search(net, x, torch.zeros(len(x)).long(), threat=parse_threat(text), generator=draws).broken


def test_the_margin_of_the_route_by_hand() -> None:
    clean = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    logits = torch.tensor([[1.0, 4.0, 2.0], [0.5, 2.0, 1.0]])
    assert route_margin(logits, clean).tolist() == [3.0, -1.0]
    assert route_margin(clean, clean).tolist() == [-1.0, -2.0]
    assert route_margin(clean[:, :1], clean[:, :1]).tolist() == [0.0, 0.0]


def test_both_parts_of_the_objective_have_one_size_within_limits() -> None:
    """w = |loss| / |margin| = 4, 0.1 (of 0.02), 10 (of 300), and 10 for a margin of zero."""
    loss = torch.tensor([2.0, 2.0, 3.0, 1.0])
    margin = torch.tensor([-0.5, -100.0, 0.01, 0.0], requires_grad=True)
    found = with_route(loss, margin, 0.5)
    assert found.tolist() == pytest.approx([2 - 0.5 * 2, 2 - 0.5 * 10, 3 + 0.5 * 0.1, 1.0])
    (slope,) = torch.autograd.grad(found.sum(), margin)
    assert slope.tolist() == pytest.approx([0.5 * 4, 0.5 * 0.1, 0.5 * 10, 0.5 * 10])


def test_it_moves_a_route_whose_gradient_is_hidden() -> None:
    """Branch 0 resists (0.3); branch 1 (0.1) does not, and gradients through a sure router do not lead to it."""
    assert not attack(PGD(20, restarts=3), routed(0.3, 0.1)).any()
    assert not attack(RoutePGD(20, (0.0,)), routed(0.3, 0.1)).any(), "scale 0 is PGD"
    assert attack(RoutePGD(20), routed(0.3, 0.1)).all()
    assert not attack(RoutePGD(20), routed(0.3, 0.4)).any(), "both branches resist"
    assert attack(RoutePGD(20), routed(0.1, 0.4)).all(), "branch 0 falls without another route"


def test_without_a_route_it_is_pgd_with_as_many_restarts() -> None:
    net = small_network((1, 4, 4)).eval()
    x = KeyedGenerator(1, torch.arange(12)).uniform(1, 4, 4)
    with torch.no_grad():
        y = net(x).argmax(1)
    draws = KeyedGenerator(0, torch.arange(12))
    ours, pgd = (
        one(net, x, y, threat=ThreatModel("linf", 0.03), generator=draws)
        for one in (RoutePGD(4, (1.0, 2.0)), PGD(4, restarts=2))
    )
    assert torch.equal(ours.broken, pgd.broken)
    assert torch.equal(ours.x_adv[ours.broken], pgd.x_adv[pgd.broken])
    assert torch.equal(ours.forwards, pgd.forwards)
    assert 0 < int(ours.broken.sum()) < 12


def test_verdicts_do_not_depend_on_the_batch_and_wrappers_are_seen_through() -> None:
    net = routed(0.2, 0.15)
    x = 0.5 + 0.04 * (KeyedGenerator(3, torch.arange(8)).uniform(1, 2, 2) - 0.5)
    whole = attack(RoutePGD(5), net, x)
    y, ids = torch.zeros(8).long(), torch.arange(8)
    single = [
        RoutePGD(5)(net, x[i : i + 1], y[:1], threat=LINF, generator=KeyedGenerator(0, ids[i : i + 1])).broken
        for i in range(8)
    ]
    assert torch.equal(torch.cat(single), whole)
    assert routed_network(net) is net
    assert routed_network(torch.nn.DataParallel(net)) is net
    assert routed_network(nn.Sequential(net)) is None
    assert routed_network(as_classifier(nn.Flatten())) is None


def test_it_is_defined_for_other_threats_and_types() -> None:
    net = routed(0.3, 0.1)
    assert attack(RoutePGD(20), net.double(), torch.full((2, 1, 2, 2), 0.5).double()).all()
    assert attack(RoutePGD(20), net.float(), text="l2:0.4").all()
    assert attack(RoutePGD(2), net, torch.zeros(0, 1, 2, 2)).shape == (0,)


@pytest.mark.slow
def test_it_keeps_the_contract_of_an_attack() -> None:
    check_attack(RoutePGD(3, (0.5, 2.0)), (LINF, parse_threat("rotation:20")))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"scales": ()}, "at least one of them"),
        ({"scales": (1.0, -1.0)}, "at least 0"),
        ({"scales": (float("nan"),)}, "at least 0"),
        ({"relative_step_size": 0.0}, "positive"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(AttackError, match=words):
        RoutePGD(**settings)  # type: ignore[arg-type]
