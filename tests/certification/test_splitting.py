"""Input splitting: closed forms, agreement with sampling, planted counterexamples, limits, and public instances."""

import csv
import itertools
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustly.certification.bounds.boxes import AnyNetwork, Boxed
from robustly.certification.bounds.dense import Dense
from robustly.certification.complete.splitting import Parts, _clipped, split
from robustly.certification.deadline import Deadline
from robustly.certification.network import Graph, Node
from robustly.certification.readers.onnx_reader import read_onnx
from robustly.certification.sets import Ball, InputSet
from robustly.certification.specification import Specification
from robustly.certification.vnnlib.reading import read_vnnlib
from robustly.evidence import Verdict


def chain(weights: list[Tensor], biases: list[Tensor], activation: str = "relu") -> Graph:
    nodes = [Node("x", "input", (), (weights[0].shape[1],))]
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if index:
            nodes.append(Node(f"a{index}", activation, (len(nodes) - 1,), nodes[-1].shape))
        nodes.append(
            Node(f"z{index}", "linear", (len(nodes) - 1,), (len(bias),), {}, {"weight": weight, "bias": bias})
        )
    return Graph(tuple(nodes))


def random_chain(seed: int, sizes: list[int], activation: str = "relu") -> Graph:
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(out, count, generator=generator) / math.sqrt(count) for count, out in itertools.pairwise(sizes)
    ]
    return chain(weights, [0.3 * torch.randn(size, generator=generator) for size in sizes[1:]], activation)


def identity(count: int) -> Graph:
    return chain([torch.eye(count)], [torch.zeros(count)])


def box(low: list[float], high: list[float]) -> InputSet:
    return InputSet(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))


def violation(rows: list[list[float]], offset: list[float], disjunct: list[int]) -> Specification:
    return Specification(
        torch.tensor([rows], dtype=torch.float64),
        torch.tensor([offset], dtype=torch.float64),
        torch.tensor(disjunct),
        torch.zeros(len(disjunct), dtype=torch.bool),
    )


def by_table(graph: Graph, spec: Specification) -> Boxed:
    return AnyNetwork(graph, spec)


def by_matrices(graph: Graph, spec: Specification) -> Boxed:
    net = Dense.of(graph)
    assert net is not None
    return net.with_property(spec)


def test_rows_that_only_together_exclude_a_violation_are_refuted_at_once():
    # x + 0.4 <= 0 and -x + 0.4 <= 0: each alone is possible, their mean is 0.4.
    outcome = split(identity(1), box([-1.0], [1.0]), violation([[1.0], [-1.0]], [0.4, 0.4], [0, 0]))
    assert outcome.verdict == Verdict.VERIFIED
    assert outcome.work == 1
    assert outcome.lower_bound > 0


def clipped(spec: Specification) -> Parts:
    inputs = box([-1.0, -1.0], [1.0, 1.0])
    found = by_matrices(identity(2), spec).bounds(inputs.lower, inputs.upper, torch.zeros(1, 0, dtype=torch.int8))
    bound = spec.by_disjunct(found.value)
    return _clipped(Parts(inputs.lower, inputs.upper, bound, found.stable, torch.zeros(1)), found, spec)[0]


def test_clipping_of_one_disjunct_and_of_two():
    one = clipped(violation([[1.0, 1.0]], [1.0], [0]))
    assert torch.allclose(one.lower, torch.tensor([[-1.0, -1.0]]).double())
    assert torch.allclose(one.upper, torch.zeros(1, 2).double(), atol=1e-9)
    assert (one.upper >= 0).all()
    two = clipped(violation([[1.0, 0.0], [-1.0, 0.0]], [0.5, 0.5], [0, 1]))
    assert torch.allclose(two.lower, torch.tensor([[-1.0, -1.0]]).double())
    assert torch.allclose(two.upper, torch.tensor([[1.0, 1.0]]).double())


@pytest.mark.parametrize("kind", [by_table, by_matrices])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_of_boxes_hold_at_samples(kind, seed: int):
    graph = random_chain(seed, [3, 12, 12, 12, 3])
    spec = violation([[1.0, -1.0, 0.0], [0.0, 2.0, -1.0]], [0.1, -0.2], [0, 1])
    net = kind(graph, spec)
    torch.manual_seed(seed)
    lower = torch.rand(6, 3, dtype=torch.float64) * 2 - 1
    width = torch.tensor([2.0, 1.0, 0.3, 0.1, 1e-3, 0.0], dtype=torch.float64).unsqueeze(1)
    upper = lower + width
    found = net.bounds(lower, upper, torch.zeros(6, net.hidden, dtype=torch.int8))
    points = lower.unsqueeze(1) + width.unsqueeze(1) * torch.rand(6, 500, 3, dtype=torch.float64)
    value = net.evaluate(points.flatten(0, 1)).view(6, 500, 2)
    assert (value.amin(1) >= found.value - 1e-15).all()
    assert (value >= (points @ found.rows.transpose(1, 2) + found.bias.unsqueeze(1)) - 1e-15).all()
    # Over a point the bound is the value, but for rounding; over small boxes it is near.
    assert torch.allclose(found.value[5], value[5].amin(0), atol=1e-11)
    assert (value[3].amin(0) - found.value[3] < 0.1).all()
    assert found.influence.shape == (6, 2, 3)


