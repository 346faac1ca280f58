"""MI-FGSM gives the images of an independent implementation."""

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks.mim import MIM
from robustly.data import Splits
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.peer
torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps -r requirements-peers.txt")

EPSILON = 0.1


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_same_last_iterate(digit_net: nn.Module, digits: Splits, decay: float) -> None:
    x, y = digits.test.floats(), digits.test.labels
    keyed = KeyedGenerator(0, torch.arange(len(x)))
    threat = ThreatModel("linf", EPSILON)
    theirs = torchattacks.MIFGSM(digit_net, eps=EPSILON, alpha=EPSILON / 5, steps=10, decay=decay)(x, y)
    mine = MIM(10, decay, step_size=EPSILON / 5, keep="last")(digit_net, x, y, threat=threat, generator=keyed)
    # where a gradient is zero up to rounding its sign is a matter of summation order
    differing = ((mine.x_adv - theirs).abs() > 1e-5).flatten(1).double().mean()
    assert differing < 5e-3
    reached = accuracy(digit_net, theirs, y)
    assert 0.05 < reached < 0.9
    assert accuracy(digit_net, mine.x_adv, y) == pytest.approx(reached, abs=0.01)
    best = MIM(10, decay, step_size=EPSILON / 5)(digit_net, x, y, threat=threat, generator=keyed)
    assert float((~best.broken).double().mean()) <= reached + 0.005
