"""C&W and EAD are as near as foolbox's, sigma-zero as sparse as adv-lib's; JSMA moves torchattacks' features."""

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.attacks.carlini_wagner import CarliniWagner
from robustly.attacks.ead import EAD
from robustly.attacks.jsma import JSMA
from robustly.attacks.sigma_zero import SigmaZero
from robustly.data import Splits
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.peer
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    foolbox = pytest.importorskip("foolbox", reason="pip install --no-deps -r requirements-peers.txt")


@pytest.fixture(scope="module")
def batch(digit_net: nn.Module, digits: Splits) -> tuple[Tensor, Tensor]:
    """Digits that the network has right."""
    x, y = digits.test.floats()[:24], digits.test.labels[:24]
    with torch.no_grad():
        correct = digit_net(x).argmax(1) == y
    return x[correct], y[correct]


def distances(attack: Attack, net: nn.Module, batch: tuple[Tensor, Tensor], norm: str) -> Tensor:
    x, y = batch
    draws = KeyedGenerator(0, torch.arange(len(x)))
    return attack(net, x, y, threat=ThreatModel(norm, 100), generator=draws).distance


def by_foolbox(attack: object, net: nn.Module, batch: tuple[Tensor, Tensor], order: float) -> Tensor:
    x, y = batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        _, found, done = attack(wrapped, x, y, epsilons=None)
    length = torch.linalg.vector_norm((found - x).flatten(1), order, dim=1)
    return torch.where(done, length, torch.inf)


def test_carlini_and_wagner(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    theirs = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=4, steps=150, stepsize=0.05, initial_const=1.0, abort_early=False
    )
    ours = CarliniWagner(steps=150, search_steps=4, initial_c=1.0, learning_rate=0.05)
    expected, measured = by_foolbox(theirs, digit_net, batch, 2), distances(ours, digit_net, batch, "l2")
    assert measured.isfinite().all()
    assert measured.median() <= 1.05 * expected.median()


def test_ead(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    theirs = foolbox.attacks.EADAttack(
        binary_search_steps=4, steps=150, initial_stepsize=0.05, initial_const=1.0, regularization=1e-3,
        decision_rule="L1", abort_early=False,
    )  # fmt: skip
    ours = EAD(steps=150, search_steps=4, initial_c=1.0, learning_rate=0.05)
    expected, measured = by_foolbox(theirs, digit_net, batch, 1), distances(ours, digit_net, batch, "l1")
    assert measured.isfinite().all()
    assert measured.median() <= 1.05 * expected.median()


def test_sigma_zero(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    adv_lib = pytest.importorskip("adv_lib", reason="pip install --no-deps -r requirements-peers.txt")
    # one file of the library: its package of attacks would import torchvision
    path = Path(adv_lib.__path__[0]) / "attacks" / "sigma_zero.py"
    spec = importlib.util.spec_from_file_location("adv_lib_sigma_zero", path)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    x, y = batch
    found = theirs.sigma_zero(digit_net, x, y, num_steps=150)
    expected = (found != x).flatten(1).sum(1).double()
    measured = distances(SigmaZero(steps=150), digit_net, batch, "l0")
    assert measured.isfinite().all()
    assert measured.double().mean() <= 1.1 * expected.mean()


def test_jsma_reaches_the_same_targets_with_the_same_pixels(digit_net: nn.Module, digits: Splits) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps -r requirements-peers.txt")
    x, y = digits.test.floats()[5:11], digits.test.labels[5:11]
    target = (y + 1) % 10
    draws, threat = KeyedGenerator(0, torch.arange(len(x))), ThreatModel("l0", 784)
    ours = JSMA(theta=1.0, gamma=0.1)(digit_net, x, ClassificationGoal(y, target), threat=threat, generator=draws)
    peer = torchattacks.JSMA(digit_net, theta=1.0, gamma=0.1)
    peer.set_mode_targeted_by_label(quiet=True)
    theirs = peer(x, target)
    with torch.no_grad():
        reached = digit_net(theirs).argmax(1) == target
    assert int(reached.sum()) >= 3
    assert not reached.all(), "a failure is compared as well"
    assert torch.equal(ours.broken, reached)
    assert torch.equal(ours.x_adv[reached], theirs[reached])