def test_folding_affine_operations_keeps_the_function():
    torch.manual_seed(0)
    kernel = torch.randn(2, 1, 2, 2)
    nodes = (
        Node("x", "input", (), (1, 3, 3)),
        Node(
            "s", "scale", (0,), (1, 3, 3), {}, {"factor": torch.full((1, 1, 1), 2.0), "shift": torch.ones(1, 1, 1)}
        ),
        Node(
            "c",
            "conv",
            (1,),
            (2, 2, 2),
            {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1},
            {"weight": kernel, "bias": torch.tensor([0.5, -0.5])},
        ),
        Node("r", "relu", (2,), (2, 2, 2)),
        Node("f", "reshape", (3,), (8,)),
        Node("y", "linear", (4,), (2,), {}, {"weight": torch.randn(2, 8)}),
    )
    spec = violation([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], [0, 1])
    net, points = by_matrices(Graph(nodes), spec), torch.rand(50, 9, dtype=torch.float64)
    assert torch.allclose(net.evaluate(points), by_table(Graph(nodes), spec).evaluate(points), atol=1e-12)
    branched = (
        *nodes[:4],
        Node("b", "reshape", (2,), (8,)),
        Node("y", "linear", (4,), (2,), {}, nodes[5].constants),
    )
    assert Dense.of(Graph(branched)) is None


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_agree_with_dense_sampling(seed: int):
    graph = random_chain(seed, [2, 10, 10, 2])
    inputs = box([-1.0, -1.0], [1.0, 1.0])
    rows = violation([[1.0, -1.0], [0.5, 1.0]], [0.0, 0.1], [0, 0])
    axis = torch.linspace(-1, 1, 201, dtype=torch.float64)
    values = by_matrices(graph, rows).evaluate(torch.cartesian_prod(axis, axis))
    least = rows.worst(values).min().item()
    for shift, verdict in ((-least + 0.02, Verdict.VERIFIED), (-least - 1e-3, Verdict.FALSIFIED)):
        spec = replace(rows, offset=rows.offset + shift)
        outcome = split(graph, inputs, spec)
        assert outcome.verdict == verdict
        assert outcome.lower_bound <= least + shift
        if verdict == Verdict.FALSIFIED:
            assert outcome.counterexample is not None
            assert outcome.counterexample.dtype == torch.float32
            assert outcome.counterexample.abs().max() <= 1
            assert spec.violated(
                by_table(graph, violation([[1, 0], [0, 1]], [0, 0], [0, 1])).evaluate(
                    outcome.counterexample.double()
                )
            ).all()


def test_a_narrow_planted_counterexample_is_never_verified():
    # 1 - 2 relu(1 - 1000 ||x - at||_1): no gradient leads to it from most of the box.
    at = torch.tensor([0.3137, -0.4219])
    both = torch.cat([torch.eye(2), -torch.eye(2)])
    graph = chain(
        [both, torch.full((1, 4), -1000.0), torch.tensor([[-2.0]])], [-both @ at, torch.ones(1), torch.ones(1)]
    )
    inputs = box([-1.0, -1.0], [1.0, 1.0])
    outcome = split(graph, inputs, violation([[1.0]], [0.0], [0]))
    assert outcome.verdict == Verdict.FALSIFIED
    assert outcome.counterexample is not None
    assert (outcome.counterexample[0] - at).abs().sum() <= 5e-4
    assert split(graph, inputs, violation([[1.0]], [1.001], [0])).verdict == Verdict.VERIFIED


def test_other_activations_are_split_too():
    graph = random_chain(1, [2, 6, 2], "tanh")
    inputs, rows = box([-1.0, -1.0], [1.0, 1.0]), violation([[1.0, -1.0]], [0.0], [0])
    axis = torch.linspace(-1, 1, 101, dtype=torch.float64)
    least = by_table(graph, rows).evaluate(torch.cartesian_prod(axis, axis)).min().item()
    assert Dense.of(graph) is None
    assert split(graph, inputs, replace(rows, offset=rows.offset - least + 0.02)).verdict == Verdict.VERIFIED
    assert split(graph, inputs, replace(rows, offset=rows.offset - least - 0.02)).verdict == Verdict.FALSIFIED


