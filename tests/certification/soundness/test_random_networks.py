"""No method proves more than what sampling attains, on random networks of all operations."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certification.soundness.random_groups import NETWORKS, least_values, random_boxes, random_group, random_rows
from certification.soundness.random_problems import nearest, random_network, random_set, random_specification
from robustly.certification.bounds.alpha import optimise
from robustly.certification.bounds.methods import margins, row_bounds
from robustly.certification.bounds.propagation import intermediate
from robustly.certification.bounds.verdict import proved
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, Node, UnsupportedOperationError
from robustly.certification.problem import Budget, Problem
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.certification.verify import verify
from robustly.evidence import Verdict

pytestmark = pytest.mark.slow

SEEDS = st.integers(0, sys.maxsize)
BUDGET = Budget(attack_starts=2, attack_steps=5, long_starts=2, alpha_iterations=3, domains=16, iterations=3)


def _draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=12, deadline=None)
@given(SEEDS)
def test_bounds_of_one_network_lie_below_values_that_are_attained(seed: int) -> None:
    graph = random_network(seed)
    inputs, spec = random_set(graph, seed, 2), random_specification(graph.outputs, seed, 2)
    _, attained, points = nearest(graph, inputs, spec, _draws(seed), count=48)
    size = 1 + attained.abs()
    try:
        bounds = intermediate(graph, inputs, rounding=True)
    except UnsupportedOperationError:
        return
    values = evaluate(graph, points.flatten(0, 1), keep=True)
    for index, node in enumerate(graph.nodes[1:], start=1):
        if node.op != "constant":
            value = values[index].view(*points.shape[:2], *node.shape)
            assert (value >= bounds[index].lower.unsqueeze(1) - 1e-13 * (1 + value.abs())).all(), node.name
            assert (value <= bounds[index].upper.unsqueeze(1) + 1e-13 * (1 + value.abs())).all(), node.name
    assert (spec.worst(row_bounds(graph, inputs, spec, bounds, rounding=True)) <= attained + 1e-13 * size).all()
    assert (spec.worst(margins(graph, inputs, spec, "ibp")) <= attained + 1e-9 * size).all()
    root = optimise(graph, inputs, spec, bounds, iterations=2, goal=None)
    assert (proved(graph, inputs, spec, root.slopes).amin(1) <= attained + 1e-13 * size).all()


@settings(max_examples=6, deadline=None)
@given(SEEDS)
def test_bounds_of_many_networks_lie_below_values_that_are_attained(seed: int) -> None:
    graph = random_group(seed)
    inputs, rows = random_boxes(graph, seed), random_rows(graph, seed)
    zeros = torch.zeros(1, NETWORKS, dtype=torch.float64)
    spec = Specification(rows, zeros, torch.arange(NETWORKS), zeros[0] > 0)
    attained, _ = least_values(graph, inputs, rows, _draws(seed), count=48)
    try:
        bounds = intermediate(graph, inputs, rounding=True)
    except UnsupportedOperationError:
        return
    found = row_bounds(graph, inputs, spec, bounds, rounding=True)[0]
    assert (found <= attained + 1e-13 * (1 + attained.abs())).all()


@settings(max_examples=4, deadline=None)
@given(SEEDS, st.sampled_from((-1e-3, -1e-6)), st.booleans())
def test_a_property_that_a_point_violates_is_never_verified(seed: int, offset: float, flat: bool) -> None:
    graph = random_network(seed, flat=flat, kinked_only=True)
    inputs, spec = random_set(graph, seed, 1, ("linf", "l2", "l1")), random_specification(graph.outputs, seed, 1)
    _, attained, _ = nearest(graph, inputs, spec, _draws(seed), count=96, rounds=4)
    moved = spec.offset + (offset * (1 + attained.abs()) - attained).unsqueeze(1)
    problem = Problem(graph, inputs, Specification(spec.rows, moved, spec.disjunct, spec.strict))
    try:
        (outcome,) = verify(problem, method="auto", budget=BUDGET)
    except UnsupportedOperationError:
        return
    assert outcome.verdict != Verdict.VERIFIED
    if outcome.verdict == Verdict.FALSIFIED:
        assert outcome.counterexample is not None
        assert problem.spec.violated(evaluate(graph, outcome.counterexample.double())).all()
        assert outcome.lower_bound <= 0


def test_two_paths_of_different_strides_into_one_node() -> None:
    def conv(name: str, source: int, stride: int, kernel: int, seed: int) -> Node:
        settings_ = {"stride": (stride,) * 2, "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        weight = torch.randn(2, 2, kernel, kernel, generator=_draws(seed), dtype=torch.float64)
        return Node(name, "conv", (source,), (2, 3, 3), settings_, {"weight": weight})

    flat = torch.randn(1, 18, generator=_draws(3), dtype=torch.float64)
    nodes = (
        Node("x", "input", (), (2, 6, 6)),
        Node("first", "relu", (0,), (2, 6, 6)),
        conv("whole steps", 1, 1, 4, 1),
        conv("double steps", 1, 2, 2, 2),
        Node("sum", "add", (2, 3), (2, 3, 3)),
        Node("second", "relu", (4,), (2, 3, 3)),
        Node("flat", "reshape", (5,), (18,)),
        Node("last", "linear", (6,), (1,), {}, {"weight": flat}),
    )
    graph = Graph(nodes)
    x = torch.randn(1, 2, 6, 6, generator=_draws(4), dtype=torch.float64)
    bounds = intermediate(graph, InputSet(x - 0.1, x + 0.1))
    points = x + 0.1 * (2 * torch.rand(200, 2, 6, 6, generator=_draws(5), dtype=torch.float64) - 1)
    values = evaluate(graph, points, keep=True)[4]
    assert ((values >= bounds[4].lower) & (values <= bounds[4].upper)).all()


@pytest.mark.parametrize("huge", [1e200, float("nan")])
def test_boxes_without_sensible_numbers_are_refused(huge: float) -> None:
    weight = torch.ones(1, 1, dtype=torch.float64)
    graph = Graph((Node("x", "input", (), (1,)), Node("y", "linear", (0,), (1,), {}, {"weight": weight})))
    spec = Specification(
        torch.ones(1, 1, 1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), torch.zeros(1) > 0
    )
    with pytest.raises(ValueError, match="bounds of inputs must be numbers from"):
        Problem(graph, InputSet(torch.zeros(1, 1), torch.full((1, 1), huge, dtype=torch.float64)), spec)


def test_overflow_inside_a_network_proves_nothing() -> None:
    steep = torch.full((1, 1), 1e90, dtype=torch.float64)
    nodes = [Node("x", "input", (), (1,))]
    for layer in range(4):
        nodes.append(Node(f"linear{layer}", "linear", (len(nodes) - 1,), (1,), {}, {"weight": steep}))
        nodes.append(Node(f"relu{layer}", "relu", (len(nodes) - 1,), (1,)))
    spec = Specification(
        -torch.ones(1, 1, 1, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1) > 0,
    )
    wide = InputSet(torch.full((1, 1), 1e-30, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    (outcome,) = verify(Problem(Graph(tuple(nodes)), wide, spec), budget=BUDGET)
    assert outcome.verdict != Verdict.VERIFIED
