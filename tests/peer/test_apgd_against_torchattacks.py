"""APGD and APGD-T leave as many digits standing as torchattacks' ports of the published code."""

import pytest
import torch
from torch import nn

from robustly.attacks import APGD, Attack, TargetedAPGD
from robustly.data import Splits
from robustly.objectives import difference_of_logits_ratio
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

torchattacks = pytest.importorskip("torchattacks")
pytestmark = pytest.mark.peer

COUNT = 100


def unbroken(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    with torch.no_grad():
        return int((net(x).argmax(1) == y).sum())


@pytest.mark.parametrize(
    ("norm", "name", "epsilon"), [("linf", "Linf", 0.055), ("l2", "L2", 0.8)], ids=["linf", "l2"]
)
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_as_many_digits_stand(
    digit_net: nn.Module, digits: Splits, norm: str, name: str, epsilon: float, loss: str
) -> None:
    x, y = digits.test.floats()[:COUNT], digits.test.labels[:COUNT]
    ours: Attack
    if loss == "targeted":
        theirs = torchattacks.APGDT(digit_net, norm=name, eps=epsilon, steps=20, n_classes=10)
        ours = TargetedAPGD(steps=20)
    else:
        theirs = torchattacks.APGD(digit_net, norm=name, eps=epsilon, steps=20, loss=loss)
        ours = APGD(steps=20) if loss == "ce" else APGD(steps=20, objective=difference_of_logits_ratio)
    correct = digit_net(x).argmax(1) == y
    x, y = x[correct], y[correct]
    expected = unbroken(digit_net, theirs(x, y), y)
    threat = ThreatModel(norm, epsilon)
    found = ours(digit_net, x, y, threat=threat, generator=KeyedGenerator(0, torch.arange(len(x))))
    measured = unbroken(digit_net, found.x_adv, y)
    assert 10 < expected < 90, "the radius has to leave something to compare"
    assert abs(measured - expected) <= 4
