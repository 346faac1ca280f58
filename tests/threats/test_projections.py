"""Projections and starts: inside, idempotent, and nothing feasible is nearer."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

RADII = {"linf": 0.3, "l2": 0.8, "l1": 1.5, "l0": 3}


@st.composite
def problems(draw: st.DrawFn, norm: str) -> tuple[ThreatModel, Tensor, Tensor]:
    """A threat, images in the box (some of them on its faces), and points anywhere."""
    count, size = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    values = KeyedGenerator(draw(st.integers(0, 2**30)), torch.arange(count))
    x = (values.uniform(size).double() * 1.4 - 0.2).clamp(0, 1)
    scale = draw(st.sampled_from([0.01, 0.5, 3.0, 100.0]))
    point = x + scale * values.fold("point").normal(size).double()
    radius = RADII[norm] * draw(st.sampled_from([0.0, 0.2, 1.0, 3.0]))
    return ThreatModel(norm, int(radius) if norm == "l0" else radius), x, point


@pytest.mark.parametrize("norm", RADII)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_inside_idempotent_and_still_where_allowed(norm: str, data: st.DataObject) -> None:
    threat, x, point = data.draw(problems(norm))
    projected = threat.project(point, x)
    assert threat.contains(projected, x).all()
    assert torch.allclose(threat.project(projected, x), projected, atol=1e-9)
    assert torch.allclose(threat.project(x, x), x)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_feasible_point_is_nearer(norm: str, data: st.DataObject) -> None:
    """Variational inequality of a projection on a convex set: (point - p) . (q - p) <= 0 for every feasible q."""
    threat, x, point = data.draw(problems(norm))
    projected = threat.project(point, x)
    ball = threat.around(x)
    for seed in range(20):
        draws = KeyedGenerator(seed, torch.arange(len(x)))
        inside = ball.random_start(draws)
        along = ball.project(projected + 0.1 * draws.normal(x.shape[1]).double())
        for other in (inside, along):
            angle = ((point - projected) * (other - projected)).sum(1)
            assert (angle <= 1e-6 * (1 + (point - projected).norm(dim=1))).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_agrees_with_a_general_solver(norm: str) -> None:
    draws = KeyedGenerator(5, torch.arange(6))
    x, point = draws.uniform(4).double(), draws.fold("p").normal(4).double() + 0.5
    threat = ThreatModel(norm, 0.6)
    projected = threat.project(point, x)
    order = 2 if norm == "l2" else 1
    for row in range(len(x)):
        # split in positive and negative parts, so that the l1 norm is smooth
        centre, wanted = x[row].numpy(), point[row].numpy()
        found = minimize(
            lambda u, c=centre, w=wanted: ((c + u[:4] - u[4:] - w) ** 2).sum(),
            x0=[0.01] * 8,
            bounds=[(0, 1 - c) for c in centre] + [(0, c) for c in centre],
            constraints={
                "type": "ineq",
                "fun": lambda u: 0.6 - (u.sum() if order == 1 else ((u[:4] - u[4:]) ** 2).sum() ** 0.5),
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        solution = torch.from_numpy(centre + found.x[:4] - found.x[4:])
        assert torch.allclose(projected[row], solution, atol=2e-4)


def test_l0_keeps_the_best_pixels() -> None:
    """Against all choices of two among six pixels of three channels."""
    draws = KeyedGenerator(2, torch.arange(5))
    x = draws.uniform(3, 2, 3).double()
    point = x + draws.fold("p").normal(3, 2, 3).double()
    projected = ThreatModel("l0", 2).project(point, x)
    distance = (projected - point).flatten(1).norm(dim=1)
    best = torch.full_like(distance, torch.inf)
    clipped = point.clamp(0, 1).flatten(2)
    for pixels in combinations(range(6), 2):
        candidate = x.flatten(2).clone()
        candidate[:, :, pixels] = clipped[:, :, pixels]
        best = torch.minimum(best, (candidate - point.flatten(2)).flatten(1).norm(dim=1))
    assert torch.allclose(distance, best)


@pytest.mark.parametrize("norm", RADII)
def test_random_starts_are_inside_and_spread(norm: str) -> None:
    threat = ThreatModel(norm, RADII[norm])
    x = KeyedGenerator(0, torch.arange(400)).uniform(1, 4, 4) * 0.6 + 0.2
    start = threat.around(x).random_start(KeyedGenerator(1, torch.arange(400)))
    assert threat.contains(start, x).all()
    distance = threat.distance(start, x)
    assert distance.max() <= RADII[norm] * (1 + 1e-5) + 1e-6
    assert distance.mean() > 0.5 * RADII[norm]
    assert len({tuple(row.flatten().tolist()) for row in start - x}) == 400


def test_the_l2_start_is_uniform_in_the_ball() -> None:
    """The share of the volume inside is uniform: radius ** dimension."""
    x = torch.full((4000, 3), 0.5)
    start = ThreatModel("l2", 0.4).around(x).random_start(KeyedGenerator(0, torch.arange(4000)))
    volume = ((start - x).norm(dim=1) / 0.4) ** 3
    assert abs(float(volume.mean()) - 0.5) < 0.02
    assert abs(float((volume < 0.1).double().mean()) - 0.1) < 0.02


@pytest.mark.parametrize("norm", RADII)
def test_a_step_climbs_a_linear_function_to_its_maximum(norm: str) -> None:
    slope = torch.tensor([[3.0, -2.0, 1.0, 0.5]])
    x = torch.full((1, 4), 0.5)
    threat = ThreatModel(norm, 2 if norm == "l0" else 0.2)
    ball = threat.around(x)
    point = x
    for _ in range(200):
        point = ball.step(point, slope, ball.default_step_size(20))
    gain = float((slope * (point - x)).sum())
    best = {"linf": 0.2 * 6.5, "l2": 0.2 * float(slope.norm()), "l1": 0.2 * 3, "l0": 0.5 * 5}
    assert gain == pytest.approx(best[norm], rel=2e-2)
