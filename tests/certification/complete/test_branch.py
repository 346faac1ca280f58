"""Branch and bound over signs: exact against enumeration, sound with any multipliers, budgets, counterexamples."""

import itertools
import time

import pytest
import torch
from torch import Tensor

from certification.networks import dense, random_conv, random_dense
from robustly.certification.bounds.alpha import AlphaResult, optimise, tighten
from robustly.certification.bounds.backward import Free, lower
from robustly.certification.bounds.propagation import intermediate
from robustly.certification.complete.branch import branch
from robustly.certification.complete.domains import Domains, Store, clamped
from robustly.certification.deadline import Deadline
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, Node
from robustly.certification.operations import Interval, Rows
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.evidence import Verdict

F64 = torch.float64


def one_property(rows: Tensor, offset: Tensor, disjunct: list[int] | None = None) -> Specification:
    count = len(rows)
    number = torch.arange(count) if disjunct is None else torch.tensor(disjunct)
    return Specification(rows[None], offset[None], number, torch.zeros(count, dtype=torch.bool))


def root_of(graph: Graph, inputs: InputSet, spec: Specification) -> AlphaResult:
    bounds, slopes = tighten(graph, inputs)
    return optimise(graph, inputs, spec, bounds, slopes=slopes)


def box(size: float, count: int, seed: int) -> InputSet:
    x = torch.rand(1, count, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return InputSet(x - size, x + size)


def exact_minimum(graph: Graph, inputs: InputSet, row: Tensor) -> float:
    """Least value of a row of a network with one or two hidden layers, over all patterns of signs."""
    scipy = pytest.importorskip("scipy.optimize")
    layers = [node.constants for node in graph.nodes if node.op == "linear"]
    hidden = sum(len(one["weight"]) for one in layers[:-1])
    best = float("inf")
    limits = list(zip(inputs.lower[0].tolist(), inputs.upper[0].tolist(), strict=True))
    for pattern in itertools.product([0.0, 1.0], repeat=hidden):
        signs = iter(pattern)
        weight, bias = torch.eye(len(limits), dtype=F64), torch.zeros(len(limits), dtype=F64)
        above, below = [], []
        for one in layers[:-1]:
            weight, bias = one["weight"] @ weight, one["weight"] @ bias + one["bias"]
            on = torch.tensor([next(signs) for _ in range(len(bias))], dtype=F64)
            above.append(-(2 * on - 1).unsqueeze(1) * weight)
            below.append((2 * on - 1) * bias)
            weight, bias = on.unsqueeze(1) * weight, on * bias
        last = row @ layers[-1]["weight"]
        cost, constant = last @ weight, float(last @ bias + row @ layers[-1]["bias"])
        found = scipy.linprog(cost.numpy(), torch.cat(above).numpy(), torch.cat(below).numpy(), bounds=limits)
        if found.status == 0:
            best = min(best, found.fun + constant)
    return best


@pytest.mark.parametrize("seed", [0, *(pytest.param(one, marks=pytest.mark.slow) for one in (1, 2, 3))])
def test_decides_on_both_sides_of_the_exact_minimum(seed):
    graph = random_dense([3, 4, 3, 2] if seed == 0 else [3, 4, 4, 2], seed=seed)
    inputs, row = box(1.5, 3, seed), torch.tensor([1.0, -1.0], dtype=F64)
    least = exact_minimum(graph, inputs, row)
    for gap, rule in itertools.product((1e-4, -1e-4), ("babsr", "fsb")):
        spec = one_property(row[None], torch.tensor([gap - least], dtype=F64))
        found = branch(graph, inputs, spec, root_of(graph, inputs, spec), domains=2000, rule=rule)
        if gap > 0:
            assert found.verdict == Verdict.VERIFIED
            assert 0 < found.lower_bound <= gap + 1e-9
        else:
            assert found.verdict == Verdict.FALSIFIED
            assert found.counterexample is not None
            assert bool(spec.violated(evaluate(graph, found.counterexample)))
            assert bool(((found.counterexample >= inputs.lower) & (found.counterexample <= inputs.upper)).all())


def test_exclusive_or_has_its_exact_minimum():
    # |x1 - x2| from two ReLUs: least 0 over the box. CROWN gives less, a split of both signs gives 0.
    graph = dense(
        [torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=F64), torch.ones(1, 2, dtype=F64)],
        [torch.zeros(2, dtype=F64), torch.zeros(1, dtype=F64)],
    )
    inputs = InputSet(torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64))
    row = torch.ones(1, 1, dtype=F64)
    holds = one_property(row, torch.tensor([1e-3], dtype=F64))
    found = branch(graph, inputs, holds, root_of(graph, inputs, holds), domains=100)
    assert found.verdict == Verdict.VERIFIED
    broken = one_property(row, torch.tensor([-1e-3], dtype=F64))
    assert branch(graph, inputs, broken, root_of(graph, inputs, broken), domains=100).verdict == Verdict.FALSIFIED


