"""The ascent loop and its update rules, against straight-line versions."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustly.attacks import MIM, PGD, Attack, AttackError, SmoothPGD
from robustly.attacks.core.ascent import Ascent
from robustly.attacks.core.contract import frozen
from robustly.attacks.core.search import Search
from robustly.attacks.core.update_rules import Adam, Iterate, Momentum, Noisy, Normalised, Steepest, UpdateRule
from robustly.objectives import ClassificationGoal, cross_entropy, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import small_network
from robustly.threats import ThreatModel, parse_threat

RULES: dict[str, UpdateRule] = {
    "steepest": Steepest(),
    "normalised": Normalised(),
    "momentum": Momentum(0.9),
    "adam": Adam(),
    "noisy": Noisy(Momentum(0.5), 0.01),
}


def batch(count: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    net = small_network((2, 4, 4)).double().eval()
    x = KeyedGenerator(0, torch.arange(count)).uniform(2, 4, 4).double() * 0.8 + 0.1
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def last_point(rule: UpdateRule, steps: int, threat: ThreatModel, rows: Tensor | None = None) -> Tensor:
    net, x, y = batch()
    rows = torch.arange(len(x)) if rows is None else rows
    with frozen(net):
        search = Search(net, x[rows], ClassificationGoal(y[rows]), threat, verdicts=False)
        ascent = Ascent(steps, cross_entropy, lambda step, allowed: 0.3 * allowed.radius, rule, finish="keep")
        everyone = torch.arange(len(rows))
        ascent.run(search, everyone, x[rows], search.goal, KeyedGenerator(4, rows))
    return search.theta


def by_hand(move: Callable[[Tensor, Tensor, int], Tensor], steps: int) -> Tensor:
    """Plain ascent, one example at a time."""
    net, x, y = batch()
    found = []
    for i in range(len(x)):
        point = x[i : i + 1].clone()
        for step in range(steps):
            here = point.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(here), y[i : i + 1]), here)
            point = move(point, gradient, step)
        found.append(point)
    return torch.cat(found)


def test_adam_is_adam() -> None:
    """Torch's optimiser on the scaled gradient, projected after every step."""
    net, x, y = batch()
    threat, rate = ThreatModel("linf", 0.2), 0.3 * 0.2
    expected = []
    for i in range(len(x)):
        point = nn.Parameter(x[i : i + 1].clone())
        optimizer = torch.optim.Adam([point], lr=rate)
        for _ in range(6):
            optimizer.zero_grad()
            (-nn.functional.cross_entropy(net(point), y[i : i + 1])).backward()
            assert point.grad is not None
            point.grad /= point.grad.abs().max()
            optimizer.step()
            with torch.no_grad():
                point.copy_(threat.project(point, x[i : i + 1]))
        expected.append(point.detach())
    assert torch.allclose(last_point(Adam(), 6, threat), torch.cat(expected), atol=1e-9)


def test_normalised_steps_have_euclidean_length() -> None:
    threat, size = ThreatModel("linf", 0.2), 0.3 * 0.2
    _, x, _ = batch()

    def move(point: Tensor, gradient: Tensor, step: int) -> Tensor:
        return (point + size * gradient / gradient.norm()).clamp(0, 1)

    expected = threat.project(by_hand(move, 2), x)
    assert torch.allclose(last_point(Normalised(), 2, threat), expected, atol=1e-9)


def test_momentum_sums_normalised_gradients() -> None:
    threat, size = ThreatModel("l2", 0.5), 0.3 * 0.5
    velocity: dict[int, Tensor] = {}
    calls = 0

    def move(point: Tensor, gradient: Tensor, step: int) -> Tensor:
        nonlocal calls
        example = calls // 4
        calls += 1
        pushed = 0.9 * velocity.get(example, torch.zeros_like(gradient)) + gradient / gradient.abs().sum()
        velocity[example] = pushed
        _, x, _ = batch()
        return threat.project(point + size * pushed / pushed.norm(), x[example : example + 1])

    assert torch.allclose(last_point(Momentum(0.9), 4, threat), by_hand(move, 4), atol=1e-7)


@pytest.mark.parametrize("name", list(RULES))
@settings(max_examples=8, deadline=None)
@given(rows=st.permutations(range(6)).flatmap(lambda p: st.integers(1, 6).map(lambda n: p[:n])))
def test_rules_treat_every_example_alone(name: str, rows: list[int]) -> None:
    threat = ThreatModel("linf", 0.2)
    whole = last_point(RULES[name], 3, threat)
    assert torch.allclose(last_point(RULES[name], 3, threat, torch.tensor(rows)), whole[rows], atol=1e-9)


