"""Max pools: which values the lines read, and the same network with ReLUs instead."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from certification.operations.nodes import draws, node_of, regular_rows
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, Node
from robustly.certification.operations import RULES, Interval
from robustly.certification.operations.pool_as_relu import max_pool_as_relu


def pool(kernel, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False) -> dict[str, object]:
    return {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}


def pair(low: list[float], high: list[float]) -> Interval:
    return Interval(*(torch.tensor(one, dtype=torch.float64).view(1, 1, 1, -1) for one in (low, high)))


def relaxed(low: list[float], high: list[float]):
    node = node_of("max_pool", (1, 1, len(low)), settings=pool((1, len(low)), (1, 1)))
    return RULES["max_pool"].relax(node, [pair(low, high)], None)


def test_a_value_that_none_can_exceed_is_the_maximum():
    extra = relaxed([0.0, 2.0, -1.0], [2.0, 3.0, 1.0])
    assert [index.item() for index in extra.index] == [1, 1]
    assert extra.upper_slope.item() == 1
    assert extra.upper_offset.item() == 0


def test_upper_line_is_the_chord_of_the_maximum_of_one_value_and_a_constant():
    """x in [0, 4], others at most 2: max(x, 2) is below 2 + x / 2, which is 4 at the end; a constant would be 4."""
    extra = relaxed([1.0, 0.0], [2.0, 4.0])
    assert [index.item() for index in extra.index] == [0, 1]
    assert extra.upper_slope.item() == pytest.approx(0.5)
    assert extra.upper_offset.item() == pytest.approx(2.0)


def test_first_of_equals():
    extra = relaxed([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert [index.item() for index in extra.index] == [0, 0]
    assert extra.upper_slope.item() == 0
    assert extra.upper_offset.item() == pytest.approx(2.0)


def test_padding_is_never_the_maximum():
    node = node_of("max_pool", (1, 3, 3), settings=pool((3, 3), (2, 2), (1, 1)))
    low = -5 - draws(1, 1, 3, 3).abs()
    extra = RULES["max_pool"].relax(node, [Interval(low, low + 1)], None)
    assert int(torch.cat([one.flatten() for one in extra.index]).max()) < 9
    interval = RULES["max_pool"].interval(node, [Interval(low, low + 1)])
    assert float(interval.upper.max()) < 0


def test_overlapping_windows_add_up():
    node = node_of("max_pool", (1, 1, 3), settings=pool((1, 2), (1, 1)))
    box = pair([0.0, 5.0, 0.0], [1.0, 6.0, 1.0])
    rows = regular_rows(node, 1, 2)
    moved = RULES["max_pool"].backward(node, rows, RULES["max_pool"].relax(node, [box], None)).inputs[0]
    assert moved is not None
    expected = torch.zeros(1, 2, 1, 1, 3, dtype=torch.float64)
    expected[..., 1] = rows.coefficients.sum(-1)
    torch.testing.assert_close(moved.coefficients, expected)


@pytest.mark.parametrize(
    ("shape", "setting"),
    [
        ((2, 6, 8), pool((2, 2), (2, 2))),
        ((2, 7, 7), pool((3, 3), (2, 2), (1, 1))),
        ((2, 7, 8), pool((3, 2), (2, 3), (1, 1), (2, 1), True)),
        ((1, 5, 5), pool((5, 5), (1, 1))),
        ((3, 4, 4), pool((1, 1), (2, 2))),
        ((2, 9), pool((3,), (2,), (1,), (2,))),
    ],
)
def test_max_pool_as_relus_is_the_same_function(shape: tuple[int, ...], setting: dict[str, object]):
    node = node_of("max_pool", shape, settings=setting)
    size = node.size
    weight = draws(3, size)
    graph = Graph(
        (
            Node("x", "input", (), shape),
            Node("shift", "scale", (0,), shape, {}, {"shift": torch.tensor(-4.0, dtype=torch.float64)}),
            Node("pool", "max_pool", (1,), node.shape, setting),
            Node("flat", "reshape", (2,), (size,)),
            Node("out", "linear", (3,), (3,), {}, {"weight": weight}),
        )
    )
    changed = max_pool_as_relu(graph)
    assert "max_pool" not in {one.op for one in changed.nodes}
    assert changed.source == graph.source
    x = draws(50, *shape, seed=4)
    torch.testing.assert_close(evaluate(changed, x), evaluate(graph, x), rtol=1e-12, atol=1e-12)


def test_networks_without_max_pools_stay_as_they_are():
    graph = Graph((Node("x", "input", (), (3,)), Node("r", "relu", (0,), (3,)), Node("s", "add", (0, 1), (3,))))
    changed = max_pool_as_relu(graph)
    assert [(one.op, one.inputs) for one in changed.nodes] == [(one.op, one.inputs) for one in graph.nodes]


def test_two_pools_in_a_row_need_few_relus():
    """A 2 x 2 pool takes 3 ReLUs for each value."""
    graph = Graph(
        (
            Node("x", "input", (), (1, 8, 8)),
            Node("p", "max_pool", (0,), (1, 4, 4), pool((2, 2), (2, 2))),
            Node("q", "max_pool", (1,), (1, 2, 2), pool((2, 2), (2, 2))),
        )
    )
    changed = max_pool_as_relu(graph)
    assert sum(one.size for one in changed.nodes if one.op == "relu") == 3 * (16 + 4)
    x = draws(5, 1, 8, 8)
    expected = functional.max_pool2d(functional.max_pool2d(x, 2), 2).flatten(1)
    torch.testing.assert_close(evaluate(changed, x), expected)


def test_average_pools_agree_with_pytorch():
    x = draws(2, 3, 7, 9)
    settings = {
        "kernel": (3, 2),
        "stride": (2, 2),
        "padding": (1, 1),
        "ceil_mode": True,
        "count_include_pad": False,
    }
    node = node_of("avg_pool", (3, 7, 9), settings=settings)
    module = nn.AvgPool2d((3, 2), (2, 2), (1, 1), ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(RULES["avg_pool"].evaluate(node, [x]), module(x))


def test_infinite_padding_of_a_max_pool_adds_nothing_to_rows():
    padded = node_of("pad", (1, 3, 3), settings={"pads": (1, 1, 1, 1), "value": -torch.inf})
    node = node_of("max_pool", (1, 5, 5), settings=pool((3, 3), (2, 2)))
    low = draws(1, 1, 3, 3)
    inputs = [RULES["pad"].interval(padded, [Interval(low, low + 0.1)])]
    moved = RULES["max_pool"].backward(node, regular_rows(node, 1, 2), RULES["max_pool"].relax(node, inputs, None))
    bias = RULES["pad"].backward(padded, moved.inputs[0], None).bias
    assert torch.equal(bias, torch.zeros_like(bias))
