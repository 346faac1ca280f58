"""Minimum-norm attacks where the smallest distance is known: linear models, dead units, an exhaustive search."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import Attack, AttackResult
from robustly.attacks.ddn import DDN
from robustly.attacks.deepfool import DeepFool
from robustly.attacks.fab import FAB
from robustly.attacks.fmn import FMN
from robustly.objectives import ClassificationGoal, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel


def doubles(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0]).double())
    net[1].weight.data, net[1].bias.data = weight, bias
    return net


class Dead(nn.Module):
    """Exactly zero gradient at (1/2, 1/2)."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = (x[:, 0] + x[:, 1] - 1.1).relu(), (0.4 - x[:, 0]).relu()
        zero = torch.zeros_like(first)
        return torch.stack([0.2 - 2 * first - second, zero, zero - 10, zero - 20], dim=1)


WEIGHT = doubles([0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0])
BIAS = doubles(0, -4.8, -3.9, -3.606)


def inactive_box(scale: float = 1.0) -> nn.Module:
    return linear(scale * WEIGHT, scale * BIAS)


def active_box() -> nn.Module:
    return linear(doubles([4, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]), doubles(-1.1, 0, -10, -20))


def saturation() -> nn.Module:
    gain = doubles(4, 3, 2, 1)
    return linear(
        torch.stack([gain / 2, -gain / 2, torch.zeros_like(gain), torch.zeros_like(gain)]),
        doubles(-0.4, 0.4, -50, -60),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, float]]] = {
    "inactive box": (
        inactive_box,
        torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64),
        {"linf": 0.1, "l2": 0.606 / 18**0.5, "l1": 0.15, "l0": 1},
    ),
    "active box": (active_box, doubles([0.05, 0.5, 0.5]), {"linf": 2 / 15, "l2": 0.0345**0.5, "l1": 0.25, "l0": 1}),
    "saturation": (saturation, doubles([0.5] * 4), {"linf": 0.42, "l2": 0.7718246, "l1": 1.35, "l0": 3}),
    "dead units": (Dead, doubles([0.5] * 2), {"linf": 0.1, "l2": 0.02**0.5, "l1": 0.2, "l0": 1}),
}


def attacked(
    attack: Attack,
    model: str,
    norm: str,
    epsilon: float = 0.0,
    target: int | None = None,
    scale: float | None = None,
) -> AttackResult:
    """The result, once it has been seen that no distance is below the known smallest one, and none is made up."""
    make, x, nearest = MODELS[model]
    net = make() if scale is None else inactive_box(scale)
    y = torch.zeros(1, dtype=torch.int64)
    goal = ClassificationGoal(y, target=None if target is None else torch.full_like(y, target))
    threat = ThreatModel(norm, epsilon)
    found = attack(net, x, goal, threat=threat, generator=KeyedGenerator(0, torch.arange(1)))
    distance = float(found.distance)
    assert distance >= nearest[norm] * (1 - 1e-6)
    if distance < torch.inf:
        assert found.beyond is not None
        assert found.beyond.min() >= 0
        assert found.beyond.max() <= 1
        assert float(threat.distance(found.beyond, x)) == pytest.approx(distance)
        with torch.no_grad():
            assert int(net(found.beyond).argmax(1)) != 0
    return found


def ratio(attack: Attack, model: str, norm: str) -> float:
    """Distance found over the smallest there is."""
    return float(attacked(attack, model, norm).distance) / MODELS[model][2][norm]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.slow
def test_fmn_finds_the_smallest_distance(model: str, norm: str) -> None:
    """Also with an active box and without a slope, where the published algorithm stalls."""
    assert ratio(FMN(), model, norm) < 1.0003


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmn_with_many_targets_and_starts_is_no_worse(norm: str) -> None:
    assert ratio(FMN(50, targets=3, restarts=3), "inactive box", norm) < 1.001


