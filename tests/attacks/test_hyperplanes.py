"""The shortest way to a hyperplane inside the box, against linear and quadratic programs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from robustly.attacks.core.linearisation import (
    ORDER,
    lead_of_target,
    nearest_boundary,
    steepness,
    step_to_hyperplane,
    unit,
)
from robustly.attacks.core.search import Search
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

NORMS = ("linf", "l2", "l1")


def problem(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A point in the box, partly on its faces, slopes with zeros, and a rise that is often within reach."""
    draws = KeyedGenerator(seed, torch.arange(1))
    x = (draws.fold("x").uniform(size).double() * 1.4 - 0.2).clamp(0, 1)
    gradient = draws.fold("slope").normal(size).double()
    gradient = torch.where(draws.fold("zero").uniform(size) < 0.2, 0.0, gradient)
    gradient[:, 0] = 1.0
    most = torch.where(gradient > 0, gradient * (1 - x), -gradient * x).sum(1)
    rise = (draws.fold("rise").uniform(1)[:, 0].double() * 1.8 - 0.9) * most
    least = torch.where(gradient < 0, gradient * (1 - x), -gradient * x).sum(1)
    return x, gradient, torch.maximum(rise, 0.9 * least)


def least_norm(x: np.ndarray, gradient: np.ndarray, rise: float, norm: str) -> float:
    """By linear programming; l2 by sequential quadratic programming."""
    size = len(x)
    if norm == "l2":
        found = minimize(
            lambda d: d @ d,
            np.zeros(size),
            jac=lambda d: 2 * d,
            bounds=list(zip(-x, 1 - x, strict=True)),
            constraints={"type": "eq", "fun": lambda d: gradient @ d - rise, "jac": lambda d: gradient},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return float(np.sqrt(found.fun))
    ups = np.concatenate([1 - x, x])  # d = u - v, both at least 0
    both = np.concatenate([gradient, -gradient])
    if norm == "l1":
        found = linprog(np.ones(2 * size), A_eq=both[None], b_eq=[rise], bounds=[(0, up) for up in ups])
        return float(found.fun)
    cap = np.hstack([np.eye(2 * size), -np.ones((2 * size, 1))])
    found = linprog(
        np.append(np.zeros(2 * size), 1.0),
        A_ub=cap,
        b_ub=np.zeros(2 * size),
        A_eq=np.append(both, 0.0)[None],
        b_eq=[rise],
        bounds=[(0, up) for up in ups] + [(0, None)],
    )
    return float(found.fun)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 9))
def test_no_program_finds_a_shorter_way(norm: str, seed: int, size: int) -> None:
    x, gradient, rise = problem(seed, size)
    step = step_to_hyperplane(x, gradient, rise, norm, 0.0, 1.0)
    assert ((x + step >= -1e-12) & (x + step <= 1 + 1e-12)).all()
    assert float((gradient * step).sum()) == pytest.approx(float(rise), abs=1e-10)
    length = float(torch.linalg.vector_norm(step, ORDER[norm]))
    assert length == pytest.approx(least_norm(x[0].numpy(), gradient[0].numpy(), float(rise), norm), abs=2e-6)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("linf", (-0.05, -2 / 15, -2 / 15)), ("l2", (-0.05, -0.16, -0.08)), ("l1", (-0.05, -0.2, 0.0))],
)
def test_the_box_bends_the_way(norm: str, expected: tuple[float, ...]) -> None:
    x = torch.tensor([[0.05, 0.5, 0.5]], dtype=torch.float64)
    gradient = torch.tensor([[4.0, 2, 1]], dtype=torch.float64)
    rise = torch.tensor([-0.6], dtype=torch.float64)
    step = step_to_hyperplane(x, gradient, rise, norm, 0.0, 1.0)
    assert torch.allclose(step, torch.tensor([expected], dtype=torch.float64))
    mirrored = step_to_hyperplane(x, -gradient, -rise, norm, 0.0, 1.0)
    assert torch.allclose(mirrored, step)


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_means_the_corner_and_no_slope_means_no_step(norm: str) -> None:
    x = torch.tensor([[0.25, 0.5, 0.5], [0.25, 0.5, 0.5]])
    gradient = torch.tensor([[1.0, -2, 0], [0, 0, 0]])
    step = step_to_hyperplane(x, gradient, torch.tensor([100.0, 1.0]), norm, 0.0, 1.0)
    assert torch.equal(step, torch.tensor([[0.75, -0.5, 0], [0, 0, 0]]))


@pytest.mark.parametrize("norm", NORMS)
def test_the_scale_of_the_slope_and_the_neighbours_do_not_matter(norm: str) -> None:
    draws = KeyedGenerator(1, torch.arange(20))
    x, gradient = draws.uniform(3, 4, 4), draws.fold("slope").normal(3, 4, 4)
    rise = draws.fold("rise").normal(1)[:, 0]
    step = step_to_hyperplane(x, gradient, rise, norm, 0.0, 1.0)
    assert step.shape == x.shape
    # squares of 1e-30 underflow in float32
    tiny = step_to_hyperplane(x, gradient * 1e-30, rise * 1e-30, norm, 0.0, 1.0)
    assert torch.allclose(step, tiny, atol=1e-6)
    alone = torch.cat(
        [step_to_hyperplane(x[i : i + 1], gradient[i : i + 1], rise[i : i + 1], norm, 0.0, 1.0) for i in range(20)]
    )
    assert torch.equal(step, alone)


def test_dual_norms_and_units_survive_tiny_slopes() -> None:
    gradient = torch.tensor([[3.0, -4.0], [3e-30, -4e-30], [0.0, 0.0]])
    for norm, length in (("linf", 7.0), ("l2", 5.0), ("l1", 4.0), ("l0", 4.0)):
        assert steepness(gradient, norm).tolist() == pytest.approx([length, length * 1e-30, 0.0])
    assert torch.allclose(unit(gradient), torch.tensor([[0.6, -0.8], [0.6, -0.8], [0, 0]]))


def test_the_lead_of_a_target_is_positive_where_it_is_predicted() -> None:
    logits = torch.tensor([[1.0, 3, 2], [1, 2, 3]])
    goal = ClassificationGoal(torch.tensor([0, 0]), target=torch.tensor([1, 1]))
    assert lead_of_target(logits, goal).tolist() == [1.0, -1.0]
    with pytest.raises(ValueError, match="target"):
        lead_of_target(logits, ClassificationGoal(torch.tensor([0, 0])))


@pytest.mark.parametrize("norm", [*NORMS, "l0"])
def test_the_nearest_boundary_is_that_of_the_whole_jacobian(norm: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6)).double().requires_grad_(False)
    x = torch.rand(9, 5, dtype=torch.float64)
    y = net(x).argmax(1)
    search = Search(net, x, ClassificationGoal(y), ThreatModel(norm, 1), nearest=True)
    search.begin()
    rows = torch.arange(9)
    classes = torch.stack([torch.tensor([j for j in range(6) if j != int(label)]) for label in y])
    gap, gradient = nearest_boundary(search, x, rows, classes)
    assert (search.backwards == 5).all()
    assert (search.forwards == 2).all()
    logits, gradients = search.jacobian(x, rows, torch.arange(6).expand(9, 6))
    for i in range(9):
        values = logits[i, classes[i]] - logits[i, y[i]]
        normals = gradients[i, classes[i]] - gradients[i, y[i]]
        best = int((values.abs() / steepness(normals, norm)).argmin())
        assert float(gap[i]) == pytest.approx(float(values[best]))
        assert torch.allclose(gradient[i], normals[best])
