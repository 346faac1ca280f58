"""Values that the host reads from the device: none between the steps of PGD without early stopping.

Tensors on the device "meta" have no values. Reading one raises an error, and so do operations whose result has a
size that depends on values (masks, `nonzero`). They take the code path of a GPU.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from host_reads import Reads
from robustly.attacks import PGD, AttackResult
from robustly.attacks.core import search_state
from robustly.attacks.core.contract import AttackError, prepare
from robustly.objectives import OBJECTIVES, ClassificationGoal
from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat, projections
from robustly.threats.lp import ThreatModel
from robustly.training.inner.pgd import training_pgd

THREAT = ThreatModel("linf", 0.1)


def net(device: str = "cpu", broken_above: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    if broken_above is not None:
        made.append(_Broken(broken_above))
    return made.eval().to(device)


class _Broken(nn.Module):
    """NaN for images with a large logit."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def forward(self, logits: Tensor) -> Tensor:
        return torch.where(logits.amax(1, keepdim=True) > self.above, torch.nan, logits)


def batch(count: int = 6, device: str = "cpu") -> tuple[Tensor, Tensor, KeyedGenerator]:
    torch.manual_seed(3)
    x, y = torch.rand(count, 3, 8, 8), torch.randint(5, (count,))
    return x.to(device), y.to(device), KeyedGenerator(1, torch.arange(count, device=device))


@pytest.fixture
def no_autocast_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def attack(
    pgd: PGD, model: nn.Module, x: Tensor, goal: Any, generator: KeyedGenerator, threat: Any = THREAT
) -> AttackResult:
    return pgd(model, x, goal, threat=threat, generator=generator)


@pytest.mark.usefixtures("no_autocast_on_meta")
@pytest.mark.parametrize("threat", ["linf:0.1", "linf:8/255"])
@pytest.mark.parametrize("start", ["random", "gaussian", "halfway", "none"])
@pytest.mark.parametrize("objective", ["cross_entropy", "margin", "dlr", "kl"])
def test_the_attack_of_training_reads_nothing(threat: str, start: Any, objective: str) -> None:
    """From its arguments to its result, not even to check its arguments."""
    x, y, generator = batch(device="meta")
    goal = ClassificationGoal(y, reference=torch.rand(6, 5, device="meta"))
    pgd = training_pgd(3, OBJECTIVES[objective], start=start)
    found = attack(pgd, net("meta"), x, goal, generator, parse_threat(threat))
    assert found.x_adv.shape == x.shape
    assert found.x_adv.device.type == "meta"


@pytest.mark.usefixtures("no_autocast_on_meta")
def test_meta_tensors_do_find_reads() -> None:
    x, y, generator = batch(device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        attack(PGD(steps=2), net("meta"), x, y, generator)


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that sends searches on the CPU the way of a GPU from then on."""
    return lambda: monkeypatch.setattr(search_state, "reads_are_free", lambda device: False)


def reads_of(steps: int, **settings: Any) -> int:
    x, y, generator = batch()
    with Reads() as counted:
        attack(PGD(steps=steps, **settings), net(), x, y, generator)
    return len(counted.found)


def _without_read(value: Tensor, points: Tensor) -> Tensor:
    """`input_gradient` as on a GPU: the CPU reads a sum in place of `nan_to_num`."""
    return torch.autograd.grad(value, points)[0].nan_to_num(0.0, 0.0, 0.0)


def test_a_search_without_early_stopping_reads_nothing_between_its_steps(
    masked: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve steps read as many values as two: those of the start and of the end."""
    masked()
    monkeypatch.setattr("robustly.attacks.core.search.input_gradient", _without_read)
    assert reads_of(2, early_stop=False) == reads_of(12, early_stop=False)
    assert 0 < reads_of(12, early_stop=True) - reads_of(2, early_stop=True) <= 10  # one in each step


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("has_nan", [False, True])
@pytest.mark.parametrize("settings", [{}, {"restarts": 3}, {"update": "adam"}, {"steps": 0}])
def test_masks_give_the_results_of_selections(
    early_stop: bool, has_nan: bool, settings: dict[str, Any], masked: Callable[[], None]
) -> None:
    """Also for a model that returns NaN at some points: verdicts, points, passes, margins, counts."""
    x, y, generator = batch(40)
    model = net()
    if has_nan:
        model = net(broken_above=float(model(x).detach().amax(1).quantile(0.8)))
    y = torch.where(torch.arange(40) % 3 == 0, y, model(x).nan_to_num(0.0).argmax(1))
    pgd = PGD(**({"steps": 5, "early_stop": early_stop} | settings))
    one = attack(pgd, model, x, y, generator)
    masked()
    other = attack(pgd, model, x, y, generator)
    assert bool(one.invalid.any()) == has_nan
    if has_nan and pgd.steps and not early_stop:  # some become invalid on the way
        assert int(one.invalid.sum()) > int(model(x).isnan().any(1).sum())
    assert one.broken.any()
    for name in one.__dataclass_fields__:
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None and second is None) or torch.equal(first, second), name


def test_images_outside_the_box_are_refused_with_their_extremes() -> None:
    x, y, _ = batch()
    with pytest.raises(AttackError, match=r"must lie in \[0, 1\], got \[-0\.5, 2\]"):
        prepare(torch.cat([x[:4], torch.full_like(x[:1], 2.0), torch.full_like(x[:1], -0.5)]), y, THREAT)
    with pytest.raises(AttackError, match="must lie in"):
        prepare(torch.full_like(x, torch.nan), y, THREAT)
    near = x.clone()
    near[0, 0, 0, 0] = 1 + 1e-6
    assert float(prepare(near, y, THREAT)[0].max()) == 1
    assert float(prepare(x * 3, y, THREAT, check=False)[0].max()) == 1


@pytest.mark.parametrize("norm", ["l2:0.5", "l2:0.01", "l2:20"])
def test_rare_checks_of_convergence_give_the_same_projection(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, generator = batch(30)
    points = parse_threat(norm).around(x).random_start(generator) + torch.randn_like(x)
    allowed = parse_threat(norm).around(x)
    with Reads() as each:
        wanted = allowed.project(points)
    monkeypatch.setattr(projections, "_steps_between_reads", lambda device: 6)
    with Reads() as rare:
        found = allowed.project(points)
    assert torch.equal(found, wanted)
    assert len(rare.found) < max(len(each.found), 2)