def test_fmn_without_targets_settles_on_the_runner_up() -> None:
    """Class 3 has the largest logit; in linf class 1 and in l1 class 2 is nearer."""
    for norm, expected in (("l2", 0.14284), ("linf", 0.101), ("l1", 0.202)):
        assert float(attacked(FMN(targets=0), "inactive box", norm).distance) == pytest.approx(expected, rel=3e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_is_at_its_best_after_two_steps_on_a_linear_model(norm: str) -> None:
    for steps, expected in ((1, 1.05), (2, 1.005213), (40, 1.005213)):
        assert ratio(FAB(steps), "inactive box", norm) == pytest.approx(expected, abs=1e-5)
        assert ratio(FAB(steps, targets=3), "inactive box", norm) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [FAB(), FAB(targets=1)], ids=["fab", "fab_t"])
def test_fab_projects_inside_the_box(attack: FAB) -> None:
    for norm, expected in (("linf", 0.134028), ("l2", 0.186672), ("l1", 0.251118)):
        assert float(attacked(attack, "active box", norm).distance) == pytest.approx(expected, abs=1e-6)
        assert ratio(attack, "saturation", norm) < 1.0053


@pytest.mark.parametrize("stop_inside", [False, True])
def test_fab_at_a_fixed_epsilon_needs_half_a_percent_more(stop_inside: bool) -> None:
    attack = FAB(20, stop_inside=stop_inside)
    for norm in ("linf", "l1"):
        smallest = MODELS["inactive box"][2][norm]
        for factor, broken in ((1.005, False), (1.006, True)):
            found = attacked(attack, "inactive box", norm, epsilon=factor * smallest)
            assert bool(found.broken) == broken
            assert (int(found.forwards) < 41) == (broken and stop_inside)


def test_fab_without_a_slope_needs_restarts() -> None:
    stuck = attacked(FAB(), "dead units", "linf", epsilon=0.12)
    assert float(stuck.distance) == torch.inf
    assert int(stuck.forwards) == 2  # and sees at once that it is stuck
    x = torch.full((60, 2), 0.5, dtype=torch.float64)
    found = FAB(10, restarts=20)(
        Dead(),
        x,
        torch.zeros(60, dtype=torch.int64),
        threat=ThreatModel("linf", 0.3),
        generator=KeyedGenerator(0, torch.arange(60)),
    )
    assert found.broken.double().mean() > 0.9
    assert (found.distance >= 0.1 - 1e-9).all()
    assert found.distance.min() < 0.1006


def test_deepfool_is_done_in_one_step_on_a_linear_model() -> None:
    for norm in ("l2", "linf"):
        smallest = MODELS["inactive box"][2][norm]
        found = attacked(DeepFool(), "inactive box", norm)
        assert smallest <= float(found.distance) <= 1.02 * (smallest + 1e-4) + 1e-9
        assert int(found.backwards) == 3  # K - 1
        with torch.no_grad():
            assert int(inactive_box()(found.beyond).argmax(1)) == (3 if norm == "l2" else 1)
        for model in ("active box", "saturation"):
            assert ratio(DeepFool(), model, norm) < 1.03
        assert float(attacked(DeepFool(), "dead units", norm).distance) == torch.inf


@pytest.mark.slow
def test_ddn_converges_to_what_is_best_for_its_objective() -> None:
    assert float(attacked(DDN(1000), "inactive box", "l2").distance) == pytest.approx(0.15578, abs=2e-5)
    assert ratio(DDN(300, objective=margin), "inactive box", "l2") < 1.002
    for attack in (DDN(300), DDN(300, objective=margin)):
        assert ratio(attack, "active box", "l2") < 1.0005
        assert ratio(attack, "saturation", "l2") < 1.0005


def test_ddn_goes_in_a_random_direction_where_there_is_no_slope() -> None:
    found = attacked(DDN(), "dead units", "l2")
    assert float(found.distance) < torch.inf
    assert int(found.zero_gradients) >= 1


