"""FGSM is deterministic: foolbox, which sums the loss as we do, has to give the same images."""

import warnings

import pytest
import torch
from torch import nn

from robustly.attacks import PGD
from robustly.data import Splits
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.peer
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    foolbox = pytest.importorskip("foolbox", reason="pip install --no-deps -r requirements-peers.txt")


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.3])
def test_the_same_images(digit_net: nn.Module, digits: Splits, epsilon: float) -> None:
    x, y = digits.test.floats(), digits.test.labels
    single = PGD(1, relative_step_size=1.0, start="none", keep="last")
    generator = KeyedGenerator(0, torch.arange(len(x)))
    ours = single(digit_net, x, y, threat=ThreatModel("linf", epsilon), generator=generator).x_adv
    wrapped = foolbox.PyTorchModel(digit_net, bounds=(0, 1), device="cpu")
    _, theirs, _ = foolbox.attacks.LinfFastGradientAttack()(wrapped, x, y, epsilons=epsilon)
    assert (ours - x).abs().amax() > 0.9 * epsilon
    assert torch.allclose(ours, theirs, atol=1e-6)
