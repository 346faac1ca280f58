"""Cases with known answers: linear models, exact projections, objectives, cost counters, published intervals."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import ATTACKS, PGD, fgsm, r_fgsm
from robustly.objectives import OBJECTIVES, ClassificationGoal, cross_entropy, margin
from robustly.randomness import KeyedGenerator
from robustly.statistics import Proportion
from robustly.threats.lp import ThreatModel

WEIGHT = torch.tensor([[0.0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0]], dtype=torch.float64)
BIAS = torch.tensor([0, -4.8, -3.9, -3.606], dtype=torch.float64)


def linear(weight: Tensor, bias: Tensor, scale: float = 1.0) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0]).double())
    net[1].weight.data, net[1].bias.data = scale * weight, scale * bias
    return net


def keyed(count: int, seed: int = 0) -> KeyedGenerator:
    return KeyedGenerator(seed, torch.arange(count))


def share_broken(attack: PGD, net: nn.Module, x: Tensor, threat: ThreatModel, target: int | None = None) -> float:
    y = torch.zeros(len(x), dtype=torch.int64)
    goal = ClassificationGoal(y, target=None if target is None else torch.full_like(y, target))
    return float(attack(net, x, goal, threat=threat, generator=keyed(len(x))).broken.double().mean())


@pytest.fixture
def r1() -> nn.Module:
    """Linear, box inactive: radii 0.1 (linf), 0.142836 (l2), 0.15 (l1) around the centre."""
    return linear(WEIGHT, BIAS)


CENTRE = torch.full((60, 1, 2, 2), 0.5, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(OBJECTIVES.values())[:3], ids=list(OBJECTIVES)[:3])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.0999), ("l2", 0.1427), ("l1", 0.1499)])
def test_nothing_breaks_inside_the_certified_radius(r1: nn.Module, objective, norm: str, epsilon: float) -> None:
    assert share_broken(PGD(60, objective, restarts=3), r1, CENTRE, ThreatModel(norm, epsilon)) == 0


@pytest.mark.parametrize(
    "attack", [fgsm(), r_fgsm(), PGD(20, start="none"), PGD(40)], ids=["fgsm", "r_fgsm", "pgd0", "pgd"]
)
def test_cross_entropy_reaches_the_linf_corner(r1: nn.Module, attack: PGD) -> None:
    if attack == r_fgsm():
        attack = PGD(steps=1, relative_step_size=0.5, start="halfway", restarts=200)
    y = torch.zeros(len(CENTRE), dtype=torch.int64)
    found = attack(r1, CENTRE, y, threat=ThreatModel("linf", 0.1005), generator=keyed(60))
    assert found.broken.all()
    with torch.no_grad():
        assert (r1(found.x_adv).argmax(1) == 1).all()


def test_margin_locks_on_the_runner_up_in_linf(r1: nn.Module) -> None:
    assert share_broken(PGD(100, margin, start="none"), r1, CENTRE, ThreatModel("linf", 0.1005)) == 0
    for target, broken in ((1, 1.0), (2, 0.0), (3, 0.0)):
        share = share_broken(PGD(60, margin, start="none"), r1, CENTRE, ThreatModel("linf", 0.1005), target)
        assert share == broken


@pytest.mark.slow
def test_l2_margin_finds_what_cross_entropy_misses(r1: nn.Module) -> None:
    close, wide = ThreatModel("l2", 0.145), ThreatModel("l2", 0.16)
    assert share_broken(PGD(50, margin, start="none"), r1, CENTRE, close) == 1
    slow = PGD(2000, start="none", step_size=0.002)
    assert share_broken(slow, r1, CENTRE[:2], close) == 0
    assert share_broken(slow, r1, CENTRE[:2], wide) == 1


def test_targeted_radius(r1: nn.Module) -> None:
    attack = PGD(60, margin, start="none")
    assert share_broken(attack, r1, CENTRE, ThreatModel("linf", 0.149), target=2) == 0
    assert share_broken(attack, r1, CENTRE, ThreatModel("linf", 0.151), target=2) == 1


def test_one_pixel_is_enough_in_l0(r1: nn.Module) -> None:
    assert share_broken(PGD(20, start="none"), r1, CENTRE, ThreatModel("l0", 1)) == 1
    assert share_broken(PGD(20, start="none"), r1, CENTRE, ThreatModel("l0", 0)) == 0


R2_X = torch.tensor([[0.05, 0.5, 0.5]], dtype=torch.float64)
R2 = (
    torch.tensor([[4.0, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.float64),
    torch.tensor([-1.1, 0, -10, -20], dtype=torch.float64),
)


@pytest.mark.parametrize(("norm", "radius"), [("linf", 2 / 15), ("l2", 0.185742), ("l1", 0.25)])
def test_the_box_is_part_of_the_geometry(norm: str, radius: float) -> None:
    net = linear(*R2)
    for factor, broken in ((0.99, 0.0), (1.01, 1.0)):
        attack = PGD(400, margin, start="none", relative_step_size=0.02)
        assert share_broken(attack, net, R2_X, ThreatModel(norm, factor * radius)) == broken


@pytest.mark.slow
def test_three_pixels_in_r3() -> None:
    gain = torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    net = linear(
        torch.stack([gain / 2, -gain / 2, zero, zero]), torch.tensor([-0.4, 0.4, -50, -60], dtype=torch.float64)
    )
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    for pixels, broken in ((2, 0.0), (3, 1.0)):
        assert share_broken(PGD(30, margin, start="none"), net, x, ThreatModel("l0", pixels)) == broken
    for norm, radius in (("linf", 0.42), ("l2", 0.771825), ("l1", 1.35)):
        attack = PGD(400, margin, start="none", relative_step_size=0.02)
        assert share_broken(attack, net, x, ThreatModel(norm, 0.99 * radius)) == 0
        assert share_broken(attack, net, x, ThreatModel(norm, 1.01 * radius)) == 1


def test_the_l1_projection_is_exact_where_ball_then_clip_is_not() -> None:
    x = torch.tensor([[0.9, 0.2, 0.5]], dtype=torch.float64)
    delta = torch.tensor([[0.5, -0.4, 0.3]], dtype=torch.float64)
    projected = ThreatModel("l1", 0.5).project(x + delta, x) - x
    assert torch.allclose(projected, torch.tensor([[0.1, -0.2, 0.2]], dtype=torch.float64))
    wide = ThreatModel("l1", 0.6).project(x + delta, x) - x
    assert torch.allclose(wide, torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64))


def test_saturated_logits_blind_cross_entropy_but_not_the_margin() -> None:
    net = linear(WEIGHT, BIAS, scale=1e4)
    threat = ThreatModel("linf", 0.11)
    assert share_broken(PGD(50, start="none"), net, CENTRE, threat) == 0
    assert share_broken(PGD(50, OBJECTIVES["probability_margin"], start="none"), net, CENTRE, threat) == 0
    assert share_broken(PGD(50, OBJECTIVES["dlr"], restarts=5), net, CENTRE, threat) > 0.8


@pytest.mark.slow
def test_dead_units_need_random_starts() -> None:
    """R6: exactly zero gradient at the image; a uniform start succeeds with probability 0.1701 per restart."""

    class Dead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = (x[:, 0] + x[:, 1] - 1.1).relu(), (0.4 - x[:, 0]).relu()
            zero = torch.zeros_like(first)
            return torch.stack([0.2 - 2 * first - second, zero, zero - 10, zero - 20], dim=1)

    count = 4000
    x = torch.full((count, 2), 0.5, dtype=torch.float64)
    threat = ThreatModel("linf", 0.12)
    assert share_broken(PGD(20, start="none"), Dead(), x[:10], threat) == 0
    once = share_broken(PGD(40), Dead(), x, threat)
    assert abs(once - 0.1701) < 4 * math.sqrt(0.1701 * 0.8299 / count)
    assert abs(share_broken(PGD(40, restarts=10), Dead(), x[:1000], threat) - 0.845) < 4 * math.sqrt(
        0.845 * 0.155 / 1000
    )
    assert share_broken(PGD(40, restarts=10), Dead(), x[:1000], ThreatModel("linf", 0.099)) == 0


def test_objectives_at_r1(r1: nn.Module) -> None:
    with torch.no_grad():
        logits = r1(CENTRE[:1])
    zero = torch.zeros(1, dtype=torch.int64)
    expected = {"cross_entropy": 0.876063, "margin": -0.606, "dlr": -0.7575, "probability_margin": -0.189251}
    for name, value in expected.items():
        assert float(OBJECTIVES[name](logits, ClassificationGoal(zero))) == pytest.approx(value, abs=1e-6)
    for target, value in ((1, -0.941176), (2, -1.058824), (3, -0.712941)):
        goal = ClassificationGoal(zero, target=torch.full_like(zero, target))
        assert float(OBJECTIVES["dlr"](logits, goal)) == pytest.approx(value, abs=1e-6)
        assert float(margin(logits, goal)) == pytest.approx(float(logits[0, target] - logits[0, 0]))
        assert float(cross_entropy(logits, goal)) == pytest.approx(float(logits.log_softmax(1)[0, target]))


def test_the_gradient_of_cross_entropy_at_r1(r1: nn.Module) -> None:
    x = CENTRE[:1].clone().requires_grad_()
    cross_entropy(r1(x), ClassificationGoal(torch.zeros(1, dtype=torch.int64))).sum().backward()
    assert x.grad is not None
    expected = torch.tensor([2.071544, 1.055724, 0.374218, 0.374218], dtype=torch.float64)
    assert torch.allclose(x.grad.flatten(), expected, atol=1e-6)


def test_kl_and_its_fixture() -> None:
    clean = torch.tensor([[2.0, 0, 0]], dtype=torch.float64)
    attacked = torch.tensor([[0.0, 1, 0]], dtype=torch.float64)
    value = OBJECTIVES["kl"](attacked, ClassificationGoal(torch.zeros(1, dtype=torch.int64), reference=clean))
    assert float(value) == pytest.approx(0.77936505, abs=1e-8)


def test_the_iterates_of_the_toy() -> None:
    """f(x) = x, epsilon 0.1, step 0.04: (.51, .54), (.47, .58), (.45, .60); only the start is right."""
    x = torch.tensor([[0.55, 0.50]], dtype=torch.float64)
    y = torch.zeros(1, dtype=torch.int64)
    threat = ThreatModel("linf", 0.1)
    expected = {0: (0.55, 0.50), 1: (0.51, 0.54), 2: (0.47, 0.58), 3: (0.45, 0.60)}
    for steps, point in expected.items():
        attack = PGD(steps, step_size=0.04, start="none", keep="last")
        found = attack(nn.Identity(), x, y, threat=threat, generator=keyed(1))
        assert torch.allclose(found.x_adv, torch.tensor([point], dtype=torch.float64))
        assert int(found.correct_iterates) == min(steps, 1)
    single = fgsm()(nn.Identity(), x, y, threat=threat, generator=keyed(1))
    assert torch.allclose(single.x_adv, torch.tensor([[0.45, 0.60]], dtype=torch.float64))
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(OBJECTIVES["kl"](point, ClassificationGoal(y, reference=x)).sum(), point)
    assert gradient.abs().max() < 1e-15  # why the KL attack needs a random start


def test_passes_are_counted(r1: nn.Module) -> None:
    """A robust example: one clean forward, then steps + 1 forwards and steps backwards per restart."""
    y = torch.zeros(len(CENTRE), dtype=torch.int64)
    for restarts in (1, 3):
        found = PGD(20, restarts=restarts)(r1, CENTRE, y, threat=ThreatModel("linf", 0.05), generator=keyed(60))
        assert (found.forwards == 1 + 21 * restarts).all()
        assert (found.backwards == 20 * restarts).all()
    wrong = PGD(20)(r1, CENTRE, y + 1, threat=ThreatModel("linf", 0.05), generator=keyed(60))
    assert (wrong.forwards == 1).all()
    assert (wrong.backwards == 0).all()
    training = PGD(10, keep="last")(r1, CENTRE, y, threat=ThreatModel("linf", 0.05), generator=keyed(60))
    assert (training.forwards == 10).all()


def test_counters_agree_with_hooks(r1: nn.Module) -> None:
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        seen += len(output)

    r1.register_forward_hook(count)
    y = torch.zeros(len(CENTRE), dtype=torch.int64)
    found = PGD(20, margin, restarts=2)(r1, CENTRE, y, threat=ThreatModel("linf", 0.1005), generator=keyed(60))
    assert 0 < int(found.broken.sum()) < 60
    assert seen == int(found.forwards.sum())


@pytest.mark.parametrize(
    ("name", "steps"), [("pgd_10", 10), ("pgd_20", 20), ("pgd_50", 50), ("pgd_100", 100), ("cw_20", 20)]
)
def test_presets_are_those_of_the_tables(name: str, steps: int) -> None:
    """Step 2/255 at 8/255, one uniform start, margin for C&W: seen from the outside, on a slope without end."""
    preset = ATTACKS[name]
    assert (preset.steps, preset.restarts, preset.start) == (steps, 1, "random")
    x = torch.full((1, 1, 1, 3), 0.5)
    net = linear(torch.eye(3, dtype=torch.float64), torch.tensor([100.0, 0, 0], dtype=torch.float64)).float()
    one = PGD(1, preset.objective, relative_step_size=preset.relative_step_size, start="none", keep="last")
    found = one(net, x, torch.zeros(1, dtype=torch.int64), threat=ThreatModel("linf", 8 / 255), generator=keyed(1))
    moved = (found.x_adv - x).abs().max() if name == "cw_20" else torch.tensor(2 / 255)
    assert float(moved) == pytest.approx(2 / 255, abs=1e-7)
    assert preset.objective is (margin if name == "cw_20" else cross_entropy)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (50, 100, 0.4038, 0.5962),
        (500, 1000, 0.4691, 0.5309),
        (0, 100, 0, 0.0370),
        (100, 100, 0.9630, 1),
        (1, 10, 0.0179, 0.4042),
        (128, 256, 0.4392, 0.5608),
        (5342, 10000, 0.5244, 0.5440),
    ],
)
def test_wilson_intervals(hits: int, count: int, low: float, high: float) -> None:
    assert Proportion(hits, count).interval == pytest.approx((low, high), abs=5e-5)
