"""Black-box attacks: the contract, no gradients, budgets, and what their moves may do."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustly.attacks import PGD
from robustly.attacks.boundary import Boundary
from robustly.attacks.core.contract import Attack, AttackError
from robustly.attacks.core.gradient_estimators import NES, SPSA, Averaged
from robustly.attacks.hopskipjump import HopSkipJump
from robustly.attacks.sparse_rs import SparseRS
from robustly.attacks.square import Grid, Square, bump
from robustly.data import Splits
from robustly.objectives import ClassificationGoal, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack
from robustly.threats.lp import ThreatModel

BLIND: list[tuple[Attack, tuple[ThreatModel, ...]]] = [
    (Square(12), (ThreatModel("linf", 0.05), ThreatModel("l2", 0.3), ThreatModel("l1", 0.8))),
    (Square(6, restarts=2, rescale_schedule=True), (ThreatModel("linf", 0.05),)),
    (SparseRS(12), (ThreatModel("l0", 1), ThreatModel("l0", 30))),
    (HopSkipJump(2, evaluations=8, tries=9), (ThreatModel("linf", 0.05), ThreatModel("l2", 0.3))),
    (Boundary(25, tries=9), (ThreatModel("l2", 0.3),)),
    (PGD(2, estimator=NES(4, 0.01)), (ThreatModel("linf", 0.05),)),
    (PGD(2, estimator=SPSA(4, 0.01)), (ThreatModel("l2", 0.3),)),
]
NAMES = [f"{type(attack).__name__}{place}" for place, (attack, _) in enumerate(BLIND)]


def keyed(count: int, seed: int = 0) -> KeyedGenerator:
    return KeyedGenerator(seed, torch.arange(count))


class Asked(nn.Module):
    """A network that records its inputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.points = net, []

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.clone())
        logits: Tensor = self.net(x)
        return logits


def random_net(*shape: int) -> tuple[nn.Module, Callable[[int], tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    size = int(torch.tensor(shape).prod())
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 20), nn.ReLU(), nn.Linear(20, 5)).eval()

    def data(count: int) -> tuple[Tensor, Tensor]:
        x = keyed(count, 3).uniform(*shape) * 0.4 + 0.3
        with torch.no_grad():
            return x, net(x).argmax(1)

    return net, data


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "threats"), BLIND, ids=NAMES)
def test_attacks_hold_the_contract(attack: Attack, threats: tuple[ThreatModel, ...]) -> None:
    check_attack(attack, threats, targeted=True)


def test_averaged_gradients_hold_the_contract() -> None:
    check_attack(PGD(2, estimator=Averaged(2)), (ThreatModel("linf", 0.05),), targeted=True)