def test_a_ball_excludes_the_corners_of_its_box():
    # The least value of x + y is -1.414 in the unit disc and -2 in its box.
    center = torch.zeros(1, 2, dtype=torch.float64)
    disc = InputSet(center - 1, center + 1, Ball("l2", center, torch.ones(1, dtype=torch.float64)))
    for offset, verdict in ((1.5, Verdict.VERIFIED), (1.4, Verdict.FALSIFIED)):
        outcome = split(identity(2), disc, violation([[1.0, 1.0]], [offset], [0]))
        assert outcome.verdict == verdict
        assert (outcome.lower_bound > 0) == (verdict == Verdict.VERIFIED)
    assert outcome.counterexample is not None
    assert outcome.counterexample.double().norm() <= 1


@pytest.mark.slow
def test_limits_give_the_best_proved_bound():
    graph = random_chain(0, [5, 24, 24, 24, 2])
    inputs = InputSet(torch.full((1, 5), -2.0), torch.full((1, 5), 2.0))
    rows = violation([[1.0, 0.0]], [0.0], [0])
    sample = torch.rand(20_000, 5, dtype=torch.float64) * 4 - 2
    least = by_matrices(graph, rows).evaluate(sample).min()
    spec = replace(rows, offset=rows.offset - least + 0.2)
    bounds = [split(graph, inputs, spec, domains=count).lower_bound for count in (1, 60, 200)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[2] < 0
    stopped = split(graph, inputs, spec, domains=60)
    assert stopped.verdict == Verdict.UNKNOWN
    assert 60 <= stopped.work < 250
    assert "budget of domains" in stopped.reason
    late = split(graph, inputs, spec, deadline=Deadline.after(0.0))
    assert late.verdict == Verdict.TIMEOUT
    assert late.work == 0


def test_a_least_margin_of_0_that_no_float32_input_reaches_ends_as_unknown():
    # |x - 0.1| is 0 at a decimal that float32 does not have.
    graph = chain([torch.tensor([[1.0], [-1.0]]), torch.ones(1, 2)], [torch.zeros(2), torch.zeros(1)])
    shifted = replace(graph, nodes=graph.to(torch.float64).nodes)
    shifted.nodes[1].constants["bias"].copy_(torch.tensor([-0.1, 0.1], dtype=torch.float64))  # type: ignore[index]
    outcome = split(shifted, box([-1.0], [1.0]), violation([[1.0]], [0.0], [0]))
    assert outcome.verdict == Verdict.UNKNOWN
    assert outcome.lower_bound <= 0
    assert "halve" in outcome.reason


INSTANCES = (
    ("acasxu", "ACASXU_run2a_2_4_batch_2000.onnx", "prop_1.vnnlib"),
    ("acasxu", "ACASXU_run2a_1_2_batch_2000.onnx", "prop_2.vnnlib"),
    ("acasxu", "ACASXU_run2a_1_1_batch_2000.onnx", "prop_3.vnnlib"),
    ("reach_prob_density", "gcas.onnx", "gcas_0.vnnlib"),
    ("reach_prob_density", "robot.onnx", "robot_10.vnnlib"),
    ("rl_benchmarks", "cartpole.onnx", "cartpole_case_unsafe_0.vnnlib"),
)


@pytest.mark.slow
@pytest.mark.skipif("ROBUSTLY_SHARED_DATA" not in os.environ, reason="ROBUSTLY_SHARED_DATA names no folder of data")
@pytest.mark.parametrize(("folder", "network", "name"), INSTANCES)
def test_verdicts_of_public_instances(folder: str, network: str, name: str):
    root = Path(os.environ["ROBUSTLY_SHARED_DATA"]) / "verify" / folder
    with (root / "instances.csv").open() as file:
        (expected,) = [
            row["expected"] for row in csv.DictReader(file) if (row["onnx"], row["vnnlib"]) == (network, name)
        ]
    graph = read_onnx(root / "onnx" / f"{network}.gz", check=False).graph
    verdicts = []
    for case in read_vnnlib(root / "vnnlib" / f"{name}.gz").cases:
        box = InputSet(
            case.box.lower.view(1, *graph.input_shape),
            case.box.upper.view(1, *graph.input_shape),
        )
        verdicts.append(split(graph, box, case.specification, domains=10_000).verdict)
    found = "sat" if Verdict.FALSIFIED in verdicts else "unsat" if set(verdicts) == {Verdict.VERIFIED} else "open"
    assert found == expected


@pytest.mark.parametrize(("weight", "side"), [(math.nan, 1.0), (1.0, math.inf)])
def test_numbers_that_are_not_finite_end_as_unknown(weight: float, side: float):
    graph = chain([torch.tensor([[weight]]), torch.ones(1, 1)], [torch.zeros(1), torch.zeros(1)])
    outcome = split(graph, box([-side], [side]), violation([[1.0]], [1.0], [0]))
    assert outcome.verdict == Verdict.UNKNOWN
    assert "not finite" in outcome.reason
