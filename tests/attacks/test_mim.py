"""Momentum, and the boosters of transfer."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustly.attacks import PGD, AttackError
from robustly.attacks.core.update_rules import Iterate, Momentum, smoothed
from robustly.attacks.mim import MIM, InputDiversity
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack, small_network
from robustly.threats.lp import ThreatModel

THREATS = (ThreatModel("linf", 0.1), ThreatModel("l2", 0.4), ThreatModel("l1", 1.5))


def keys(count: int, seed: int = 0) -> KeyedGenerator:
    return KeyedGenerator(seed, torch.arange(count))


def batch(shape: tuple[int, ...], count: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    net = small_network(shape).eval()
    x = keys(count, 3).uniform(*shape) * 0.8 + 0.1
    return net, x, net(x).argmax(1)


class Linear(nn.Module):
    """R1 of the reference values: z = (0, -0.8, -0.9, -0.606) at x = 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.tensor([[0.0] * 4, [2.0] * 4, [6.0, 0, 0, 0], [3.0, 3, 0, 0]])
        self.bias = torch.tensor([0.0, -4.8, -3.9, -3.606])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


@pytest.mark.slow
@pytest.mark.parametrize("attack", [MIM(steps=3), MIM(steps=3, start="random", restarts=2, decay=0.5)])
def test_it_keeps_the_contract(attack: MIM) -> None:
    check_attack(attack, THREATS, targeted=True)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_without_decay_it_is_pgd_from_the_image(threat: ThreatModel) -> None:
    net, x, y = batch((3, 5, 4))
    radius = float(threat.epsilon)
    mine = MIM(steps=7, decay=0.0)(net, x, y, threat=threat, generator=keys(12))
    pgd = PGD(7, step_size=radius / 7, start="none")(net, x, y, threat=threat, generator=keys(12))
    assert torch.equal(mine.x_adv, pgd.x_adv)
    assert torch.equal(mine.broken, pgd.broken)
    assert 0 < int(mine.broken.sum()) < 12
    assert torch.equal(mine.forwards, pgd.forwards)


def test_momentum_remembers_the_first_gradient() -> None:
    """Two steps of two gradients, normalised and added."""
    x = torch.full((1, 2), 0.5)
    rule, allowed = Momentum(0.9), ThreatModel("linf", 0.3).around(x)
    state = rule.init(x)
    for step, gradient in enumerate((torch.tensor([[3.0, -1.0]]), torch.tensor([[-1.0, -1.0]]))):
        here = Iterate(step, x, gradient, allowed, torch.tensor([0.1]), keys(1), lambda points: points)
        moved, state = rule.update(state, here)
    assert torch.allclose(state[0], torch.tensor([[0.9 * 0.75 - 0.5, -0.9 * 0.25 - 0.5]]))
    assert torch.allclose(moved, x + 0.1 * state[0].sign())
    still = Iterate(0, x, torch.zeros(1, 2), allowed, torch.tensor([0.1]), keys(1), lambda points: points)
    assert torch.equal(rule.update(rule.init(x), still)[1][0], torch.zeros(1, 2))


