"""Optimised slopes: closed forms, orderings, soundness, and proofs in float64."""

import pytest
import torch
from torch import Tensor

from certification.networks import dense, random_conv, random_dense
from robustly.certification.bounds.alpha import Slopes, optimise, tighten
from robustly.certification.bounds.methods import margins, row_bounds
from robustly.certification.bounds.propagation import ibp, intermediate
from robustly.certification.bounds.verdict import proved
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, Node
from robustly.certification.sets import Ball, InputSet
from robustly.certification.specification import Specification, robustness

F64 = torch.float64


def property_of(rows: list[list[float]], offset: list[float], disjunct: list[int]) -> Specification:
    strict = torch.zeros(len(rows), dtype=torch.bool)
    return Specification(
        torch.tensor([rows], dtype=F64), torch.tensor([offset], dtype=F64), torch.tensor(disjunct), strict
    )


def box(low: list[float], high: list[float]) -> InputSet:
    return InputSet(torch.tensor([low], dtype=F64), torch.tensor([high], dtype=F64))


def images_around(graph: Graph, count: int, size: float, seed: int = 3) -> InputSet:
    x = torch.rand(count, *graph.input_shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return InputSet(x - size, x + size)


def smallest_sampled(graph: Graph, inputs: InputSet, spec: Specification, draws: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    least = torch.full(spec.offset.shape, torch.inf, dtype=F64)
    for number in range(draws):
        share = torch.rand(inputs.lower.shape, generator=generator, dtype=F64)
        share = share.round() if number % 2 else share
        found = evaluate(graph, inputs.lower + share * (inputs.upper - inputs.lower))
        least = torch.minimum(least, spec.margins(found))
    return least


def test_one_relu_reaches_its_least_value():
    one = torch.ones(1, 1, dtype=F64)
    graph = dense([one, one])
    inputs, spec = box([-1.0], [2.0]), property_of([[1.0]], [0.0], [0])
    bounds = intermediate(graph, inputs)
    standard = row_bounds(graph, inputs, spec, bounds)
    assert float(standard) == pytest.approx(-1.0)
    best = optimise(graph, inputs, spec, bounds, iterations=20, goal=None)
    assert float(best.margins) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh"])
def test_order_of_methods_and_proofs(activation):
    graph = random_dense([5, 12, 10, 4], seed=1, activation="relu")
    nodes = [
        Node(one.name, activation, one.inputs, one.shape, {"slope": 0.1} if activation == "leaky_relu" else {})
        if one.op == "relu"
        else one
        for one in graph.nodes
    ]
    graph = Graph(tuple(nodes))
    inputs = images_around(graph, 3, 0.3 if "relu" in activation else 1.0)
    spec = robustness(torch.tensor([0, 1, 2]), 4, F64)
    bounds = intermediate(graph, inputs)
    crown = row_bounds(graph, inputs, spec, bounds)
    last = optimise(graph, inputs, spec, bounds, goal=None)
    narrow, slopes = tighten(graph, inputs)
    both = optimise(graph, inputs, spec, narrow, slopes=slopes, goal=None)
    true = smallest_sampled(graph, inputs, spec)
    assert bool((margins(graph, inputs, spec, "ibp") <= torch.maximum(last.margins, crown) + 1e-9).all())
    assert bool((crown <= last.margins + 1e-9).all())
    assert float((last.margins - crown).sum()) > 1e-3
    assert float((both.margins - last.margins).sum()) > 1e-3
    assert bool((both.margins <= true).all())
    for result in (last, both):
        proof = proved(graph, inputs, spec, result.slopes)
        torch.testing.assert_close(proof, result.margins, atol=1e-7, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True])
def test_convolutions_with_windows(residual):
    graph = random_conv(2, residual)
    inputs = images_around(graph, 2, 0.1)
    spec = robustness(torch.tensor([0, 2]), 3, F64)
    bounds, slopes = tighten(graph, inputs)
    standard = intermediate(graph, inputs)
    widths = [sum(float((one[k].upper - one[k].lower).sum()) for k in one) for one in (bounds, standard)]
    assert widths[0] < widths[1]
    result = optimise(graph, inputs, spec, bounds, slopes=slopes, goal=None)
    assert bool((result.margins <= smallest_sampled(graph, inputs, spec)).all())
    torch.testing.assert_close(proved(graph, inputs, spec, result.slopes), result.margins, atol=1e-7, rtol=0)


def test_neurons_stay_inside_tightened_bounds():
    graph = random_conv(4, residual=True)
    inputs = images_around(graph, 2, 0.1)
    bounds, _ = tighten(graph, inputs)
    draws = torch.Generator().manual_seed(1)
    for _ in range(200):
        share = torch.rand(inputs.lower.shape, generator=draws, dtype=F64).round()
        values = evaluate(graph, inputs.lower + share * (inputs.upper - inputs.lower), keep=True)
        for index, value in values.items():
            assert bool((value >= bounds[index].lower - 1e-9).all())
            assert bool((value <= bounds[index].upper + 1e-9).all())


def test_combination_refutes_what_no_row_refutes():
    # Violated where x + 0.4 <= 0 and -x + 0.4 <= 0: each row alone has the least value -0.6, their mean is 0.4.
    one = torch.ones(1, 1, dtype=F64)
    graph = dense([one])
    inputs, spec = box([-1.0], [1.0]), property_of([[1.0], [-1.0]], [0.4, 0.4], [0, 0])
    bounds = ibp(graph, inputs)
    assert float(row_bounds(graph, inputs, spec, bounds).max()) == pytest.approx(-0.6)
    result = optimise(graph, inputs, spec, bounds, iterations=40, goal=None)
    assert result.margins.shape == (1, 1)
    assert 0.3 < float(result.margins) <= 0.4 + 1e-9
    proof = proved(graph, inputs, spec, result.slopes)
    assert 0.3 < float(proof) <= float(result.margins)
    # Without weights the proof is that of the best row.
    assert float(proved(graph, inputs, spec, Slopes())) == pytest.approx(-0.6)


def test_batch_equals_single_examples():
    graph = random_dense([6, 14, 12, 3], seed=5)
    inputs, spec = images_around(graph, 3, 0.2), robustness(torch.tensor([0, 1, 2]), 3, F64)
    bounds, slopes = tighten(graph, inputs)
    together = optimise(graph, inputs, spec, bounds, slopes=slopes)
    for row in range(3):
        index = torch.tensor([row])
        alone, own = tighten(graph, inputs.select(index))
        result = optimise(graph, inputs.select(index), spec.select(index), alone, slopes=own)
        torch.testing.assert_close(result.margins[0], together.margins[row], atol=1e-6, rtol=0)


def test_no_iteration_gives_crown_and_the_goal_stops_early():
    graph = random_dense([6, 14, 12, 3], seed=7)
    inputs, spec = images_around(graph, 2, 0.1), robustness(torch.tensor([0, 1]), 3, F64)
    bounds = intermediate(graph, inputs)
    crown = row_bounds(graph, inputs, spec, bounds)
    none = optimise(graph, inputs, spec, bounds, iterations=0)
    torch.testing.assert_close(none.margins, crown)
    reached = optimise(graph, inputs, spec, bounds, goal=float(crown.min()) - 1)
    torch.testing.assert_close(reached.margins, crown)


def test_ball_is_bounded_and_proved():
    graph = random_dense([6, 14, 12, 3], seed=8)
    center = torch.rand(2, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    ball = Ball("l2", center, torch.full((2,), 0.3, dtype=F64))
    inputs = InputSet(center - 0.3, center + 0.3, ball)
    spec = robustness(torch.tensor([0, 1]), 3, F64)
    bounds, slopes = tighten(graph, inputs)
    result = optimise(graph, inputs, spec, bounds, slopes=slopes, goal=None)
    wide = optimise(graph, InputSet(center - 0.3, center + 0.3), spec, intermediate(graph, inputs), goal=None)
    assert bool((wide.margins <= result.margins + 1e-9).all())
    proof = proved(graph, inputs, spec, result.slopes)
    draws = torch.randn(500, 2, 6, generator=torch.Generator().manual_seed(2), dtype=F64)
    points = center + 0.3 * draws / draws.norm(dim=2, keepdim=True)
    found = torch.stack([spec.margins(evaluate(graph, one)) for one in points]).amin(0)
    assert bool((proof <= found).all())
    assert bool((proof >= result.margins - 1e-7).all())
