"""Balls: every move stays allowed, whatever the shape, the box, the layout and the number format."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.balls import L0_STEP_SHARE, L1_STEP_SHARE, LpBall
from robustly.threats.lp import NORMS, ThreatModel

SHARE = {"linf": 0.1, "l2": 0.8, "l1": 2.0, "l0": 2}  # of the width of the box; l0: pixels
TINY = {"linf": 0.001, "l2": 0.002, "l1": 0.05, "l0": 1}
BOXES = [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-2.2, 2.7)]


def images(shape: tuple[int, ...], box: tuple[float, float], seed: int, count: int = 5) -> Tensor:
    """Images of which about a fifth of the values sit on a face of the box."""
    low, high = box
    values = KeyedGenerator(seed, torch.arange(count)).uniform(*shape) * 1.25 - 0.125
    return (values * (high - low) + low).clamp(low, high)


def around(norm: str, x: Tensor, box: tuple[float, float], share: float | None = None) -> LpBall:
    share = SHARE[norm] if share is None else share
    return ThreatModel(norm, share if norm == "l0" else share * (box[1] - box[0]), box).around(x)


@pytest.mark.parametrize("box", BOXES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=20)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    seed=st.integers(0, 2**20),
    factor=st.sampled_from([0.1, 1.0, 30.0]),
    share=st.sampled_from([SHARE, TINY]),
)
def test_starts_steps_and_projections_are_allowed(
    norm: str, box: tuple[float, float], shape: tuple[int, ...], seed: int, factor: float, share: dict[str, float]
) -> None:
    x = images(shape, box, seed)
    ball = around(norm, x, box, share[norm])
    generator = KeyedGenerator(seed, torch.arange(len(x)))
    gradient = generator.fold("gradient").normal(*shape) * torch.logspace(-8, 8, 5).reshape(-1, *[1] * len(shape))
    start = ball.random_start(generator)
    stepped = ball.step(start, gradient, factor * ball.default_step_size(5))
    thrown = ball.project(x + factor * (box[1] - box[0]) * generator.fold("throw").normal(*shape))
    for point in (x, start, stepped, thrown):
        assert point.shape == x.shape
        assert point.dtype == x.dtype
        assert ball.contains(point).all()
        assert ball.contains(ball.project(point)).all()
        assert torch.allclose(ball.project(point), point, atol=1e-5 * (box[1] - box[0]))


@pytest.mark.parametrize(("norm", "radius"), [("l2", 0.5), ("l1", 1), ("l1", 12)])
def test_projections_of_large_images_do_not_lose_digits(norm: str, radius: float) -> None:
    """150,528 values, as ImageNet's: sums in float32 would be off by more than the radius allows."""
    x = images((3, 224, 224), (0.0, 1.0), 0, count=3)
    threat = ThreatModel(norm, radius)
    noise = KeyedGenerator(0, torch.arange(3)).normal(3, 224, 224)
    for size in (0.01, 3.0):
        projected = threat.project(x + size * noise, x)
        assert threat.contains(projected, x).all()
        assert threat.distance(projected.double(), x.double()).tolist() == pytest.approx([radius] * 3, rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_what_lies_outside_is_not_allowed(norm: str) -> None:
    x = torch.full((1, 3, 4, 4), 0.5)
    ball = around(norm, x, (0.0, 1.0))
    edge = x.clone()
    if norm == "l0":
        edge.flatten(2)[:, 0, :2] = 1.0
    elif norm == "linf":
        edge += 0.1
    elif norm == "l2":
        edge += 0.8 / 48**0.5
    else:
        edge += 2 / 48
    assert ball.contains(edge).all()
    further = x + (edge - x) * 1.0001
    if norm == "l0":
        further = edge.clone()
        further[0, 2, 3, 3] += 1e-7
    assert not ball.contains(further).any()
    beyond = x.clone()
    beyond[0, 0, 0, 0] = 1.0 + 1e-6
    assert not ThreatModel(norm, 1 if norm != "l0" else 16).contains(beyond, x).any()
    assert not ball.contains(torch.full_like(x, torch.nan)).any()


@pytest.mark.parametrize("norm", NORMS)
def test_distances(norm: str) -> None:
    x = torch.full((2, 3, 2, 2), 0.5)
    moved = x.clone()
    moved[0, :, 0, 0] += 0.3  # one pixel in three channels
    moved[0, 1, 1, 1] -= 0.4
    expected = {"linf": 0.4, "l2": (3 * 0.09 + 0.16) ** 0.5, "l1": 1.3, "l0": 2.0}
    distance = around(norm, x, (0.0, 1.0)).size(moved)
    assert distance.tolist() == pytest.approx([expected[norm], 0.0], abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_radius_and_a_zero_gradient_move_nothing(norm: str) -> None:
    x = images((2, 3, 3), (0.0, 1.0), 0)
    generator = KeyedGenerator(0, torch.arange(len(x)))
    point = around(norm, x, (0.0, 1.0), share=0)
    assert torch.equal(point.random_start(generator), x)
    assert torch.equal(point.step(x, generator.normal(2, 3, 3), torch.ones(len(x))), x)
    ball = around(norm, x, (0.0, 1.0))
    assert torch.equal(ball.step(x, torch.zeros_like(x), torch.ones(len(x))), x)


@pytest.mark.parametrize("norm", NORMS)
def test_some_of_the_balls(norm: str) -> None:
    x = images((3, 4), (0.0, 1.0), 1, count=6)
    radius = torch.tensor([1.0, 2, 3, 4, 5, 0]) * (1 if norm == "l0" else 0.1)
    rows = torch.tensor([5, 0, 3])
    generator = KeyedGenerator(2, torch.arange(6))
    whole, part = ThreatModel(norm, radius).around(x), ThreatModel(norm, radius).around(x).select(rows)
    gradient = generator.normal(3, 4)
    step_size = whole.default_step_size(3)
    assert torch.equal(part.default_step_size(3), step_size[rows])
    assert torch.equal(part.random_start(generator.select(rows)), whole.random_start(generator)[rows])
    moved = whole.step(x, gradient, step_size)
    assert torch.allclose(part.step(x[rows], gradient[rows], step_size[rows]), moved[rows], atol=1e-6)
    assert torch.equal(part.size(moved[rows]), whole.size(moved)[rows])
    assert torch.equal(part.contains(moved[rows] + 0.01), whole.contains(moved + 0.01)[rows])


@pytest.mark.parametrize("norm", NORMS)
def test_channels_last_stays_channels_last(norm: str) -> None:
    x = images((3, 4, 5), (0.0, 1.0), 3).to(memory_format=torch.channels_last)
    ball = around(norm, x, (0.0, 1.0))
    generator = KeyedGenerator(0, torch.arange(len(x)))
    start = ball.random_start(generator)
    gradient = generator.normal(3, 4, 5).to(memory_format=torch.channels_last)
    stepped = ball.step(start, gradient, ball.default_step_size(5))
    for point in (start, stepped, ball.project(x + 0.3)):
        assert point.is_contiguous(memory_format=torch.channels_last)
    plain = around(norm, x.contiguous(), (0.0, 1.0))
    assert torch.equal(plain.random_start(generator), start)


def test_steps_go_in_the_steepest_direction_of_their_norm() -> None:
    x = torch.full((1, 200), 0.5)
    gradient = torch.linspace(-1, 2, 200)[None]
    size = torch.tensor([0.01])
    unit = {norm: (around(norm, x, (0.0, 1.0)).step(x, gradient, size) - x) / size for norm in ("linf", "l2", "l1")}
    assert torch.allclose(unit["linf"], gradient.sign(), atol=1e-4)
    assert torch.allclose(unit["l2"], gradient / gradient.norm(), atol=1e-5)
    chosen = round(L1_STEP_SHARE * 200)
    assert (unit["l1"] != 0).sum() == chosen == 2
    assert torch.allclose(unit["l1"][0, -chosen:], torch.full((chosen,), 1 / chosen), atol=1e-5)


def test_an_l1_step_leaves_out_what_the_box_stops() -> None:
    x = torch.full((1, 200), 0.5)
    x[0, 199], x[0, 0] = 1.0, 0.0
    gradient = torch.linspace(-1, 2, 200)[None]
    gradient[0, 0] = -5.0
    moved = around("l1", x, (0.0, 1.0)).step(x, gradient, torch.tensor([0.2])) - x
    assert moved.nonzero()[:, 1].tolist() == [197, 198]


def test_default_steps_cross_the_ball() -> None:
    x = torch.full((2, 3, 8, 8), 0.5)
    for norm in ("linf", "l2"):
        ball = around(norm, x, (0.0, 1.0))
        assert torch.allclose(ball.default_step_size(10), 0.25 * ball.radius)
        assert torch.equal(ball.default_step_size(0), 2.5 * ball.radius)
    sparse = around("l1", x, (0.0, 1.0))
    assert torch.allclose(sparse.default_step_size(50), 0.2 * sparse.radius)
    assert torch.allclose(around("l0", x, (0.0, 1.0)).default_step_size(10), torch.tensor(L0_STEP_SHARE * 192))


def test_starts_have_the_distribution_that_they_name() -> None:
    """Fixed seeds; p-values of exact distributions, so that 1e-3 is a false alarm once in a thousand seeds."""
    count = 3000
    x = torch.full((count, 2, 2), 0.5, dtype=torch.float64)
    generator = KeyedGenerator(11, torch.arange(count))
    linf = (ThreatModel("linf", 0.2).around(x).random_start(generator) - x) / 0.2
    assert kstest(linf.flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    l2 = (ThreatModel("l2", 0.4).around(x).random_start(generator) - x).flatten(1)
    assert kstest(((l2.norm(dim=1) / 0.4) ** 4).numpy(), "uniform").pvalue > 1e-3
    angle = torch.atan2(l2[:, 0], l2[:, 1]) / (2 * torch.pi) + 0.5
    assert kstest(angle.numpy(), "uniform").pvalue > 1e-3
    l0 = ThreatModel("l0", 2).around(x).random_start(generator)
    changed = (l0 != x)[:, 0] | (l0 != x)[:, 1]
    assert (ThreatModel("l0", 2).distance(l0, x) == 2).all()
    assert changed.shape == (count, 2)
    assert kstest(l0[l0 != x].numpy(), "uniform").pvalue > 1e-3


def test_l0_starts_choose_every_pixel_equally_often() -> None:
    x = torch.full((3000, 3, 2, 3), 0.5)
    start = ThreatModel("l0", 2).around(x).random_start(KeyedGenerator(5, torch.arange(3000)))
    chosen = (start != x).any(1).flatten(1)
    assert (chosen.sum(1) == 2).all()
    counts = chosen.sum(0).double()
    assert (counts - 1000).abs().max() < 4 * (3000 * (1 / 3) * (2 / 3)) ** 0.5
