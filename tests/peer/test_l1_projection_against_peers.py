"""The projection on l1 ball and box, against AutoAttack's as adversarial-library ships it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel
from robustly.threats.projections import project_l1

pytestmark = pytest.mark.peer
WHY = "pip install --no-deps adv-lib==0.2.8"
adv_lib = pytest.importorskip("adv_lib", reason=WHY)


@pytest.fixture(scope="module")
def auto_pgd() -> ModuleType:
    """One file of the library: importing its package of attacks would import torchvision and visdom."""
    path = Path(adv_lib.__path__[0]) / "attacks" / "auto_pgd.py"
    spec = importlib.util.spec_from_file_location("adv_lib_auto_pgd", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Below about nine values AutoAttack's bisection stops early and some of its points leave the ball.
@pytest.mark.parametrize("size", [40, 200, 784])
@pytest.mark.parametrize("spread", [0.05, 1.0, 20.0])
def test_ball_and_box(auto_pgd: ModuleType, size: int, spread: float) -> None:
    draws = KeyedGenerator(size, torch.arange(50))
    x = (draws.uniform(size) * 1.2 - 0.1).clamp(0, 1).double()
    delta = spread * draws.fold("delta").normal(size).double()
    for epsilon in (0.3, 2.0, 12.0):
        ours = ThreatModel("l1", epsilon).project(x + delta, x) - x
        radius = torch.full((50,), epsilon, dtype=torch.float64)
        theirs = delta + auto_pgd.l1_projection(x, delta.clone(), radius)
        # theirs selects its segment in float32, ours solves in float64
        assert torch.allclose(ours, theirs, atol=2e-5)
        assert (ours.abs().sum(1) <= epsilon + 1e-9).all()


def test_ball_alone() -> None:
    peer = pytest.importorskip("adv_lib.utils.projections", reason="adv-lib needs distutils, gone from Python 3.12")
    draws = KeyedGenerator(0, torch.arange(50))
    delta = draws.normal(100).double()
    wide = torch.full_like(delta, 1e6)
    radius = draws.uniform(1).double() * 30
    theirs = peer.l1_ball_euclidean_projection(delta, radius[:, 0])
    assert torch.allclose(project_l1(delta, -wide, wide, radius), theirs, atol=1e-9)
