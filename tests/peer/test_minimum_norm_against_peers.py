"""Minimum-norm attacks against independent implementations on real digits: how far the median example is."""

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.attacks.ddn import DDN
from robustly.attacks.deepfool import DeepFool
from robustly.attacks.fab import FAB
from robustly.attacks.fmn import FMN
from robustly.data import Splits
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.peer
WHY = "pip install --no-deps -r requirements-peers.txt"
torchattacks = pytest.importorskip("torchattacks", reason=WHY)
adv_lib = pytest.importorskip("adv_lib", reason=WHY)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    foolbox = pytest.importorskip("foolbox", reason=WHY)

ORDER = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}


def adversarial_library(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """One file of the library: its package of attacks would import torchvision, its logger visdom."""
    if sys.version_info >= (3, 12):
        pytest.skip("adv-lib needs distutils, gone from Python 3.12")
    drawing = ModuleType("visdom")
    drawing.Visdom = object
    monkeypatch.setitem(sys.modules, "visdom", drawing)
    path = Path(adv_lib.__path__[0]) / "attacks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"adv_lib_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def batch(digit_net: nn.Module, digits: Splits) -> tuple[Tensor, Tensor]:
    """Digits that the network has right."""
    x, y = digits.test.floats()[:80], digits.test.labels[:80]
    with torch.no_grad():
        correct = digit_net(x).argmax(1) == y
    return x[correct], y[correct]


def ours(attack: Attack, net: nn.Module, batch: tuple[Tensor, Tensor], norm: str) -> Tensor:
    x, y = batch
    draws = KeyedGenerator(0, torch.arange(len(x)))
    return attack(net, x, y, threat=ThreatModel(norm, 0), generator=draws).distance


def distances(net: nn.Module, batch: tuple[Tensor, Tensor], x_adv: Tensor, norm: str) -> Tensor:
    """Of a peer's images: infinite where the network is still right."""
    x, y = batch
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    with torch.no_grad():
        fooled = net(x_adv).argmax(1) != y
    return torch.where(fooled, ThreatModel(norm, 0).distance(x_adv, x), torch.inf)


@pytest.mark.parametrize("norm", ["linf", "l2"])  # the peer's l1 attack raises where nothing is far enough
def test_fab(norm: str, digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    name = {"linf": "Linf", "l2": "L2"}[norm]
    peer = torchattacks.FAB(digit_net, norm=name, eps=1e6, steps=20, n_restarts=1)
    theirs = distances(digit_net, batch, peer(*batch), norm)
    mine = ours(FAB(20), digit_net, batch, norm)
    assert float(mine.median()) == pytest.approx(float(theirs.median()), rel=0.01)
    assert torch.isclose(mine, theirs, rtol=0.02).double().mean() > 0.9


@pytest.mark.parametrize("norm", ["linf", "l0"])
def test_fmn(norm: str, digit_net: nn.Module, batch: tuple[Tensor, Tensor], monkeypatch) -> None:
    peer = adversarial_library("fast_minimum_norm", monkeypatch).fmn
    theirs = distances(digit_net, batch, peer(digit_net, *batch, norm=ORDER[norm], steps=100), norm)
    margin = 1.0 if norm == "l0" else 0.05 * float(theirs.median())  # a pixel
    for attack in (FMN(targets=0), FMN()):
        mine = ours(attack, digit_net, batch, norm)
        assert mine.isfinite().all()
        assert float(mine.median()) == pytest.approx(float(theirs.median()), abs=margin)
        assert float(mine.mean()) == pytest.approx(float(theirs.mean()), rel=0.15)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_fmn_crosses_boundaries_that_the_published_rule_stops_short_of(
    norm: str, digit_net: nn.Module, batch: tuple[Tensor, Tensor], monkeypatch
) -> None:
    peer = adversarial_library("fast_minimum_norm", monkeypatch).fmn
    theirs = distances(digit_net, batch, peer(digit_net, *batch, norm=ORDER[norm], steps=100), norm)
    mine = ours(FMN(targets=0), digit_net, batch, norm)
    assert mine.isfinite().all()
    both = theirs.isfinite()
    assert 0.3 < both.double().mean() < 1
    assert float(mine[both].median()) == pytest.approx(float(theirs[both].median()), rel=0.05)


def test_ddn(digit_net: nn.Module, batch: tuple[Tensor, Tensor], monkeypatch) -> None:
    peer = adversarial_library("decoupled_direction_norm", monkeypatch).ddn
    theirs = distances(digit_net, batch, peer(digit_net, *batch, steps=100, levels=None), "l2")
    mine = ours(DDN(100), digit_net, batch, "l2")
    assert mine.isfinite().all()
    assert float(mine.median()) == pytest.approx(float(theirs.median()), rel=0.01)
    assert torch.isclose(mine, theirs, rtol=0.02).double().mean() > 0.9


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool(norm: str, digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    family = {"linf": foolbox.attacks.LinfDeepFoolAttack, "l2": foolbox.attacks.L2DeepFoolAttack}[norm]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = foolbox.PyTorchModel(digit_net, bounds=(0, 1), device="cpu")
        _, images, _ = family(steps=50, candidates=10, overshoot=0.02, loss="logits")(
            wrapped, *batch, epsilons=None
        )
    theirs = distances(digit_net, batch, images, norm)
    mine = ours(DeepFool(50), digit_net, batch, norm)
    assert mine.isfinite().all()
    assert float(mine.median()) == pytest.approx(float(theirs.median()), rel=0.05)


def test_deepfool_where_torchattacks_finds_anything(digit_net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Its clipped images stay correct for many digits; ours go on until the network errs."""
    batch = batch[0][:40], batch[1][:40]
    theirs = distances(digit_net, batch, torchattacks.DeepFool(digit_net, steps=50)(*batch), "l2")
    mine = ours(DeepFool(50), digit_net, batch, "l2")
    found = theirs.isfinite()
    assert found.double().mean() > 0.3
    assert float(mine[found].median()) == pytest.approx(float(theirs[found].median()), rel=0.05)
