"""Black-box attacks on cases with known answers: linear models, a dead network, schedules, estimators' errors."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks.boundary import Boundary
from robustly.attacks.core.contract import Attack, AttackResult
from robustly.attacks.core.gradient_estimators import NES, SPSA
from robustly.attacks.hopskipjump import HopSkipJump
from robustly.attacks.sparse_rs import SparseRS
from robustly.attacks.square import Square
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

NORMAL = torch.tensor([[0.0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0]], dtype=torch.float64)
OFFSET = torch.tensor([0, -4.8, -3.9, -3.606], dtype=torch.float64)
BOXED_X = torch.tensor([0.05, 0.5, 0.5], dtype=torch.float64)
GAIN = torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0]).double())
    net[1].weight.data, net[1].bias.data = weight, bias
    return net


class Dead(nn.Module):
    """R6: no gradient at (1/2, 1/2), and a trap; the boundary is at linf distance 0.1."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.flatten(1).unbind(1)
        down = 2 * (first + second - 1.1).relu() + (0.4 - first).relu()
        zero = torch.zeros_like(down)
        return torch.stack([0.2 - down, zero, zero - 10, zero - 20], dim=1)


R1 = linear(NORMAL, OFFSET)
R2 = linear(
    torch.tensor([[4.0, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.float64),
    torch.tensor([-1.1, 0, -10, -20], dtype=torch.float64),
)
R3 = linear(
    torch.stack([GAIN / 2, -GAIN / 2, 0 * GAIN, 0 * GAIN]),
    torch.tensor([-0.4, 0.4, -50, -60], dtype=torch.float64),
)


def run(attack: Attack, net: nn.Module, x: Tensor, threat: ThreatModel, target: int | None = None) -> AttackResult:
    y = torch.zeros(len(x), dtype=torch.int64)
    goal = ClassificationGoal(y, target=None if target is None else torch.full_like(y, target))
    return attack(net, x, goal, threat=threat, generator=KeyedGenerator(0, torch.arange(len(x))))


def share_broken(attack: Attack, net: nn.Module, x: Tensor, threat: ThreatModel) -> float:
    return float(run(attack, net, x, threat).broken.double().mean())


def images(count: int, *shape: int) -> Tensor:
    return torch.full((count, *shape), 0.5, dtype=torch.float64)


def test_square_finds_the_linf_corner_and_nothing_nearer() -> None:
    """R1: of the first eleven windows, which cover all of this image, half go up. Certified below 0.1."""
    x = images(100, 1, 2, 2)
    assert share_broken(Square(100), R1, x, ThreatModel("linf", 0.1005)) == 1
    assert share_broken(Square(100), R1, x, ThreatModel("linf", 0.0995)) == 0


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.1), ("l2", 0.142836), ("l1", 0.15)])
def test_square_breaks_nothing_inside_the_certified_radius(norm: str, radius: float) -> None:
    assert share_broken(Square(200), R1, images(30, 1, 2, 2), ThreatModel(norm, 0.997 * radius)) == 0


@pytest.mark.parametrize(
    ("norm", "radius", "factor", "least"),
    [("linf", 2 / 15, 1.01, 1.0), ("l2", 0.185742, 1.5, 0.5), ("l1", 0.25, 1.1, 0.5)],
)
def test_square_uses_what_the_box_leaves(norm: str, radius: float, factor: float, least: float) -> None:
    """R2: one coordinate cannot go below 0."""
    x = BOXED_X.repeat(40, 1)
    assert share_broken(Square(300), R2, x, ThreatModel(norm, 0.99 * radius)) == 0
    assert share_broken(Square(300), R2, x, ThreatModel(norm, factor * radius)) >= least


def test_square_escapes_the_trap_of_dead_units_as_often_as_enumerated() -> None:
    """R6: 0.625 per run: a corner is a trap, and half of the starts opposite to it fall into it."""
    count, threat = 2000, ThreatModel("linf", 0.12)
    once = share_broken(Square(60), Dead(), images(count, 1, 1, 2), threat)
    assert abs(once - 0.625) < 4 * math.sqrt(0.625 * 0.375 / count)
    assert share_broken(Square(60, restarts=10), Dead(), images(500, 1, 1, 2), threat) > 0.99
    assert share_broken(Square(60, restarts=3), Dead(), images(500, 1, 1, 2), ThreatModel("linf", 0.099)) == 0


def test_square_halves_its_windows_on_schedule() -> None:
    """R8, for 5,000 queries."""
    spans = [(0, 10), (11, 50), (51, 200), (201, 500), (501, 1000), (1001, 2000), (2001, 4000), (4001, 4999)]
    for times, (first, last) in enumerate(spans):
        for query in (first, last):
            assert Square(5000).share(query) == pytest.approx(0.8 / 2**times)
    stretched = Square(1000, rescale_schedule=True)
    assert [stretched.share(query) for query in (1, 2, 5, 6, 801)] == pytest.approx([0.8, 0.4, 0.4, 0.2, 0.8 / 512])