@pytest.mark.slow
def test_saturated_logits_do_not_blind_what_climbs_the_margin() -> None:
    for attack in (FMN(), FAB(5), FAB(5, targets=3), DeepFool(), DDN(300, objective=margin)):
        for norm in set(attack.needs.norms) - {"l0"}:
            found = attacked(attack, "inactive box", norm, scale=1e4)
            assert float(found.distance) < 1.022 * MODELS["inactive box"][2][norm]


@pytest.mark.parametrize("attack", [FMN(), FAB(10), FAB(10, targets=2), DDN(200, objective=margin)])
def test_a_target_has_its_own_distance(attack: Attack) -> None:
    """Class 2: 0.15 in every norm; moving the other pixels as well would reach class 1 first."""
    for norm in set(attack.needs.norms) - {"l0"}:
        found = attacked(attack, "inactive box", norm, target=2)
        assert 0.15 - 1e-9 <= float(found.distance) < 0.15 * 1.0054
        with torch.no_grad():
            assert int(inactive_box()(found.beyond).argmax(1)) == 2


SIDE = torch.linspace(0, 1, 2001)
SLACK = 1.5e-3  # three times the spacing of the grid


def small_net(seed: int) -> nn.Module:
    """2-4-3 ReLU, each unit's edge through a random point of the box."""
    draws = KeyedGenerator(seed, torch.arange(1))
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    weight = draws.normal(4, 2)[0].double() * 2
    net[0].weight.data = weight
    net[0].bias.data = -(weight * draws.fold("edge").uniform(4, 2)[0].double()).sum(1)
    net[2].weight.data = draws.fold("out").normal(3, 4)[0].double()
    net[2].bias.data = 0.3 * draws.fold("bias").normal(3)[0].double()
    return net.requires_grad_(False)


def exhaustive(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Smallest distances to another prediction, from four million points of the box."""
    hidden = [
        (SIDE[:, None] * float(a) + (SIDE[None] * float(b) + float(c))).relu_()
        for (a, b), c in zip(net[0].weight, net[0].bias, strict=True)
    ]
    first, second, third = (
        sum((unit * float(weight) for weight, unit in zip(row, hidden, strict=True)), torch.tensor(float(bias)))
        for row, bias in zip(net[2].weight, net[2].bias, strict=True)
    )
    runner = torch.where(third > second, 2, 1).to(torch.int8)
    prediction = torch.where(torch.maximum(second, third) > first, runner, torch.zeros_like(runner))
    nearest: dict[str, list[float]] = {"linf": [], "l2": [], "l1": []}
    for point, label in zip(x, y, strict=True):
        row, column = (prediction != int(label)).nonzero(as_tuple=True)
        a, b = (SIDE[row] - float(point[0])).abs(), (SIDE[column] - float(point[1])).abs()
        for norm, distance in (("linf", torch.maximum(a, b)), ("l2", torch.hypot(a, b)), ("l1", a + b)):
            nearest[norm].append(float(distance.min()) if len(distance) else torch.inf)
    return {norm: doubles(*values) for norm, values in nearest.items()}


@pytest.mark.slow
def test_small_networks_against_an_exhaustive_search() -> None:
    """No distance is below the true one; the best of the attacks is within 2 % of it nearly always."""
    attacks = (FMN(30, targets=0, restarts=6), FAB(4, restarts=2), DDN(20))
    exact = total = 0
    for seed in range(7):
        net, x = small_net(seed), KeyedGenerator(seed, torch.arange(9)).fold("x").uniform(2).double()
        y = net(x).argmax(1)
        for norm, smallest in exhaustive(net, x, y).items():
            best = torch.full_like(smallest, torch.inf)
            for attack in attacks:
                if norm not in attack.needs.norms:
                    continue
                draws = KeyedGenerator(0, torch.arange(len(x)))
                found = attack(net, x, y, threat=ThreatModel(norm, 0.5), generator=draws).distance
                assert (found >= smallest - SLACK).all()
                best = torch.minimum(best, found)
            exact += int((best <= 1.02 * smallest + SLACK).sum())
            total += len(x)
    assert exact >= 0.95 * total, exact
