"""Mixed-integer programs: the least value is the true one, and verdicts are those of the property."""

import itertools
import sys

import pytest
import torch
from torch import Tensor

from robustly.certification.bounds.backward import lower
from robustly.certification.bounds.propagation import intermediate
from robustly.certification.complete import milp
from robustly.certification.complete.milp import exact_minimum, relaxed_minimum, solve
from robustly.certification.deadline import Deadline
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, Node, UnsupportedOperationError
from robustly.certification.operations import Interval, Rows
from robustly.certification.sets import Ball, InputSet
from robustly.certification.specification import Specification, robustness
from robustly.evidence import Verdict

DOUBLE = torch.float64


def box(center: Tensor, radius: float) -> InputSet:
    return InputSet((center - radius)[None].double(), (center + radius)[None].double())


def linear(name: str, source: int, weight: Tensor, bias: Tensor) -> Node:
    return Node(name, "linear", (source,), (len(weight),), {}, {"weight": weight.double(), "bias": bias.double()})


def dense(seed: int, widths: tuple[int, ...], op: str = "relu", **settings: float) -> Graph:
    """A random fully connected network."""
    generator = torch.Generator().manual_seed(seed)
    nodes = [Node("x", "input", (), (widths[0],))]
    for layer, (wide, next_) in enumerate(itertools.pairwise(widths)):
        weight, bias = torch.randn(next_, wide, generator=generator), torch.randn(next_, generator=generator)
        nodes.append(linear(f"linear{layer}", len(nodes) - 1, weight, 0.3 * bias))
        if layer < len(widths) - 2:
            nodes.append(Node(f"{op}{layer}", op, (len(nodes) - 1,), (next_,), settings))
    return Graph(tuple(nodes))


def grid(inputs: InputSet, count: int = 201) -> Tensor:
    """Points of a box in two dimensions, its edges included."""
    ends = torch.stack([inputs.lower[0], inputs.upper[0]], 1).tolist()
    axes = [torch.linspace(*pair, count, dtype=DOUBLE) for pair in ends]
    return torch.cartesian_prod(*axes)


def by_patterns(graph: Graph, inputs: InputSet, row: Tensor) -> float:
    """Least value of a row of a network in two dimensions with two hidden ReLU layers.

    The network is linear on each region; its vertices are intersections of two lines where a neuron of the first
    layer, a neuron of the second (for the pattern of the first around a grid point), or an edge of the box is 0.
    """
    points = grid(inputs, 41)
    first, second = graph.nodes[1].constants, graph.nodes[3].constants
    lower, upper = inputs.lower[0], inputs.upper[0]
    edges = torch.eye(2, dtype=DOUBLE)
    candidates = [points]
    patterns = (points @ first["weight"].T + first["bias"] > 0).unique(dim=0)
    for pattern in patterns:
        active = first["weight"] * pattern.unsqueeze(1)
        lines = torch.cat([first["weight"], second["weight"] @ active, edges, edges])
        shifts = torch.cat(
            [first["bias"], second["weight"] @ (first["bias"] * pattern) + second["bias"], -lower, -upper]
        )
        pairs = torch.tensor(list(itertools.combinations(range(len(lines)), 2)))
        matrix = lines[pairs]
        regular = torch.linalg.det(matrix).abs() > 1e-9
        vertices = torch.linalg.solve(matrix[regular], -shifts[pairs[regular]])
        inside = ((vertices >= lower - 1e-9) & (vertices <= upper + 1e-9)).all(1)
        candidates.append(vertices[inside].clamp(lower, upper))
    return float((evaluate(graph, torch.cat(candidates)) @ row).min())


@pytest.mark.parametrize("seed", range(6))
def test_least_value_of_random_networks(seed: int) -> None:
    graph = dense(seed, (2, 8, 8, 2))
    inputs = box(torch.zeros(2), 1.0)
    row = torch.tensor([1.0, -1.0], dtype=DOUBLE)
    bounds = intermediate(graph, inputs)
    found = exact_minimum(graph, inputs, row[None], torch.zeros(1), bounds)
    loose = exact_minimum(graph, inputs, row[None], torch.zeros(1), {})
    triangle = relaxed_minimum(graph, inputs, row[None], torch.zeros(1), bounds)
    assert float(found) == pytest.approx(by_patterns(graph, inputs, row), abs=1e-4)
    assert float(found) == pytest.approx(float(loose), abs=1e-4)
    crown = lower(graph, graph.output, Rows(row.view(1, 1, 2)), inputs, bounds).value
    assert float(crown) - 1e-6 <= float(triangle) <= float(found) + 1e-6
    assert float((evaluate(graph, grid(inputs)) @ row).min()) >= float(found) - 1e-6