@pytest.mark.slow
def test_sparse_rs_needs_exactly_as_many_pixels_as_there_are_to_change() -> None:
    """R3: three pixels; R1: one; none is never enough."""
    for x in (images(50, 4), images(50, 1, 2, 2)):
        assert share_broken(SparseRS(150), R3, x, ThreatModel("l0", 2)) == 0
        assert share_broken(SparseRS(150), R3, x, ThreatModel("l0", 3)) == 1
    assert share_broken(SparseRS(60), R1, images(50, 1, 2, 2), ThreatModel("l0", 1)) == 1
    assert share_broken(SparseRS(60), R1, images(50, 1, 2, 2), ThreatModel("l0", 0)) == 0
    assert share_broken(SparseRS(60), R2, BOXED_X.repeat(50, 1), ThreatModel("l0", 1)) == 1


def test_sparse_rs_swaps_fewer_pixels_as_it_goes() -> None:
    attack = SparseRS(10_000)
    shares = [attack.share(query) for query in (0, 49, 50, 199, 200, 999, 1000, 7999, 8000, 9999)]
    assert shares == pytest.approx([0.3 / by for by in (2, 2, 4, 4, 5, 6, 8, 15, 20, 20)])
    assert SparseRS(100).share(99) == pytest.approx(0.3 / 20)


@pytest.mark.parametrize(("norm", "radius"), [("l2", 0.142836), ("linf", 0.1)])
def test_hop_skip_jump_comes_close_to_the_nearest_boundary(norm: str, radius: float) -> None:
    """R1, 20 steps: the median of the distances is at most 1.05 radii, and none is less than one."""
    found = run(HopSkipJump(20), R1, images(5, 1, 2, 2), ThreatModel(norm, radius))
    ratio = found.distance / radius
    assert float(ratio.median()) <= 1.05
    assert float(ratio.min()) > 1 - 1e-5
    assert found.beyond is not None
    with torch.no_grad():
        assert (R1(found.beyond).argmax(1) != 0).all()


def test_decisions_alone_find_what_has_no_gradient() -> None:
    """R6 and R2: exact minima 0.141421 and 0.1, and 2 / 15 with the box in the way."""
    for norm, radius in (("l2", 0.141421), ("linf", 0.1)):
        ratio = run(HopSkipJump(15), Dead(), images(9, 2), ThreatModel(norm, radius)).distance / radius
        assert float(ratio.min()) > 1 - 1e-5
        assert float(ratio.median()) < 1.01
    ratio = run(HopSkipJump(15), R2, BOXED_X.repeat(9, 1), ThreatModel("linf", 0.1)).distance / (2 / 15)
    assert float(ratio.min()) > 1 - 1e-5
    assert float(ratio.median()) < 1.01


def test_a_target_class_has_its_own_boundary() -> None:
    """R1: class 2 is at l2 distance 0.15."""
    ratio = run(HopSkipJump(20), R1, images(5, 1, 2, 2), ThreatModel("l2", 0.15), target=2).distance / 0.15
    assert float(ratio.min()) > 1 - 1e-5
    assert float(ratio.median()) < 1.05


@pytest.mark.slow
def test_the_boundary_walk_comes_closer_with_its_steps() -> None:
    """R1: from wherever noise was adversarial to within a few percent of the nearest boundary it walked along."""
    threat, x = ThreatModel("l2", 0.1), images(9, 1, 2, 2)
    few, many = (run(Boundary(steps), R1, x, threat).distance / 0.142836 for steps in (100, 1500))
    assert float(many.min()) > 1 - 1e-5
    assert (many <= few).all()
    assert float(many.median()) < 1.2 < float(few.median())


@pytest.mark.parametrize(("estimator", "error"), [(SPSA(64, 0.01), 15 / 64), (NES(64, 0.01), 17 / 64)])
def test_estimators_err_as_much_as_the_variance_says_and_no_more(estimator: NES | SPSA, error: float) -> None:
    """R10: relative squared error (d - 1) / n and (d + 1) / n on a linear objective with d = 16, and no bias."""
    trials, gradient = 4000, torch.linspace(-1, 2, 16, dtype=torch.float64)
    points = torch.zeros(trials, 16, dtype=torch.float64)
    estimate, forwards, backwards = estimator(
        lambda x: (x @ gradient)[:, None],
        points,
        lambda logits: logits[:, 0],
        KeyedGenerator(0, torch.arange(trials)),
    )
    square = gradient.square().sum()
    assert float(((estimate - gradient).square().sum(1) / square).mean()) == pytest.approx(error, rel=0.05)
    assert (forwards, backwards) == (128, 0)
    deviation = math.sqrt(float(square) / 64 / trials)  # of the mean of one coordinate, at most about this
    assert float((estimate.mean(0) - gradient).abs().max()) < 5 * deviation
