"""PGD and FGSM agree with independent implementations on real digits."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD, dynat_pgd, fgsm
from robustly.data import Splits
from robustly.objectives import margin
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.peer
torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps -r requirements-peers.txt")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    foolbox = pytest.importorskip("foolbox", reason="pip install --no-deps -r requirements-peers.txt")

LINF, L2 = 0.1, 1.5


@pytest.fixture(scope="module")
def batch(digits: Splits) -> tuple[Tensor, Tensor]:
    return digits.test.floats(), digits.test.labels


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).double().mean())


def ours(attack: PGD, net: nn.Module, batch: tuple[Tensor, Tensor], threat: ThreatModel) -> float:
    x, y = batch
    found = attack(net, x, y, threat=threat, generator=KeyedGenerator(0, torch.arange(len(x))))
    assert abs(accuracy(net, found.x_adv, y) - float((~found.broken).double().mean())) < 1e-9
    return float((~found.broken).double().mean())


def foolbox_accuracy(attack: object, net: nn.Module, batch: tuple[Tensor, Tensor], epsilon: float) -> float:
    x, y = batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        _, clipped, _ = attack(wrapped, x, y, epsilons=epsilon)
    return accuracy(net, clipped, y)


# 200 images; two runs with other random starts differ by a few images. 2 points are 4 images.
NOISE = 0.02


def test_linf(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    mine = ours(dynat_pgd(20), digit_net, batch, ThreatModel("linf", LINF))
    assert 0.05 < mine < 0.9  # neither broken nor robust: a number that can disagree
    theirs = torchattacks.PGD(digit_net, eps=LINF, alpha=LINF / 4, steps=20, random_start=True)
    assert mine == pytest.approx(accuracy(digit_net, theirs(*batch), batch[1]), abs=NOISE)
    other = foolbox.attacks.LinfPGD(abs_stepsize=LINF / 4, steps=20, random_start=True)
    assert mine == pytest.approx(foolbox_accuracy(other, digit_net, batch, LINF), abs=NOISE)


def test_l2(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    mine = ours(PGD(40, relative_step_size=0.1), digit_net, batch, ThreatModel("l2", L2))
    assert 0.05 < mine < 0.9
    theirs = torchattacks.PGDL2(digit_net, eps=L2, alpha=0.1 * L2, steps=40, random_start=True)
    other = foolbox.attacks.L2PGD(abs_stepsize=0.1 * L2, steps=40, random_start=True)
    # ours projects exactly on ball and box; the peers clip after projecting and give part of the budget away
    for peer in (accuracy(digit_net, theirs(*batch), batch[1]), foolbox_accuracy(other, digit_net, batch, L2)):
        assert mine <= peer + NOISE
        assert mine >= peer - 0.06


def test_l1_is_at_least_as_strong_as_sparse_descent(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    mine = ours(PGD(50), digit_net, batch, ThreatModel("l1", 10))
    theirs = foolbox.attacks.SparseL1DescentAttack(steps=50, random_start=False)
    assert mine <= foolbox_accuracy(theirs, digit_net, batch, 10.0) + NOISE


def test_fgsm_gives_the_same_images(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    found = fgsm()(
        digit_net, x, y, threat=ThreatModel("linf", LINF), generator=KeyedGenerator(0, torch.arange(len(x)))
    )
    theirs = torchattacks.FGSM(digit_net, eps=LINF)(x, y)
    tried = found.distance > 0
    assert tried.sum() > 100
    # where a gradient is zero up to rounding its sign is a matter of summation order
    differing = ((found.x_adv - theirs).abs() > 1e-6)[tried & found.broken].double().mean()
    assert differing < 1e-3


def test_the_margin_objective_is_that_of_the_tables(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """DYNAT's C&W column: 20 steps of sign ascent on max_{j != y} z_j - z_y, written out here."""
    x, y = batch
    torch.manual_seed(0)
    moved = (x + torch.empty_like(x).uniform_(-LINF, LINF)).clamp(0, 1)
    unbroken = torch.ones(len(x), dtype=torch.bool)
    for _ in range(20):
        point = moved.clone().requires_grad_()
        logits = digit_net(point)
        unbroken &= logits.argmax(1) == y
        one_hot = nn.functional.one_hot(y, 10).bool()
        loss = (logits.masked_fill(one_hot, -1e9).amax(1) - logits[one_hot]).sum()
        (gradient,) = torch.autograd.grad(loss, point)
        stepped = (moved + LINF / 4 * gradient.sign()).clamp(x - LINF, x + LINF).clamp(0, 1)
        moved = torch.where(unbroken[:, None, None, None], stepped, moved)
    with torch.no_grad():
        unbroken &= digit_net(moved).argmax(1) == y
    mine = ours(dynat_pgd(20, margin), digit_net, batch, ThreatModel("linf", LINF))
    assert mine == pytest.approx(float(unbroken.double().mean()), abs=NOISE)