def test_any_multipliers_stay_below_the_least_value_of_the_half():
    graph = random_dense([3, 6, 5, 1], seed=11)
    inputs = box(1.0, 3, 4)
    bounds = intermediate(graph, inputs)
    open_ = ((bounds[1].lower < 0) & (bounds[1].upper > 0)).flatten().nonzero().squeeze(1)[:2]
    draws = torch.Generator().manual_seed(0)
    points = inputs.lower + torch.rand(20000, 3, generator=draws, dtype=F64) * (inputs.upper - inputs.lower)
    values = evaluate(graph, points, keep=True)
    row = Rows(torch.ones(1, 1, 1, dtype=F64))
    plain = lower(graph, graph.output, row, inputs, bounds).value
    for pattern in itertools.product([1, -1], repeat=2):
        signs = torch.tensor([pattern])
        half = {**bounds, 1: clamped(bounds[1], open_, signs)}
        inside = (values[1][:, open_] * signs >= 0).all(1)
        least = values[graph.output][inside].min()
        slopes = {2: Free(torch.ones(1, 1, 6, dtype=F64), True), 4: Free(torch.ones(1, 1, 5, dtype=F64), True)}
        free = lower(graph, graph.output, row, inputs, half, free=slopes).value
        none = lower(
            graph, graph.output, row, inputs, half, free=slopes, added={1: torch.zeros(1, 1, 6, dtype=F64)}
        ).value
        torch.testing.assert_close(none, free)
        best = float(free)
        for _ in range(30):
            multiplier = torch.zeros(1, 1, 6, dtype=F64)
            multiplier[0, 0, open_] = torch.rand(2, generator=draws, dtype=F64) * 2
            signed = torch.zeros(1, 1, 6, dtype=F64)
            signed[0, 0, open_] = -signs.double() * multiplier[0, 0, open_]
            found = lower(graph, graph.output, row, inputs, half, free=slopes, added={1: signed}).value
            assert float(found) <= float(least) + 1e-9
            best = max(best, float(found))
        assert best >= float(lower(graph, graph.output, row, inputs, half, free=slopes).value)
        assert float(plain) <= float(least) + 1e-9


@pytest.mark.slow
def test_bound_grows_with_the_number_of_domains():
    graph = random_dense([4, 20, 20, 16, 1], seed=2)
    inputs, row = box(1.0, 4, 2), torch.ones(1, 1, dtype=F64)
    points = inputs.lower + torch.rand(5000, 4, dtype=F64, generator=torch.Generator().manual_seed(0)) * 2.0
    least = float(evaluate(graph, points).min())
    spec = one_property(row, torch.tensor([-least + 0.02], dtype=F64))
    root = root_of(graph, inputs, spec)
    bounds = []
    for budget in (0, 8, 64, 256):
        found = branch(graph, inputs, spec, root, domains=budget, batch=4)
        if found.verdict != Verdict.UNKNOWN:
            break
        assert "budget of domains" in found.reason
        bounds.append(found.lower_bound)
    assert len(bounds) >= 2
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(float(root.margins.min()), abs=1e-5)
    assert bounds[-1] > bounds[0]


