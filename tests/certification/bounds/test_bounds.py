"""Bounds of networks: closed forms, orderings, soundness on samples."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from certification.networks import dense, random_conv, random_dense
from robustly.certification.bounds.backward import lower
from robustly.certification.bounds.methods import METHODS, margins, row_bounds
from robustly.certification.bounds.propagation import ibp, intermediate
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, Node
from robustly.certification.operations import Rows
from robustly.certification.sets import Ball, InputSet
from robustly.certification.specification import Specification, robustness


def box(low: list[float], high: list[float]) -> InputSet:
    return InputSet(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))


def one_row(rows: Tensor) -> Specification:
    count = rows.shape[0]
    return Specification(
        rows[None], rows.new_zeros(1, count), torch.arange(count), torch.zeros(count, dtype=torch.bool)
    )


def around(x: Tensor, size: float) -> InputSet:
    return InputSet(x - size, x + size)


def corners_and_draws(sets: InputSet, count: int, seed: int) -> Tensor:
    """Points of the first box: corners and uniform draws."""
    draws = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *sets.lower.shape[1:], generator=draws, dtype=sets.lower.dtype)
    share[: count // 2] = share[: count // 2].round()
    return sets.lower[:1] + share * (sets.upper - sets.lower)[:1]


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", float("inf"))])
def test_affine_network_has_its_exact_margin(norm, dual):
    graph = random_dense([6, 5, 4], seed=0)
    affine = Graph((*graph.nodes[:2], Node("last", "linear", (1,), (4,), {}, graph.nodes[3].constants)))
    x = torch.rand(3, 6, dtype=torch.float64)
    wide = torch.full_like(x, 1e3)
    ball = None if norm == "linf" else Ball(norm, x, torch.full((3,), 0.2, dtype=torch.float64))
    sets = around(x, 0.2) if ball is None else InputSet(x - wide, x + wide, ball)
    spec = robustness(torch.tensor([0, 1, 2]), 4, torch.float64)
    weight = affine.nodes[2].constants["weight"] @ affine.nodes[1].constants["weight"]
    exact = spec.margins(evaluate(affine, x)) - 0.2 * (spec.rows @ weight).norm(p=dual, dim=2)
    for method in ("crown_ibp", "crown"):
        torch.testing.assert_close(margins(affine, sets, spec, method), exact, atol=1e-9, rtol=0)


def test_one_relu():
    one = torch.ones(1, 1, dtype=torch.float64)
    graph = dense([one, one])
    sets, spec = box([-1.0], [2.0]), one_row(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    assert margins(graph, sets, spec, "ibp").tolist() == [[0.0, -2.0]]
    bounds = intermediate(graph, sets)
    assert row_bounds(graph, sets, spec, bounds)[0].tolist() == pytest.approx([-1.0, -2.0])
    assert margins(graph, sets, spec, "crown")[0].tolist() == pytest.approx([0.0, -2.0])


def relu_difference(shared: bool) -> Graph:
    nodes = [Node("x", "input", (), (1,)), Node("r", "relu", (0,), (1,))]
    if not shared:
        nodes.append(Node("s", "relu", (0,), (1,)))
    nodes.append(Node("d", "sub", (1, len(nodes) - 1), (1,)))
    return Graph(tuple(nodes))


def test_a_shared_node_cancels():
    spec = one_row(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    sets = box([-1.0], [2.0])
    assert margins(relu_difference(True), sets, spec, "crown").abs().max() == 0
    assert [side.item() for side in ibp(relu_difference(True), sets)[2]] == [-2.0, 2.0]
    assert margins(relu_difference(False), sets, spec, "crown").max() < 0


@pytest.mark.parametrize("graph", [random_dense([5, 8, 8, 3], 1), random_conv(2), random_conv(3, residual=True)])
@pytest.mark.parametrize("method", METHODS)
def test_bounds_hold_on_samples(graph, method):
    if method == "forward" and graph.nodes[0].size > 100:
        pytest.skip("forward bounds are for few inputs")
    x = torch.rand(2, *graph.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sets = around(x, 0.1)
    spec = robustness(torch.tensor([0, 2]), 3, torch.float64)
    found = margins(graph, sets, spec, method)
    points = corners_and_draws(sets, 500, 1)
    reached = evaluate(graph, points) @ spec.rows[0].T
    assert bool((reached >= found[0] - 1e-9).all())
    assert bool(
        (margins(graph, around(x, 0.0), spec, method) - spec.margins(evaluate(graph, x))).abs().max() < 1e-9
    )


@pytest.mark.parametrize("graph", [random_dense([5, 8, 8, 3], 1), random_conv(2), random_conv(3, residual=True)])
def test_intermediate_bounds_hold_on_samples(graph):
    x = torch.rand(2, *graph.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sets = around(x, 0.15)
    wide, tight = ibp(graph, sets), intermediate(graph, sets, rounding=True)
    values = evaluate(graph, corners_and_draws(sets, 500, 1), keep=True)
    for index in range(1, len(graph.nodes)):
        assert bool((values[index] >= tight[index].lower[:1] - 1e-9).all())
        assert bool((values[index] <= tight[index].upper[:1] + 1e-9).all())
        assert bool((tight[index].lower >= wide[index].lower - 1e-9).all())
        assert bool((tight[index].upper <= wide[index].upper + 1e-9).all())


@pytest.mark.parametrize("graph", [random_dense([5, 8, 8, 3], 1), random_conv(3, residual=True)])
def test_order_of_methods(graph):
    x = torch.rand(4, *graph.input_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sets, spec = around(x, 0.1), robustness(torch.tensor([0, 1, 2, 0]), 3, torch.float64)
    found = {method: margins(graph, sets, spec, method) for method in ("ibp", "crown_ibp", "crown")}
    assert bool((found["ibp"] <= found["crown_ibp"]).all())
    assert float(found["crown_ibp"].mean()) <= float(found["crown"].mean())


def test_a_batch_gives_what_its_examples_give():
    graph = random_conv(5, residual=True)
    x = torch.rand(4, *graph.input_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    spec = robustness(torch.tensor([0, 1, 2, 0]), 3, torch.float64)
    together = margins(graph, around(x, 0.1), spec, "crown")
    for index in range(4):
        one = torch.tensor([index])
        alone = margins(graph, around(x, 0.1).select(one), spec.select(one), "crown")
        torch.testing.assert_close(alone[0], together[index], atol=1e-9, rtol=0)


def test_intervals_grow_with_the_radius():
    graph = random_conv(6)
    x = torch.rand(1, *graph.input_shape, dtype=torch.float64)
    spec = robustness(torch.tensor([1]), 3, torch.float64)
    found = [margins(graph, around(x, size), spec, "ibp") for size in (0.0, 0.01, 0.05, 0.2)]
    assert all(bool((wide <= narrow + 1e-12).all()) for narrow, wide in itertools.pairwise(found))


@given(st.integers(0, 10**6), st.sampled_from([1e-3, 0.05, 0.3]))
def test_rounding_widens_a_little(seed, size):
    graph = random_dense([3, 6, 6, 2], seed)
    x = torch.rand(1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sets, spec = around(x, size), robustness(torch.tensor([0]), 2, torch.float64)
    plain = row_bounds(graph, sets, spec, intermediate(graph, sets))
    proved = row_bounds(graph, sets, spec, intermediate(graph, sets, rounding=True), rounding=True)
    assert bool((proved < plain).all())
    assert float((plain - proved).max()) < 1e-10


def test_single_precision_agrees_with_double():
    graph = random_conv(7, residual=True)
    x = torch.rand(2, *graph.input_shape, dtype=torch.float64)
    spec = robustness(torch.tensor([0, 1]), 3, torch.float64)
    exact = margins(graph, around(x, 0.05), spec, "crown")
    single = margins(graph.to(torch.float32), around(x, 0.05).to(torch.float32), spec.to(torch.float32), "crown")
    torch.testing.assert_close(single.double(), exact, atol=1e-4, rtol=1e-4)


def test_added_multipliers_keep_bounds_below_the_split_minimum():
    graph = random_dense([3, 6, 1], 3)
    sets = around(torch.zeros(1, 3, dtype=torch.float64), 1.0)
    bounds = intermediate(graph, sets)
    hidden = int(((bounds[1].lower < 0) & (bounds[1].upper > 0))[0].nonzero()[0])
    points = corners_and_draws(sets, 4000, 0)
    values = evaluate(graph, points, keep=True)
    inside = values[1][:, hidden] >= 0
    least = evaluate(graph, points)[inside].min()
    clamped = dict(bounds)
    clamped[1] = bounds[1]._replace(lower=bounds[1].lower.clone())
    clamped[1].lower[0, hidden] = 0.0
    for multiplier in (0.0, 0.1, 1.0, 5.0):
        added = torch.zeros(1, 1, 6, dtype=torch.float64)
        added[0, 0, hidden] = -multiplier
        rows = Rows(torch.ones(1, 1, 1, dtype=torch.float64))
        assert lower(graph, graph.output, rows, sets, clamped, added={1: added}).value.item() <= least + 1e-9
