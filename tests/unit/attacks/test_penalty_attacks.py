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
from robustly.objectives import Goal, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack
from robustly.threat import ThreatModel

CASES = [
    (CarliniWagner(steps=6, search_steps=2, initial_c=1.0), ThreatModel("l2", 0.5)),
    (EAD(steps=6, search_steps=2, initial_c=1.0), ThreatModel("l1", 1.2)),
    (SigmaZero(steps=6), ThreatModel("l0", 3)),
    (JSMA(gamma=0.3), ThreatModel("l0", 3)),
    (JSMA(gamma=0.3, pairs=False, targets=2, theta=-0.5), ThreatModel("l0", 3)),
]


@pytest.mark.parametrize(("attack", "threat"), CASES, ids=["cw", "ead", "sigma-zero", "jsma", "jsma-single"])
def test_they_keep_the_contract(attack: Attack, threat: ThreatModel) -> None:
    check_attack(attack, (threat,), targeted=True)


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
        lead = margin(digit_net(sure.beyond[both]), Goal(y[both]))
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
    assert backwards < 150, "runs without progress end early"


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