@pytest.mark.slow
def test_all_disjuncts_must_be_refuted():
    graph = random_dense([3, 4, 3, 3], seed=6)
    inputs = box(1.0, 3, 6)
    rows = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], dtype=F64)
    least = torch.tensor([exact_minimum(graph, inputs, row) for row in rows], dtype=F64)
    holds = one_property(rows, 1e-3 - least)
    found = branch(graph, inputs, holds, root_of(graph, inputs, holds), domains=5000)
    assert found.verdict == Verdict.VERIFIED
    last = torch.tensor([1e-3, 1e-3, -1e-3], dtype=F64) - least
    broken = one_property(rows, last)
    assert branch(graph, inputs, broken, root_of(graph, inputs, broken), domains=5000).verdict == Verdict.FALSIFIED


def test_rows_of_one_disjunct_are_combined():
    # Violated where y + 0.1 <= 0 and -y + 0.1 <= 0, which no y fulfils; no single row is positive everywhere.
    graph = random_dense([3, 5, 4, 1], seed=9)
    inputs = box(1.0, 3, 9)
    rows, offset = torch.tensor([[1.0], [-1.0]], dtype=F64), torch.tensor([0.1, 0.1], dtype=F64)
    spec = one_property(rows, offset, [0, 0])
    assert branch(graph, inputs, spec, root_of(graph, inputs, spec), domains=3000).verdict == Verdict.VERIFIED
    either = one_property(rows, offset, [0, 1])
    assert branch(graph, inputs, either, root_of(graph, inputs, either), domains=3000).verdict == Verdict.FALSIFIED


@pytest.mark.parametrize("activation", ["leaky_relu", "abs"])
def test_other_kinks_are_split(activation):
    base = random_dense([3, 5, 4, 1], seed=3)
    settings = {"slope": 0.2} if activation == "leaky_relu" else {}
    nodes = [
        Node(one.name, activation, one.inputs, one.shape, settings) if one.op == "relu" else one
        for one in base.nodes
    ]
    graph, inputs = Graph(tuple(nodes)), box(1.0, 3, 3)
    points = inputs.lower + torch.rand(40000, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) * 2.0
    least = evaluate(graph, points).min()
    for gap, verdict in ((0.1, Verdict.VERIFIED), (-0.02, Verdict.FALSIFIED)):
        spec = one_property(torch.ones(1, 1, dtype=F64), (gap - least).view(1))
        found = branch(graph, inputs, spec, root_of(graph, inputs, spec), domains=4000)
        assert found.verdict == verdict


def test_convolutions_and_residual_sums():
    graph = random_conv(6, residual=True)
    x = torch.rand(1, 2, 7, 9, generator=torch.Generator().manual_seed(2), dtype=F64)
    inputs = InputSet(x - 0.1, x + 0.1)
    row = torch.tensor([[1.0, -1.0, 0.0]], dtype=F64)
    share = torch.rand(3000, 2, 7, 9, generator=torch.Generator().manual_seed(3), dtype=F64).round()
    least = float((evaluate(graph, x - 0.1 + 0.2 * share) @ row.T).min())
    spec = one_property(row, torch.tensor([-least - 1e-9], dtype=F64))
    found = branch(graph, inputs, spec, root_of(graph, inputs, spec), domains=40)
    assert found.verdict in (Verdict.FALSIFIED, Verdict.UNKNOWN)
    spec = one_property(row, torch.tensor([0.5 - least], dtype=F64))
    root = root_of(graph, inputs, spec)
    found = branch(graph, inputs, spec, root, domains=2000)
    assert found.verdict == Verdict.VERIFIED


def test_smooth_activation_ends_as_unknown():
    graph = random_dense([3, 5, 4, 1], seed=3, activation="tanh")
    inputs = box(1.0, 3, 3)
    points = inputs.lower + torch.rand(5000, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) * 2.0
    spec = one_property(torch.ones(1, 1, dtype=F64), (0.05 - evaluate(graph, points).min()).view(1))
    found = branch(graph, inputs, spec, root_of(graph, inputs, spec), domains=100)
    assert found.verdict == Verdict.UNKNOWN
    assert "no sign to split" in found.reason


