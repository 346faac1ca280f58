"""VMI-FGSM: the contract, its rule in closed form, its neighbours, and an independent implementation."""

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import MIM, VMI, AttackError
from robustly.attacks.core.update_rules import Iterate
from robustly.attacks.vmi import VarianceTuned
from robustly.data import Splits
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack, small_network
from robustly.threats import ThreatModel, parse_threat

THREAT = ThreatModel("linf", 0.1)


def keys(count: int) -> KeyedGenerator:
    return KeyedGenerator(0, torch.arange(count))


def batch(shape: tuple[int, ...], count: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    net = small_network(shape).eval()
    x = KeyedGenerator(3, torch.arange(count)).uniform(*shape) * 0.8 + 0.1
    return net, x, net(x).argmax(1)


def test_it_keeps_the_contract() -> None:
    check_attack(VMI(steps=3, samples=2), (THREAT,), targeted=True)


def test_the_rule_adds_what_the_neighbours_differ_by() -> None:
    """Where the neighbours have twice the gradient, the variance is the gradient."""
    x, gradient = torch.full((1, 2), 0.5), torch.tensor([[3.0, -1.0]])
    seen: list[Tensor] = []

    def gradient_at(points: Tensor) -> Tensor:
        seen.append(points)
        return 2 * gradient

    rule, ball = VarianceTuned(0.5, samples=7, reach=2.0), THREAT.around(x)
    velocity, variance = rule.init(x)
    moved = x
    for step in range(2):
        here = Iterate(step, x, gradient, ball, torch.tensor([0.1]), keys(1), gradient_at)
        moved, (velocity, variance) = rule.update((velocity, variance), here)
    assert torch.allclose(variance, gradient)
    assert torch.allclose(velocity, 1.5 * torch.tensor([[0.75, -0.25]]))
    assert torch.allclose(moved, x + 0.1 * torch.tensor([[1.0, -1.0]]))
    away = torch.cat(seen) - x
    assert len(away) == 14
    assert 0.1 < float(away.abs().max()) <= 0.2
    assert away.unique().numel() == 28


def test_on_a_linear_model_it_is_momentum() -> None:
    net, x = nn.Linear(6, 3, bias=False), keys(8).uniform(6)
    y = net(x).argmax(1)

    def objective(logits: Tensor, goal: object) -> Tensor:
        return logits[:, 1] - 2 * logits[:, 0]

    vmi = VMI(5, samples=3, objective=objective, keep="last")(net, x, y, threat=THREAT, generator=keys(8))
    mim = MIM(5, objective=objective, keep="last")(net, x, y, threat=THREAT, generator=keys(8))
    assert torch.allclose(vmi.x_adv, mim.x_adv, atol=1e-6)
    curved, x, y = batch((3, 5, 4))
    vmi = VMI(5, samples=3, keep="last")(curved, x, y, threat=THREAT, generator=keys(12))
    mim = MIM(5, keep="last")(curved, x, y, threat=THREAT, generator=keys(12))
    assert not torch.equal(vmi.x_adv, mim.x_adv)


def test_neighbours_cost_passes_and_are_no_iterates() -> None:
    net, x, y = batch((1, 4, 4))
    found = VMI(steps=5, samples=3)(net, x, y, threat=ThreatModel("linf", 1e-6), generator=keys(12))
    assert set(found.forwards.tolist()) == {2 + 5 * 4}
    assert set(found.backwards.tolist()) == {5 * 4}
    assert set(found.correct_iterates.tolist()) == {5}


def test_neighbours_change_free_pixels_only() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 2:] = True

    class Watching(nn.Module):
        seen: list[Tensor]

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.detach())
            return torch.stack([x.flatten(1).sum(1), x.flatten(1).square().sum(1)], 1)

    net, x = Watching(), torch.full((3, 1, 4, 4), 0.5)
    net.seen = []
    masked = ThreatModel("linf", 0.1, mask=mask)
    VMI(2, samples=2)(net, x, torch.zeros(3, dtype=torch.int64), threat=masked, generator=keys(3))
    points = torch.cat(net.seen)
    assert (points[..., :2] == 0.5).all()
    assert (points[..., 2:] != 0.5).any()


@pytest.mark.parametrize(
    ("settings", "named"), [({"steps": 0}, "steps"), ({"samples": 0}, "samples"), ({"reach": 0.0}, "reach")]
)
def test_settings_out_of_range_are_named(settings: dict[str, int], named: str) -> None:
    with pytest.raises(AttackError, match=named):
        VMI(**settings)  # type: ignore[arg-type]


def test_other_threats_are_refused() -> None:
    net, x, y = batch((1, 4, 4))
    with pytest.raises(AttackError, match="linf"):
        VMI()(net, x, y, threat=parse_threat("rotation:10"), generator=keys(12))


@pytest.mark.peer
def test_it_is_as_strong_as_an_independent_implementation(digit_net: nn.Module, digits: Splits) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps -r requirements-peers.txt")
    x, y = digits.test.floats(), digits.test.labels
    radius = 0.1
    torch.manual_seed(0)
    theirs = torchattacks.VMIFGSM(digit_net, eps=radius, alpha=radius / 5, steps=10, N=5, beta=1.5)(x, y)
    attack = VMI(10, samples=5, step_size=radius / 5, keep="last")
    mine = attack(digit_net, x, y, threat=ThreatModel("linf", radius), generator=keys(len(x)))
    with torch.no_grad():
        mine_left, theirs_left = (
            float((digit_net(images).argmax(1) == y).double().mean()) for images in (mine.x_adv, theirs)
        )
    assert 0.05 < theirs_left < 0.9
    assert mine_left == pytest.approx(theirs_left, abs=0.02)
    # both ascend the same curved loss with their own noise: most pixels end at the same corner
    same = ((mine.x_adv - x).sign() == (theirs - x).sign())[(theirs - x).abs() > 0.9 * radius].double().mean()
    assert float(same) > 0.9