@pytest.mark.parametrize(
    ("op", "settings"),
    [
        ("leaky_relu", {"slope": 0.2}),
        ("leaky_relu", {"slope": 3.0}),
        ("abs", {}),
        ("clip", {"low": -0.5, "high": 0.7}),
        ("clip", {"low": 0.1, "high": torch.inf}),
        ("clip", {"low": -torch.inf, "high": 0.2}),
    ],
)
def test_least_value_with_other_kinks(op: str, settings: dict[str, float]) -> None:
    graph = dense(1, (2, 5, 4, 1), op, **settings)
    inputs = box(torch.tensor([0.2, -0.1]), 0.8)
    found = float(exact_minimum(graph, inputs, torch.ones(1, 1), torch.tensor([0.5]), {}))
    values = evaluate(graph, grid(inputs, 801)) + 0.5
    assert float(values.min()) - 0.05 <= found <= float(values.min()) + 1e-6


def convolutional() -> Graph:
    """Convolutions with a residual sum, an overlapping padded max pool, a mean, and their joined values."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=DOUBLE)

    def conv(name: str, source: int, channels: int, size: int, padding: int, out: tuple[int, ...]) -> Node:
        settings = {"stride": (1, 1), "padding": (padding,) * 2, "dilation": (1, 1), "groups": 1}
        weight = random(2, channels, size, size)
        return Node(name, "conv", (source,), out, settings, {"weight": weight, "bias": random(2)})

    shape = (2, 3, 3)
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "ceil_mode": False}
    nodes = (
        Node("x", "input", (), (1, 2, 2)),
        conv("first", 0, 1, 2, 1, shape),
        Node("norm", "scale", (1,), shape, {}, {"factor": random(2, 1, 1), "shift": random(2, 1, 1)}),
        Node("relu", "relu", (2,), shape),
        conv("second", 3, 2, 3, 1, shape),
        Node("relu2", "relu", (4,), shape),
        Node("sum", "add", (3, 5), shape),
        Node("pool", "max_pool", (6,), (2, 2, 2), window),
        Node("flat", "reshape", (7,), (8,)),
        Node("mean", "sum", (6,), (2,), {"axes": (1, 2), "keepdim": False}),
        Node("both", "concat", (8, 9), (10,), {"axis": 0}),
        linear("head", 10, random(1, 10), random(1)),
    )
    return Graph(nodes)


def test_least_value_with_convolutions_pools_and_a_residual_sum() -> None:
    graph = convolutional()
    base = torch.full((1, 2, 2), 0.5, dtype=DOUBLE)
    half = torch.zeros(1, 2, 2, dtype=DOUBLE)
    half[0, 0] = 1.0  # two pixels may change
    inputs = InputSet((base - half)[None], (base + half)[None])
    signs = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    found = exact_minimum(graph, inputs, signs, torch.zeros(2), intermediate(graph, inputs))
    flat = grid(InputSet(inputs.lower[:, 0, 0], inputs.upper[:, 0, 0]), 201)
    points = base.expand(len(flat), 1, 2, 2).clone()
    points[:, 0, 0] = flat
    sampled = (evaluate(graph, points) @ signs.T).amin(0)
    assert (found <= sampled + 1e-6).all()
    torch.testing.assert_close(found, sampled, rtol=1e-3, atol=0.01)


def _conjunction(low: float) -> tuple[Graph, InputSet, Specification]:
    """Violated if x + low <= 0 and -x + low <= 0, for x in [-1, 1]."""
    weight = torch.tensor([[1.0], [-1.0]])
    graph = Graph((Node("x", "input", (), (1,)), linear("y", 0, weight, torch.full((2,), low))))
    spec = Specification(
        torch.eye(2, dtype=DOUBLE)[None], torch.zeros(1, 2, dtype=DOUBLE), torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.bool),
    )  # fmt: skip
    return graph, box(torch.zeros(1), 1.0), spec


def test_conjunction_that_only_a_combination_of_rows_refutes() -> None:
    for relaxed in (False, True):
        proved = solve(*_conjunction(0.4), {}, relaxed=relaxed)
        assert proved.verdict == Verdict.VERIFIED
        assert proved.lower_bound == pytest.approx(0.4, abs=1e-6)
    broken = solve(*_conjunction(-0.1), {})
    assert broken.verdict == Verdict.FALSIFIED
    assert broken.counterexample is not None
    assert abs(float(broken.counterexample)) <= 0.1


def test_verdicts_of_robustness_are_those_of_a_fine_grid() -> None:
    seen = set()
    for seed in range(8):
        graph = dense(seed, (2, 6, 3))
        inputs = box(torch.tensor([0.3, 0.1]), 0.25)
        label = evaluate(graph, torch.tensor([[0.3, 0.1]], dtype=DOUBLE)).argmax(1)
        spec = robustness(label, 3, DOUBLE)
        found = solve(graph, inputs, spec, {})
        wrong = bool((evaluate(graph, grid(inputs, 101)).argmax(1) != label).any())
        assert found.verdict == (Verdict.FALSIFIED if wrong else Verdict.VERIFIED)
        if wrong:
            assert found.counterexample is not None
            assert bool(spec.violated(evaluate(graph, found.counterexample)))
            assert bool((found.counterexample >= inputs.lower).all() & (found.counterexample <= inputs.upper).all())
        seen.add(found.verdict)
    assert len(seen) == 2


def test_l1_ball_inside_a_box() -> None:
    weight = torch.tensor([[3.0, 1.0]])
    graph = Graph((Node("x", "input", (), (2,)), linear("y", 0, weight, torch.zeros(1))))
    center = torch.zeros(1, 2, dtype=DOUBLE)
    lower, upper = torch.tensor([[-0.2, -1.0]], dtype=DOUBLE), torch.ones(1, 2, dtype=DOUBLE)
    inputs = InputSet(lower, upper, Ball("l1", center, torch.tensor([0.5], dtype=DOUBLE)))
    found = exact_minimum(graph, inputs, torch.ones(1, 1), torch.zeros(1), {})
    assert float(found) == pytest.approx(-0.2 * 3 - 0.3, abs=1e-6)
    spec = Specification(
        torch.ones(1, 1, 1),
        torch.full((1, 1), 0.89),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.bool),
    )
    broken = solve(graph, inputs, spec, {})
    assert broken.verdict == Verdict.FALSIFIED
    assert broken.counterexample is not None
    assert float(broken.counterexample.abs().sum()) <= 0.5


def test_margin_within_the_tolerance_stays_open() -> None:
    graph, inputs, spec = _conjunction(1e-8)
    found = solve(graph, inputs, spec, {})
    assert found.verdict == Verdict.UNKNOWN
    assert found.reason.startswith("open numerically")


def test_bounds_in_float32_are_used_with_a_margin() -> None:
    graph = dense(2, (2, 6, 2))
    inputs = box(torch.zeros(2), 1.0)
    row = torch.tensor([[1.0, -1.0]], dtype=DOUBLE)
    exact = intermediate(graph, inputs)
    narrow = {index: Interval(one.lower.float(), one.upper.float()) for index, one in exact.items()}
    found, loose = (relaxed_minimum(graph, inputs, row, torch.zeros(1), known) for known in (exact, narrow))
    assert float(found) - 1e-4 <= float(loose) <= float(found) + 1e-9


def test_deadline_gives_no_verdict() -> None:
    graph = dense(0, (2, 40, 40, 2))
    spec = robustness(torch.zeros(1, dtype=torch.int64), 2, DOUBLE)
    found = solve(graph, box(torch.zeros(2), 1.0), spec, {}, deadline=Deadline.after(0.0))
    assert found.verdict in (Verdict.TIMEOUT, Verdict.FALSIFIED)


def test_what_has_no_encoding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = robustness(torch.zeros(1, dtype=torch.int64), 2, DOUBLE)
    inputs = box(torch.zeros(2), 1.0)
    with pytest.raises(UnsupportedOperationError, match="'sigmoid' of node 'sigmoid0'"):
        solve(dense(0, (2, 3, 2), "sigmoid"), inputs, spec, {})
    ball = InputSet(inputs.lower, inputs.upper, Ball("l2", inputs.lower, torch.ones(1, dtype=DOUBLE)))
    with pytest.raises(UnsupportedOperationError, match="not for l2 balls"):
        solve(dense(0, (2, 3, 2)), ball, spec, {})
    with pytest.raises(UnsupportedOperationError, match="up to 5,000"):
        solve(dense(0, (2, 3000, 2)), inputs, spec, {})
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        solve(dense(0, (2, 3, 2)), inputs, spec, {})


def test_tolerance_grows_with_the_weights() -> None:
    spec = robustness(torch.zeros(1, dtype=torch.int64), 2, DOUBLE)
    small, large = dense(0, (2, 3, 2)), dense(0, (2, 3, 3, 2))
    assert milp._amplification(small, spec) >= 1
    expected = 2.0
    for node in large.nodes:
        if "weight" in node.constants:
            expected *= max(1.0, float(torch.linalg.matrix_norm(node.constants["weight"], torch.inf)))
    assert milp._amplification(large, spec) == pytest.approx(expected)


def test_tolerance_grows_with_sums_skips_and_large_bounds() -> None:
    nodes = (
        Node("x", "input", (), (4,)),
        Node("skip", "add", (0, 0), (4,)),
        Node("bent", "leaky_relu", (1,), (4,), {"slope": -2.0}),
        Node("sum", "sum", (2,), (1,), {"axes": (0,), "keepdim": True}),
    )
    one = torch.ones(1, 1, 1, dtype=DOUBLE)
    index = torch.zeros(1, dtype=torch.int64)
    assert milp._amplification(Graph(nodes), Specification(one, one[0], index, index.bool())) == 2 * 5 * 4
    graph, _, _ = _conjunction(1e-8)
    wide = InputSet(
        torch.full((1, *graph.input_shape), -100.0).double(), torch.full((1, *graph.input_shape), 100.0).double()
    )
    assert milp._Problem.of(graph, wide, {}).largest >= 100