def test_stops_in_time_and_goes_on_after_a_rejected_counterexample():
    graph = random_dense([4, 30, 30, 1], seed=1)
    inputs, row = box(1.0, 4, 1), torch.ones(1, 1, dtype=F64)
    spec = one_property(row, -evaluate(graph, inputs.lower)[0] + 1e-3)
    root = root_of(graph, inputs, spec)
    begin = time.monotonic()
    found = branch(
        graph,
        inputs,
        spec,
        root,
        domains=10**6,
        deadline=Deadline.after(0.3),
        confirm=lambda x: torch.full((1, 1), 1e6, dtype=F64),
    )
    assert found.verdict in (Verdict.TIMEOUT, Verdict.VERIFIED, Verdict.UNKNOWN)
    assert found.verdict != Verdict.FALSIFIED
    assert time.monotonic() - begin < 20


def test_two_searches_are_equal():
    graph = random_dense([4, 12, 10, 1], seed=8)
    inputs = box(1.0, 4, 8)
    spec = one_property(torch.ones(1, 1, dtype=F64), torch.tensor([0.3], dtype=F64))
    root = root_of(graph, inputs, spec)
    first, second = (branch(graph, inputs, spec, root, domains=60, batch=8) for _ in range(2))
    assert (first.verdict, first.lower_bound, first.work) == (second.verdict, second.lower_bound, second.work)


def test_store_returns_the_worst_first_and_uses_places_again():
    def domains(bounds: list[float]) -> Domains:
        count = len(bounds)
        return Domains(
            torch.zeros(count, 3, dtype=torch.int8),
            torch.zeros(count, 3),
            torch.zeros(count, 3),
            torch.ones(count, 1),
            torch.arange(count),
            torch.tensor(bounds, dtype=F64),
            torch.zeros(count, dtype=torch.int64),
        )

    store = Store()
    store.push(domains([-1.0, -5.0, -3.0]))
    assert store.worst == -5.0
    first = store.pop(2)
    assert first.bound.tolist() == [-5.0, -3.0]
    assert first.disjunct.tolist() == [1, 2]
    for _ in range(300):
        store.push(domains([-2.0, -4.0]))
        store.pop(2)
    assert len(store) == 1
    assert store.pop(5).bound.tolist() == [-1.0]
    assert len(store) == 0
    assert store.worst == float("inf")


def test_weights_that_are_no_numbers_prove_nothing():
    hole = torch.full((2, 3), torch.nan, dtype=F64)
    graph = dense([hole, torch.ones(1, 2, dtype=F64)], [torch.zeros(2, dtype=F64), torch.ones(1, dtype=F64)])
    inputs, spec = box(0.5, 3, 0), one_property(torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64))
    found = branch(graph, inputs, spec, root_of(graph, inputs, spec), domains=50)
    assert found.verdict == Verdict.UNKNOWN
    assert found.lower_bound == -torch.inf


def test_no_disjunct_is_never_violated():
    graph, inputs = random_dense([3, 4, 2], seed=0), box(0.5, 3, 0)
    spec = one_property(torch.zeros(0, 2, dtype=F64), torch.zeros(0, dtype=F64))
    assert branch(graph, inputs, spec, root_of(graph, inputs, spec), domains=50).verdict == Verdict.VERIFIED


def test_refuses_two_properties_and_other_types():
    graph, inputs = random_dense([3, 4, 2], seed=0), box(0.5, 3, 0)
    spec = one_property(torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64))
    root = root_of(graph, inputs, spec)
    with pytest.raises(ValueError, match="float64"):
        branch(graph, inputs.to(torch.float32), spec, root, domains=1)
    twice = torch.tensor([0, 0])
    with pytest.raises(ValueError, match="one property at a time, not 2"):
        branch(graph, inputs.select(twice), spec.select(twice), root, domains=1)


def test_clamped_bounds():
    interval = Interval(torch.tensor([[-1.0, -2.0, 3.0]]), torch.tensor([[1.0, 2.0, 4.0]]))
    found = clamped(interval, torch.tensor([0, 1]), torch.tensor([[1, 0], [-1, -1]]))
    assert found.lower.tolist() == [[0.0, -2.0, 3.0], [-1.0, -2.0, 3.0]]
    assert found.upper.tolist() == [[1.0, 2.0, 4.0], [0.0, 0.0, 4.0]]