@pytest.mark.parametrize(("epsilon", "breaks"), [(0.0999, False), (0.1005, True)])
def test_the_linear_reference(epsilon: float, breaks: bool) -> None:
    x, y = torch.full((1, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    found = MIM()(Linear(), x, y, threat=ThreatModel("linf", epsilon), generator=keys(1))
    assert bool(found.broken) == breaks
    if breaks:
        assert torch.allclose(found.x_adv, x + epsilon, atol=1e-6)
        assert int(Linear()(found.x_adv).argmax()) == 1


def test_costs_are_counted() -> None:
    net, x, y = batch((1, 4, 4))
    none = ThreatModel("linf", 1e-6)
    found = MIM(steps=5)(net, x, y, threat=none, generator=keys(12))
    assert set(found.forwards.tolist()) == {1 + 5 + 1}
    assert set(found.backwards.tolist()) == {5}
    diverse = MIM(steps=5, diversity=InputDiversity())(net, x, y, threat=none, generator=keys(12))
    assert set(diverse.forwards.tolist()) == {1 + 2 * 5 + 1}
    assert set(diverse.backwards.tolist()) == {5}


def test_the_last_iterate_is_at_the_edge_of_the_ball() -> None:
    net, x, y = batch((1, 4, 4))
    threat = ThreatModel("linf", 0.05)
    last = MIM(keep="last")(net, x, y, threat=threat, generator=keys(12))
    assert not last.broken.any()
    assert torch.allclose(threat.distance(last.x_adv, x), torch.tensor(0.05), atol=1e-6)
    for attack in (MIM(), MIM(steps=10, early_stop=False)):
        assert attack(net, x, y, threat=threat, generator=keys(12)).broken.any()


def test_diversity_shrinks_as_interpolation_does() -> None:
    """One side of every kind: a resized image at the drawn place, black around it."""
    diversity, draws = InputDiversity(1.0, least=0.5), keys(40)
    x = keys(40, 1).uniform(2, 8, 6)
    out = diversity.changed(x, draws)
    _, share, top, left = draws.uniform(4).unbind(1)
    sizes = set()
    for row in range(40):
        tall, wide = (int((size * (0.5 + 0.5 * share[row])).round()) for size in (8, 6))
        sizes.add(tall)
        first, second = int(top[row] * (8 - tall + 1)), int(left[row] * (6 - wide + 1))
        small = F.interpolate(x[row : row + 1], (tall, wide), mode="bilinear", align_corners=False)
        expected = F.pad(small, (second, 6 - wide - second, first, 8 - tall - first))
        assert torch.allclose(out[row], expected[0], atol=1e-5)
    assert len(sizes) >= 4


@given(seed=st.integers(0, 2**31), probability=st.floats(0, 1), least=st.floats(0.05, 1))
@settings(max_examples=30, deadline=None)
def test_diversity_stays_in_the_range_of_the_image(seed: int, probability: float, least: float) -> None:
    x = keys(5, seed).uniform(1, 5, 7)
    out = InputDiversity(probability, least).changed(x, keys(5, seed + 1))
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= x.max() + 1e-5


def test_diversity_with_probability_zero_changes_nothing() -> None:
    net, x, y = batch((1, 4, 4))
    threat = ThreatModel("linf", 0.1)
    plain = MIM()(net, x, y, threat=threat, generator=keys(12))
    never = MIM(diversity=InputDiversity(0.0))(net, x, y, threat=threat, generator=keys(12))
    always = MIM(diversity=InputDiversity(1.0, 0.5))(net, x, y, threat=threat, generator=keys(12))
    assert torch.equal(plain.x_adv, never.x_adv)
    assert not torch.equal(plain.x_adv, always.x_adv)


def test_diversity_is_keyed_by_example_not_by_batch() -> None:
    net, x, y = batch((3, 5, 4))
    attack = MIM(steps=4, diversity=InputDiversity(0.7, 0.5), smoothing=3)
    threat = ThreatModel("linf", 0.1)
    whole = attack(net, x, y, threat=threat, generator=keys(12))
    rows = torch.tensor([9, 2, 5])
    part = attack(net, x[rows], y[rows], threat=threat, generator=KeyedGenerator(0, rows))
    assert torch.allclose(part.x_adv, whole.x_adv[rows], atol=1e-5)
    assert threat.contains(whole.x_adv, x).all()


def test_smoothing_is_a_gaussian_average() -> None:
    impulse = torch.zeros(1, 2, 9, 9)
    impulse[0, 1, 4, 4] = 1.0
    out = smoothed(impulse, 7)
    assert out[0, 0].abs().max() == 0  # channels apart
    assert float(out.sum()) == pytest.approx(1.0, abs=1e-6)
    ratio = float(out[0, 1, 4, 7] / out[0, 1, 4, 4])
    assert ratio == pytest.approx(float(torch.exp(torch.tensor(-0.5))), abs=1e-5)  # 3 pixels are 1 sigma
    assert float(out[0, 1, 4, 8]) == 0.0
    assert torch.equal(smoothed(impulse, 1), impulse)


def test_a_target_is_pursued() -> None:
    net, x, y = batch((3, 5, 4))
    target = (y + 1) % 4
    found = MIM(steps=20)(
        net, x, ClassificationGoal(y, target=target), threat=ThreatModel("linf", 0.5), generator=keys(12)
    )
    assert found.broken.any()
    assert torch.equal(net(found.x_adv).argmax(1)[found.broken], target[found.broken])


@pytest.mark.parametrize(
    ("settings_", "sentence"),
    [
        ({"steps": 0}, "steps and restarts"),
        ({"decay": -0.1}, "decay"),
        ({"step_size": 0.0}, "step_size"),
        ({"smoothing": 4}, "odd"),
        ({"keep": "last", "restarts": 2}, "restarts=1"),
    ],
)
def test_bad_settings_are_refused(settings_: dict[str, object], sentence: str) -> None:
    with pytest.raises(AttackError, match=sentence):
        MIM(**settings_)  # type: ignore[arg-type]


def test_flat_inputs_cannot_be_resized_or_smoothed() -> None:
    net, x, y = batch((6,))
    for attack in (MIM(diversity=InputDiversity()), MIM(smoothing=3)):
        with pytest.raises(AttackError, match="N, C, H, W"):
            attack(net, x, y, threat=THREATS[0], generator=keys(12))
    with pytest.raises(AttackError, match="any threat but l0"):
        MIM()(net, x, y, threat=ThreatModel("l0", 2), generator=keys(12))
