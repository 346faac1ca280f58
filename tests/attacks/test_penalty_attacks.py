"""C&W, EAD, sigma-zero and JSMA under the contract; what their settings do."""

import pytest
import torch
from torch import nn

from robustly.attacks import Attack, AttackError
from robustly.attacks.carlini_wagner import CarliniWagner
from robustly.attacks.ead import EAD
from robustly.attacks.jsma import JSMA
from robustly.attacks.sigma_zero import SigmaZero
from robustly.data import Splits
from robustly.objectives import ClassificationGoal, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack
from robustly.threats.lp import ThreatModel

CASES = [
    (CarliniWagner(steps=6, search_steps=2, initial_c=1.0), ThreatModel("l2", 0.5)),
    (EAD(steps=6, search_steps=2, initial_c=1.0), ThreatModel("l1", 1.2)),
    (SigmaZero(steps=6), ThreatModel("l0", 3)),
    (JSMA(gamma=0.3), ThreatModel("l0", 3)),
    (JSMA(gamma=0.3, pairs=False, targets=2, theta=-0.5), ThreatModel("l0", 3)),
    (EAD(steps=6, search_steps=2, initial_c=1.0, rule="elastic_net"), ThreatModel("l1", 1.2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "threat"), CASES, ids=["cw", "ead", "sigma-zero", "jsma", "jsma-single", "ead-en"]
)
def test_they_keep_the_contract(attack: Attack, threat: ThreatModel) -> None:
    check_attack(attack, (threat,), targeted=True)


@pytest.mark.slow
def test_confidence_has_a_price(digit_net: nn.Module, digits: Splits) -> None:
    x, y = digits.test.floats()[:8], digits.test.labels[:8]
    draws, threat = KeyedGenerator(0, torch.arange(8)), ThreatModel("l2", 3)
    plain, sure = (
        CarliniWagner(steps=60, search_steps=3, initial_c=1.0, confidence=kappa, learning_rate=0.05)(
            digit_net, x, y, threat=threat, generator=draws
        )
        for kappa in (0.0, 3.0)
    )
    both = plain.distance.isfinite() & sure.distance.isfinite() & (plain.distance > 0)
    assert int(both.sum()) >= 4
    assert (sure.distance[both] > plain.distance[both]).all()
    assert sure.beyond is not None
    with torch.no_grad():
        lead = margin(digit_net(sure.beyond[both]), ClassificationGoal(y[both]))
    assert (lead >= 3.0 - 1e-3).all()


@pytest.mark.parametrize("pairs", [True, False])
def test_saliency_maps_keep_to_their_share_of_the_features(
    pairs: bool, digit_net: nn.Module, digits: Splits
) -> None:
    x, y = digits.test.floats()[:6], digits.test.labels[:6]
    attack = JSMA(gamma=0.02, pairs=pairs, targets=2)
    found = attack(digit_net, x, y, threat=ThreatModel("l0", 784), generator=KeyedGenerator(0, torch.arange(6)))
    assert found.broken.any()
    assert ((found.x_adv != x).flatten(1).sum(1) <= int(0.02 * 784)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("low", "width"), [(-1.0, 2.0), (0.0, 255.0)])
@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (CarliniWagner(steps=60, search_steps=3, initial_c=1.0, learning_rate=0.05), "l2"),
        (EAD(steps=60, search_steps=3, initial_c=1.0, learning_rate=0.05), "l1"),
        (EAD(steps=60, search_steps=3, initial_c=1.0, learning_rate=0.05, rule="elastic_net"), "l1"),
        (SigmaZero(steps=60), "l0"),
        (JSMA(gamma=1.0), "l0"),
    ],
    ids=["cw", "ead", "ead-en", "sigma-zero", "jsma"],
)
def test_settings_mean_the_same_on_every_box(attack: Attack, norm: str, low: float, width: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    for parameter in net.parameters():
        parameter.data *= 3
    x = torch.rand(5, 1, 4, 4).double()
    y = net(x).argmax(1)

    class Stretched(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return net((x - low) / width)

    draws, unit = KeyedGenerator(0, torch.arange(5)), 1.0 if norm == "l0" else width
    plain = attack(net, x, y, threat=ThreatModel(norm, 16), generator=draws)
    box = (low, low + width)
    wide = attack(Stretched(), low + width * x, y, threat=ThreatModel(norm, 16 * unit, box), generator=draws)
    assert int(plain.distance.isfinite().sum()) >= 2
    assert torch.allclose(wide.distance / unit, plain.distance, rtol=1e-6)
    assert torch.equal(wide.backwards, plain.backwards)


@pytest.mark.slow
def test_each_decision_rule_keeps_what_is_least_by_its_own_measure(digit_net: nn.Module, digits: Splits) -> None:
    x, y = digits.test.floats()[:8], digits.test.labels[:8]
    found = {
        rule: EAD(steps=40, search_steps=3, beta=1e-2, initial_c=1.0, learning_rate=0.05, rule=rule)(
            digit_net, x, y, threat=ThreatModel("l1", 784), generator=KeyedGenerator(0, torch.arange(8))
        )
        for rule in ("l1", "elastic_net")
    }
    near, cheap = found["l1"], found["elastic_net"]
    assert torch.equal(near.broken, cheap.broken)
    assert int(near.broken.sum()) >= 6

    def cost(points: torch.Tensor) -> torch.Tensor:
        change = (points - x).flatten(1)
        return change.square().sum(1) + 1e-2 * change.abs().sum(1)

    assert (near.distance <= cheap.distance).all()
    assert (cost(cheap.x_adv) <= cost(near.x_adv) + 1e-6).all()
    assert not torch.equal(near.x_adv, cheap.x_adv), "the case tells the rules apart"
    assert torch.equal(near.backwards, cheap.backwards), "they search alike"


@pytest.mark.slow
def test_how_close_a_failure_came_is_told() -> None:
    net = nn.Linear(4, 2)
    net.weight.data, net.bias.data = torch.tensor([[-0.5] * 4, [0.5] * 4]), torch.tensor([0.0, -5.0])
    x, y = torch.full((1, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    for attack, norm in (
        (CarliniWagner(steps=100, search_steps=3, initial_c=10.0, learning_rate=0.1), "l2"),
        (EAD(steps=100, search_steps=3, initial_c=10.0), "l1"),
        (EAD(steps=100, search_steps=3, initial_c=10.0, rule="elastic_net"), "l1"),
        (SigmaZero(steps=100), "l0"),
        (JSMA(gamma=1.0), "l0"),
    ):
        draws = KeyedGenerator(0, torch.arange(1))
        found = attack(net, x, y, threat=ThreatModel(norm, 4), generator=draws)
        assert not found.broken.any()
        assert found.margin is not None
        assert float(found.margin) == pytest.approx(-1.0, abs=0.05), "the corner of the box is the best there is"


def test_saliency_maps_cost_two_passes_each_way_per_move_however_many_classes() -> None:
    class Slope(nn.Module):
        """Class 1 rises with every feature, the others stand far above it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rise = 0.01 * x.flatten(1).sum(1, keepdim=True)
            return torch.cat([5 - rise, rise, *[-rise] * 18], dim=1)

    x, y = torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    goal, draws = ClassificationGoal(y, target=torch.ones_like(y)), KeyedGenerator(0, torch.arange(1))
    for pairs, moves in ((True, 2), (False, 4)):
        found = JSMA(gamma=0.25, pairs=pairs)(Slope(), x, goal, threat=ThreatModel("l0", 16), generator=draws)
        assert not found.broken.any()
        assert int(found.backwards) == 2 * moves
        assert int(found.forwards) == 1 + 2 * moves + 1


def test_passes_are_counted() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([1.0, 0.0, 0.0]) + 1e-9 * x.flatten(1).sum(1, keepdim=True)

    x, y = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)

    def cost(attack: Attack, norm: str) -> tuple[int, int]:
        found = attack(Constant(), x, y, threat=ThreatModel(norm, 3), generator=KeyedGenerator(0, torch.arange(1)))
        assert not found.broken.any()
        return int(found.forwards), int(found.backwards)

    assert cost(SigmaZero(steps=20), "l0") == (1 + 20 + 1, 20)
    assert cost(EAD(steps=10, search_steps=2), "l1") == (1 + 2 * 20, 20)
    forwards, backwards = cost(CarliniWagner(steps=50, search_steps=3), "l2")
    assert forwards == 1 + backwards
    assert backwards == 3 * (50 // 10 + 1), "a run without progress ends at the second check, a tenth in"


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (CarliniWagner, {"steps": 0}),
        (CarliniWagner, {"confidence": -1.0}),
        (EAD, {"beta": -1.0}),
        (EAD, {"search_steps": 0}),
        (SigmaZero, {"sigma": 0.0}),
        (SigmaZero, {"threshold": 2.0}),
        (JSMA, {"theta": 0.0}),
        (JSMA, {"gamma": 0.0}),
        (JSMA, {"targets": 0}),
    ],
)
def test_settings_out_of_range_are_refused(kind: type, wrong: dict) -> None:
    with pytest.raises(AttackError, match="got"):
        kind(**wrong)


@pytest.mark.parametrize(("attack", "threat"), CASES[:4], ids=["cw", "ead", "sigma-zero", "jsma"])
def test_other_norms_are_refused(attack: Attack, threat: ThreatModel) -> None:
    x, y = torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(AttackError, match="the threat is linf"):
        attack(nn.Flatten(), x, y, threat=ThreatModel("linf", 0.1), generator=KeyedGenerator(0, torch.arange(1)))