@pytest.mark.parametrize(("attack", "threats"), BLIND, ids=NAMES)
def test_nothing_ever_goes_backward(
    attack: Attack, threats: tuple[ThreatModel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a gradient was asked for")

    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            logits: Tensor = net(x)
            return logits

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(Tensor, "backward", refuse)
    net, data = random_net(1, 6, 6)
    x, y = data(5)
    for threat in threats:
        found = attack(Opaque(), x, y, threat=threat, generator=keyed(5))
        assert int(found.backwards.sum()) == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_a_robust_example_costs_the_queries_a_start_and_the_clean_pass(norm: str) -> None:
    net, data = random_net(1, 6, 6)
    x, y = data(4)
    attack: Attack = SparseRS(70, restarts=2) if norm == "l0" else Square(70, restarts=2)
    hard = net[3]
    hard.bias.data[y[0]] += 100  # one class is certain, whatever the image
    found = attack(
        net, x, y[:1].expand(4), threat=ThreatModel(norm, 1e-3 if norm != "l0" else 1), generator=keyed(4)
    )
    assert not found.broken.any()
    assert (found.forwards == 1 + 2 * 71).all()


def test_square_moves_every_value_by_epsilon_or_not_at_all() -> None:
    """Away from the box, under linf; the start moves all of them, and nothing ever moves one back."""
    net, data = random_net(3, 7, 5)
    x, y = data(20)
    asked = Asked(net)
    Square(80)(asked, x, y, threat=ThreatModel("linf", 0.01), generator=keyed(20))
    assert len(asked.points) > 50
    for points in asked.points[1:]:
        nearest = (points[:, None] - x[None]).abs().flatten(2).amax(2).argmin(1)
        assert torch.allclose((points - x[nearest]).abs(), torch.tensor(0.01), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_margin_that_is_returned_grows_with_the_queries(norm: str) -> None:
    net, data = random_net(1, 6, 6)
    x, y = data(8)
    attack: Square | SparseRS = SparseRS(1) if norm == "l0" else Square(1)
    threat = ThreatModel(norm, {"linf": 0.02, "l2": 0.1, "l1": 0.3, "l0": 2}[norm])
    before = torch.full((8,), -torch.inf)
    for queries in (0, 5, 30, 90):
        found = replace(attack, queries=queries)(net, x, y, threat=threat, generator=keyed(8))
        with torch.no_grad():
            reached, clean = (margin(net(points), ClassificationGoal(y)) for points in (found.x_adv, x))
        assert found.margin is not None
        assert torch.allclose(torch.maximum(reached, clean), found.margin, atol=1e-5)
        if norm != "l0":  # whose schedule follows the number of queries, so that fewer are no beginning of more
            assert (reached >= before - 1e-6).all()
            before = reached


@pytest.mark.parametrize("shape", [(1, 4, 9), (3, 8, 5), (12,), (7,), (2, 10), (2, 3, 4, 5)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_searches_images_of_any_shape(shape: tuple[int, ...], norm: str) -> None:
    net, data = random_net(*shape)
    x, y = data(6)
    epsilon = {"linf": 0.3, "l2": 1.5, "l1": 4.0}[norm]
    threat = ThreatModel(norm, epsilon)
    found = Square(100)(net, x, y, threat=threat, generator=keyed(6))
    assert found.x_adv.shape == x.shape
    assert threat.contains(found.x_adv, x).all()
    assert found.broken.any()


@given(height=st.integers(1, 9), width=st.integers(1, 9), data=st.data())
@settings(max_examples=40, deadline=None)
def test_windows_are_drawn_from_all_places_and_stay_inside(height: int, width: int, data: st.DataObject) -> None:
    tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    grid = Grid(2, height, width)
    last = 1 - 2.0**-24
    ends = torch.tensor([[0.0, 0.0], [last, last]])
    first, final = grid.windows(ends, tall, wide)
    assert int(first.min()) == 0
    assert int(final.max()) == 2 * height * width - 1
    anywhere = grid.windows(keyed(4000).uniform(2), tall, wide)
    touched = torch.zeros(4000, 2 * height * width).scatter(1, anywhere.flatten(1), 1.0)
    assert (touched.sum(1) == 2 * tall * wide).all()
    assert anywhere.flatten(1)[:, 0].unique().numel() == (height - tall + 1) * (width - wide + 1)


@given(side=st.integers(1, 12), power=st.sampled_from([1, 2]))
@settings(max_examples=24, deadline=None)
def test_bumps_have_unit_norm_and_two_halves_of_opposite_sign(side: int, power: int) -> None:
    window = bump(side, power, torch.zeros(1, dtype=torch.float64))
    assert float(torch.linalg.vector_norm(window, power)) == pytest.approx(1)
    assert (window[: side // 2] > 0).all()
    assert (window[side // 2 :] < 0).all()


@given(pixels=st.integers(1, 24), alpha=st.sampled_from([0.3, 1.0]), channels=st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_sparse_rs_never_asks_about_more_pixels_than_allowed(pixels: int, alpha: float, channels: int) -> None:
    """And only about corner colours."""
    net, data = random_net(channels, 4, 5)
    x, y = data(3)
    x[:, :, ::2] = x[:, :, ::2].round()
    asked = Asked(net)
    SparseRS(30, alpha_init=alpha)(asked, x[:1], y[:1], threat=ThreatModel("l0", pixels), generator=keyed(1))
    for points in asked.points[1:]:
        changed = (points != x[:1]).any(1)
        assert int(changed.sum()) <= pixels
        where = changed[:, None].expand_as(points)
        assert ((points == 0) | (points == 1))[where].all()


def test_a_single_pixel_that_is_swapped_in_takes_another_colour() -> None:
    """On black and white images half of the questions would be wasted otherwise; only the start may be."""
    net, data = random_net(1, 4, 5)
    x, y = data(1)
    x = x.sub(0.5).sign().add(1) / 2
    y = net(x).argmax(1)
    net[3].bias.data[y] += 100
    asked = Asked(net)
    SparseRS(40)(asked, x, y, threat=ThreatModel("l0", 1), generator=keyed(1))
    assert len(asked.points) == 42
    assert all(int((points != x).sum()) == 1 for points in asked.points[2:])


def test_examples_with_other_budgets_draw_no_other_pixels() -> None:
    net, data = random_net(3, 6, 6)
    x, y = data(5)
    epsilon = torch.tensor([1.0, 12, 30, 4, 12])
    attack = SparseRS(70, alpha_init=1.0)
    for hardened in (0.0, 5.0):
        labels = y.clone()
        net[3].bias.data[0] += hardened
        together = attack(net, x, labels, threat=ThreatModel("l0", epsilon), generator=keyed(5))
        for row in range(5):
            one = torch.tensor([row])
            alone = attack(
                net, x[one], labels[one], threat=ThreatModel("l0", epsilon[one]), generator=KeyedGenerator(0, one)
            )
            assert torch.equal(alone.x_adv, together.x_adv[one])


def test_finite_differences_do_not_depend_on_how_many_fit_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = random_net(1, 6, 6)
    x, y = data(3)
    found = []
    for at_once in (1, 24, 100_000):
        monkeypatch.setattr("robustly.attacks.core.gradient_estimators.AT_ONCE", at_once)
        asked = Asked(net)
        gradient, forwards, _ = NES(7, 0.01)(
            asked, x, lambda logits: logits.gather(1, y[:, None])[:, 0], keyed(3).fold("here")
        )
        assert forwards == 14
        assert max(map(len, asked.points)) <= max(at_once, 6)
        assert sum(map(len, asked.points)) == 3 * 14
        found.append(gradient)
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert torch.allclose(found[0], found[2], atol=1e-4)


@pytest.mark.slow
def test_estimated_gradients_break_digits(
    digits: Splits, digit_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.autograd, "grad")
    x, y = digits.test.floats()[:10], digits.test.labels[:10]
    attack = PGD(20, margin, estimator=NES(50, 0.01))
    found = attack(digit_net, x, y, threat=ThreatModel("linf", 0.3), generator=keyed(10))
    assert float(found.broken.double().mean()) >= 0.8


@pytest.mark.slow
def test_square_and_decisions_break_digits(digits: Splits, digit_net: nn.Module) -> None:
    x, y = digits.test.floats()[:12], digits.test.labels[:12]
    square = Square(200)(digit_net, x, y, threat=ThreatModel("linf", 0.3), generator=keyed(12))
    assert float(square.broken.double().mean()) >= 0.8
    with torch.no_grad():
        correct = digit_net(x).argmax(1) == y
    jumps = HopSkipJump(4, evaluations=40)(digit_net, x, y, threat=ThreatModel("l2", 1.0), generator=keyed(12))
    assert jumps.distance[correct].isfinite().all()
    assert float(jumps.distance[correct].median()) < 4


def test_a_class_that_no_noise_belongs_to_leaves_examples_standing() -> None:
    """Within the budget of starts, and no further."""
    net, data = random_net(1, 6, 6)
    x, y = data(4)
    net[3].bias.data[int(y[0])] += 100
    for attack in (HopSkipJump(3, tries=7), Boundary(9, tries=7)):
        found = attack(net, x, y[:1].expand(4), threat=ThreatModel("l2", 1.0), generator=keyed(4))
        assert not found.broken.any()
        assert found.distance.isinf().all()
        assert (found.forwards == 1 + 7).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Square(-1), "queries must be at least 0"),
        (lambda: Square(restarts=0), "restarts at least 1"),
        (lambda: Square(p_init=0), "p_init must be a share"),
        (lambda: SparseRS(alpha_init=1.5), "alpha_init must be a share"),
        (lambda: SparseRS(queries=-3), "queries must be at least 0"),
        (lambda: HopSkipJump(steps=0), "steps must be at least 1"),
        (lambda: HopSkipJump(gamma=0), "gamma must be a positive number"),
        (lambda: Boundary(steps=0), "steps and tries must be at least 1"),
        (lambda: Boundary(source_step=1), "source_step in \\(0, 1\\)"),
        (lambda: NES(0), "samples must be at least 1"),
        (lambda: SPSA(sigma=0), "sigma must be a positive number"),
        (lambda: Averaged(0), "draws must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused_with_what_is_allowed(make: Callable[[], object], words: str) -> None:
    with pytest.raises(AttackError, match=words):
        make()


@pytest.mark.parametrize("attack", [Square(3), SparseRS(3), HopSkipJump(1), Boundary(1)])
def test_norms_that_an_attack_is_not_for_are_refused(attack: Attack) -> None:
    net, data = random_net(1, 4, 4)
    x, y = data(2)
    for norm in {"linf", "l2", "l1", "l0"} - set(attack.needs.norms):
        with pytest.raises(AttackError, match="this attack is defined for"):
            attack(net, x, y, threat=ThreatModel(norm, 1), generator=keyed(2))
