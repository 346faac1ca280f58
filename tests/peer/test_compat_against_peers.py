"""A switched import gives what the peer gave."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from robustly.compat import foolbox as our_foolbox
from robustly.compat import torchattacks as our_torchattacks
from robustly.data import Splits

pytestmark = pytest.mark.peer
torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps -r requirements-peers.txt")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    foolbox = pytest.importorskip("foolbox", reason="pip install --no-deps -r requirements-peers.txt")

EPSILON = 0.1


@pytest.fixture(scope="module")
def batch(digits: Splits) -> tuple[Tensor, Tensor]:
    return digits.test.floats(), digits.test.labels


def robust(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("FGSM", {"eps": EPSILON}),
        ("BIM", {"eps": EPSILON, "alpha": 0.025, "steps": 10}),
        ("PGD", {"eps": EPSILON, "alpha": 0.025, "steps": 10, "random_start": False}),
        ("MIFGSM", {"eps": EPSILON, "alpha": 0.02, "steps": 10, "decay": 1.0}),
    ],
)
def test_deterministic_attacks_give_the_same_images(
    name: str, given: dict[str, float], digit_net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    theirs = getattr(torchattacks, name)(digit_net, **given)(x, y)
    mine = getattr(our_torchattacks, name)(digit_net, **given)(x, y)
    # where a gradient is zero up to rounding its sign is a matter of summation order
    assert ((mine - theirs).abs() > 1e-5).double().mean() < 5e-3
    assert robust(digit_net, mine, y) == pytest.approx(robust(digit_net, theirs, y), abs=0.01)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("PGD", {"eps": EPSILON, "alpha": 0.025, "steps": 10}),
        ("PGDL2", {"eps": 1.5, "alpha": 0.3, "steps": 10}),
        ("APGD", {"eps": EPSILON, "steps": 10}),
    ],
)
def test_random_attacks_leave_as_many_standing(
    name: str, given: dict[str, float], digit_net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    torch.manual_seed(0)
    theirs = robust(digit_net, getattr(torchattacks, name)(digit_net, **given)(x, y), y)
    mine = robust(digit_net, getattr(our_torchattacks, name)(digit_net, **given)(x, y), y)
    assert 0.02 < theirs < 0.95
    assert mine <= theirs + 0.02
    assert mine >= theirs - 0.08


def test_targets_by_label(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    reached = []
    for library in (torchattacks, our_torchattacks):
        atk = library.PGD(digit_net, eps=0.2, alpha=0.05, steps=10, random_start=False)
        atk.set_mode_targeted_by_label(quiet=True)
        reached.append(robust(digit_net, atk(x, (y + 1) % 10), (y + 1) % 10))
    assert 0.05 < reached[0] < 1
    assert reached[1] == pytest.approx(reached[0], abs=0.02)


def test_foolbox_s_own_models_and_criteria_are_taken(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    fmodel = foolbox.PyTorchModel(digit_net, bounds=(0, 1), device="cpu")
    given = {"steps": 10, "random_start": False, "rel_stepsize": 0.25}
    epsilons = [0.02, 0.1]
    for criterion in (foolbox.criteria.Misclassification(y), y):
        _, clipped, theirs = foolbox.attacks.LinfPGD(**given)(fmodel, x, criterion, epsilons=epsilons)
        _, ours, mine = our_foolbox.attacks.LinfPGD(**given)(fmodel, x, criterion, epsilons=epsilons)
        assert mine.shape == theirs.shape
        assert len(ours) == len(clipped)
        # ours keeps the first adversarial iterate, theirs the last one
        assert (mine.double().mean(1) >= theirs.double().mean(1) - 0.005).all()
        assert (mine.double().mean(1) <= theirs.double().mean(1) + 0.03).all()
