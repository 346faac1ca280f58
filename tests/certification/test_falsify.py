"""The search for counterexamples: planted ones, the set's edges, strict rows, and independence of the batch."""

import pytest
import torch
from torch import Tensor

from robustly.certification.deadline import Deadline
from robustly.certification.falsify import falsify, falsify_each, inside, judge
from robustly.certification.network import Graph, Node
from robustly.certification.sets import Ball, InputSet
from robustly.certification.specification import Specification, robustness
from robustly.randomness import KeyedGenerator


def affine(weight: list[list[float]], bias: list[float]) -> Graph:
    matrix, shift = torch.tensor(weight), torch.tensor(bias)
    return Graph(
        (
            Node("x", "input", (), (matrix.shape[1],)),
            Node("y", "linear", (0,), (matrix.shape[0],), {}, {"weight": matrix, "bias": shift}),
        )
    )


def box(low: list[float], high: list[float]) -> InputSet:
    return InputSet(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))


def below(rows: list[list[float]], offset: list[float], disjunct: list[int], strict: bool = False) -> Specification:
    return Specification(
        torch.tensor([rows], dtype=torch.float64),
        torch.tensor([offset], dtype=torch.float64),
        torch.tensor(disjunct),
        torch.full((len(disjunct),), strict),
    )


def bump(at: Tensor, width: float) -> Graph:
    """1 - 2 relu(1 - ||x - at||_1 / width): negative in a small diamond only."""
    count = len(at)
    both = torch.cat([torch.eye(count), -torch.eye(count)])
    return Graph(
        (
            Node("x", "input", (), (count,)),
            Node("sides", "linear", (0,), (2 * count,), {}, {"weight": both, "bias": -both @ at}),
            Node("far", "relu", (1,), (2 * count,)),
            Node(
                "near",
                "linear",
                (2,),
                (1,),
                {},
                {"weight": torch.full((1, 2 * count), -1 / width), "bias": torch.ones(1)},
            ),
            Node("hat", "relu", (3,), (1,)),
            Node("y", "linear", (4,), (1,), {}, {"weight": torch.tensor([[-2.0]]), "bias": torch.ones(1)}),
        )
    )


def test_finds_the_corner_of_a_linear_property():
    graph = affine([[1.0, -2.0, 3.0]], [0.0])
    inputs = box([-1.0] * 3, [1.0] * 3)
    assert falsify(graph, inputs, below([[1.0]], [6.0001], [0]), steps=60) is None
    found = falsify(graph, inputs, below([[1.0]], [5.99], [0]), steps=60)
    assert found is not None
    assert found.shape == (1, 3)
    assert (found[0] @ torch.tensor([1.0, -2.0, 3.0])).item() <= -5.99


def test_finds_a_wide_planted_region_and_never_invents_a_narrow_one():
    at = torch.tensor([0.3, -0.4])
    inputs, spec = box([-1.0, -1.0], [1.0, 1.0]), below([[1.0]], [0.0], [0])
    found = falsify(bump(at, 0.5), inputs, spec)
    assert found is not None
    assert (found[0] - at).abs().sum() <= 0.25
    assert falsify(bump(at, 0.5), inputs, below([[1.0]], [1.001], [0])) is None


def test_every_disjunct_is_followed():
    # The nearest disjunct at most inputs (x <= -2, never) hides the one that can hold (x >= 1 - 1e-6).
    graph = affine([[1.0]], [0.0])
    spec = below([[1.0], [-10.0]], [1.01, 10.0], [0, 1])
    found = falsify(graph, box([-1.0], [1.0]), spec, starts=8, steps=30)
    assert found is not None
    assert found.item() == 1.0


def test_points_lie_inside_a_decimal_box():
    # float32(0.1) > 0.1 and float32(0.7) < 0.7: rounding to nearest would leave the box on one side.
    inputs = box([0.7], [0.7 + 1e-6])
    low, high = inside(inputs)
    assert low.double().item() >= 0.7 > torch.tensor(0.7).double().item()
    assert high.double().item() <= 0.7 + 1e-6
    upper = box([0.0], [0.1])
    found = falsify(affine([[-1.0]], [0.0]), upper, below([[1.0]], [0.0999], [0]))
    assert found is not None
    assert found.double().item() <= 0.1


def test_a_box_without_float32_values_has_no_counterexample():
    inputs = box([0.1], [0.1])
    assert falsify(affine([[1.0]], [0.0]), inputs, below([[1.0]], [-1.0], [0]), starts=4, steps=2) is None
    _, value = judge(affine([[1.0]], [0.0]), inputs, below([[1.0]], [-1.0], [0]), torch.tensor([[0.1]]))
    assert value.item() > 0


def test_strict_rows_need_more_than_equality():
    graph, inputs = affine([[0.0]], [1.0]), box([0.0], [1.0])
    assert falsify(graph, inputs, below([[1.0]], [-1.0], [0]), starts=2, steps=1) is not None
    assert falsify(graph, inputs, below([[1.0]], [-1.0], [0], strict=True), starts=2, steps=1) is None


@pytest.mark.parametrize(("norm", "least"), [("l2", -5.0), ("l1", -4.0), ("l0", -4.0)])
def test_points_stay_in_the_ball(norm: str, least: float):
    center = torch.zeros(1, 2)
    inputs = InputSet(center - 1, center + 1, Ball(norm, center, torch.ones(1)))
    graph = affine([[3.0, 4.0]], [0.0])
    assert falsify(graph, inputs, below([[1.0]], [-least + 1e-3], [0]), steps=80) is None
    found = falsify(graph, inputs, below([[1.0]], [-least - 0.02], [0]), steps=80)
    assert found is not None
    size = {"l2": found.double().norm(), "l1": found.double().abs().sum(), "l0": (found != 0).sum()}[norm]
    assert size <= 1


def test_results_of_an_example_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    graph = affine(torch.randn(3, 4).tolist(), [0.0] * 3)
    center = torch.rand(5, 4)
    labels = (center @ graph.nodes[1].constants["weight"].T).argmax(1)
    inputs = InputSet(center - 0.04, center + 0.04)
    generator = KeyedGenerator(7, torch.arange(5))
    together = falsify_each(graph, inputs, robustness(labels, 3), steps=3, generator=generator)
    for one in range(5):
        index = torch.tensor([one])
        alone = falsify_each(
            graph, inputs.select(index), robustness(labels[index], 3), steps=3, generator=generator.select(index)
        )
        assert torch.equal(alone.points[0], together.points[one])
        assert bool(alone.mask) == bool(together.mask[one])
    assert together.mask.any()
    assert not together.mask.all()
    assert (together.mask == (together.margin <= 0)).all()


def test_a_deadline_stops_after_the_first_evaluation():
    found = falsify_each(
        affine([[1.0]], [0.0]),
        box([-1.0], [1.0]),
        below([[1.0]], [0.999], [0]),
        start=torch.zeros(1, 1),
        steps=10**6,
        deadline=Deadline.after(0.0),
    )
    assert not found.mask.item()
    assert found.margin.item() == pytest.approx(0.999)