@pytest.mark.parametrize("name", list(RULES))
def test_rules_climb(name: str) -> None:
    net, x, y = batch()
    point = last_point(RULES[name], 8, ThreatModel("linf", 0.2))
    goal = ClassificationGoal(y)
    assert (margin(net(point), goal) > margin(net(x), goal)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(RULES))
def test_a_zero_gradient_moves_nothing_and_breaks_nothing(name: str, dtype: torch.dtype) -> None:
    """In float16 the number that Adam adds to the root of the second moment is zero."""
    x = torch.full((3, 2, 2), 0.5, dtype=dtype)
    allowed = ThreatModel("linf", 0.2).around(x)
    zero = torch.zeros_like(x)
    draws = KeyedGenerator(0, torch.arange(3))
    rule = RULES[name]
    iterate = Iterate(0, x, zero, allowed, torch.full((3,), 0.1, dtype=dtype), draws, lambda points: zero)
    theta, state = rule.update(rule.init(x), iterate)
    assert theta.isfinite().all()
    assert all(values.isfinite().all() for values in state)
    assert allowed.contains(theta).all()
    if name != "noisy":
        assert torch.equal(theta, x)


class Flat(nn.Module):
    """Logits that do not depend on the image, with a gradient of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0]).to(x) + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 0.5])
@pytest.mark.parametrize(
    ("attack", "text"),
    [
        (MIM(3), "linf:0.1"),
        (MIM(3, smoothing=3), "l2:0.5"),
        (MIM(3), "l1:2"),
        (MIM(3), "hue:0.5"),
        (MIM(3), "flow:0.8"),
        (SmoothPGD(3), "flow:0.8"),
        (SmoothPGD(3, smoothness=0), "flow:0.8"),
        (SmoothPGD(3), "flow:0.5+linf:0.1"),
        (PGD(3, start="none", update="adam"), "saturation:0.5"),
        (PGD(3, start="none", update="normalised"), "rotation:30+hue:0.5"),
    ],
)
def test_a_search_from_a_fixed_start_stays_there_without_a_gradient(
    attack: Attack, text: str, level: float, dtype: torch.dtype
) -> None:
    """Of an image without colour or structure: hues, flows and their roughness have no slope there either."""
    x, ids = torch.full((2, 3, 8, 8), level, dtype=dtype), torch.arange(2)
    found = attack(Flat(), x, torch.zeros(2).long(), threat=parse_threat(text), generator=KeyedGenerator(0, ids))
    assert not found.invalid.any()
    assert not found.broken.any()
    assert torch.equal(found.x_adv, x)
    assert found.zero_gradients is not None
    assert (found.zero_gradients == 3).all()


def test_samples_of_a_gradient_are_passes_and_not_iterates() -> None:
    net, x, y = batch()
    rows, goal = torch.arange(len(x)), ClassificationGoal(y)
    with frozen(net):
        search = Search(net, x, goal, ThreatModel("linf", 0.2))
        search.begin()
        before = search.theta.clone()
        flat = ClassificationGoal(y)
        gradient = search.sample_gradient(x + 0.05, rows, lambda logits, goal: 0 * logits.sum(1), flat)
        assert (gradient == 0).all()
        assert search.forwards.tolist() == [2] * len(x)
        assert search.backwards.tolist() == [1] * len(x)
        assert search.correct_iterates.tolist() == [0] * len(x)
        assert search.zero_gradients.tolist() == [0] * len(x)
        assert torch.equal(search.theta, before)
        search.value_and_grad(x, rows, lambda logits, goal: 0 * logits.sum(1))
        assert search.correct_iterates.tolist() == [1] * len(x)
        assert search.zero_gradients.tolist() == [1] * len(x)


def test_settled_examples_stop_where_they_are() -> None:
    net, x, y = batch()
    with frozen(net):
        search = Search(net, x, ClassificationGoal(y), ThreatModel("linf", 0.2), verdicts=False)
        seen = torch.zeros(len(x), dtype=torch.int64)

        def settled(rows: Tensor, points: Tensor, output: Tensor, goal: object) -> Tensor:
            seen[rows] += 1
            return seen[rows] > rows  # example i stops before its step i + 1

        ascent = Ascent(
            5, cross_entropy, lambda step, allowed: 0.1 * allowed.radius, finish="keep", settled=settled
        )
        ascent.run(search, torch.arange(len(x)), x, search.goal, KeyedGenerator(0, torch.arange(len(x))))
    moved = ((search.theta - x).abs().flatten(1).amax(1) / 0.02).round().int().tolist()
    assert moved == [0, 1, 2, 3, 4, 5]
    assert search.forwards.tolist() == [1, 2, 3, 4, 5, 5]
    assert search.backwards.tolist() == search.forwards.tolist()  # who stops still takes part in that pass


def test_adam_reaches_the_corner_of_a_linear_model() -> None:
    net = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
    x = torch.full((1, 3), 0.5)
    with torch.no_grad():
        y = net(x).argmax(1)
    found = PGD(60, margin, update="adam", start="none", keep="last")(
        net, x, y, threat=ThreatModel("linf", 0.05), generator=KeyedGenerator(0, torch.arange(1))
    )
    with torch.no_grad():
        direction = (net.weight[1 - y[0]] - net.weight[y[0]]).sign()
    assert torch.allclose(found.x_adv[0], x[0] + 0.05 * direction, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "normalised"])
@pytest.mark.parametrize(
    "text", ["rotation:30+shift:2+linf:8/255", "rotation:30&linf:8/255", "affine:rotation=30,shift=2"]
)
def test_rules_step_by_shares_of_each_parameters_range(name: str, text: str) -> None:
    """A step of 0.1 radii moves degrees, pixels and gray values by at most a tenth of their ranges."""
    allowed = parse_threat(text).around(KeyedGenerator(0, torch.arange(3)).uniform(2, 8, 8) * 0.5 + 0.25)
    units = allowed.units().expand_as(allowed.identity())  # type: ignore[attr-defined]
    start, draws = allowed.identity(), KeyedGenerator(1, torch.arange(3))
    gradient = draws.fold("gradient").normal(*start.shape[1:])
    iterate = Iterate(0, start, gradient, allowed, 0.1 * allowed.radius, draws, lambda theta: gradient)
    moved, _ = RULES[name].update(RULES[name].init(start), iterate)
    shares = ((moved - start) / torch.where(units > 0, units, 1.0)).abs()
    assert torch.equal(moved[:, units[0] == 0], start[:, units[0] == 0]), "an order is not moved"
    if name == "adam":  # the first step of Adam is a step along the sign
        assert torch.allclose(shares[:, units[0] > 0], 0.1 * allowed.radius[:, None], rtol=1e-2)
    else:
        assert torch.allclose(torch.linalg.vector_norm(shares, dim=1), 0.1 * allowed.radius, rtol=1e-2)


def test_a_smooth_search_uses_the_roughness_of_a_chains_flow() -> None:
    """The other parts add none; a heavy weight keeps the flow smoother than no weight, in either kind of chain."""
    net = small_network((1, 8, 8)).eval()
    x = KeyedGenerator(0, torch.arange(4)).uniform(1, 8, 8)
    y = net(x).argmax(1)
    for text in ("flow:1+linf:4/255", "flow:1&linf:4/255"):
        threat, draws = parse_threat(text), KeyedGenerator(0, torch.arange(4))
        allowed = threat.around(x)
        assert isinstance(allowed, threat.set_type)
        rough = []
        for weight in (0.0, 10.0):
            attack = SmoothPGD(4, smoothness=weight, relative_step_size=0.2)
            found = attack(net, x, y, threat=threat, generator=draws)
            assert found.theta is not None
            assert bool(allowed.contains(found.theta).all())
            rough.append(allowed.roughness(found.theta))  # type: ignore[attr-defined]
        assert bool((rough[1] < rough[0]).all())
    flow = parse_threat("flow:1").around(x)
    offsets = flow.random_start(KeyedGenerator(3, torch.arange(4)))
    chain = parse_threat("flow:1+linf:4/255").around(x)
    together = torch.cat([offsets.flatten(1), torch.full((4, 64), 0.01)], dim=1)
    assert torch.allclose(chain.roughness(together), flow.roughness(offsets))  # type: ignore[attr-defined]
    with pytest.raises(AttackError, match="any threat with a roughness"):
        SmoothPGD(1)(
            net, x, y, threat=parse_threat("rotation:30+linf:4/255"), generator=KeyedGenerator(0, torch.arange(4))
        )
