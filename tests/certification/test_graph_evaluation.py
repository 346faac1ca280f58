"""Evaluation of graphs against PyTorch modules."""

import pytest
import torch
from torch import nn

from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, Node


def residual() -> tuple[Graph, nn.Module]:
    """x -> conv -> relu -> conv, plus the first convolution, flattened."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 3, 3, 2, 1)
            self.second = nn.Conv2d(3, 3, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = self.first(x)
            return (made + self.second(made.relu())).flatten(1)

    torch.manual_seed(0)
    block = Block().double()

    def conv(module: nn.Conv2d, source: int) -> Node:
        settings = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation, "groups": 1}
        constants = {"weight": module.weight.detach(), "bias": module.bias.detach()}
        return Node("conv", "conv", (source,), (3, 4, 3), settings, constants)

    nodes = (
        Node("x", "input", (), (2, 7, 5)),
        conv(block.first, 0),
        Node("relu", "relu", (1,), (3, 4, 3)),
        conv(block.second, 2),
        Node("sum", "add", (1, 3), (3, 4, 3)),
    )
    return Graph(nodes), block


def test_outputs_are_those_of_the_module():
    graph, block = residual()
    x = torch.randn(5, 2, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(evaluate(graph, x), block(x))
    kept = evaluate(graph, x, keep=True)
    assert sorted(kept) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(kept[2], block.first(x).relu())


def test_inputs_of_another_shape_are_refused():
    graph, _ = residual()
    with pytest.raises(ValueError, match=r"network: inputs of shape \(2, 7, 6\) do not fit"):
        evaluate(graph, torch.zeros(1, 2, 7, 6))


def test_a_graph_fills_in_the_shapes_that_its_nodes_read():
    graph, _ = residual()
    assert graph.nodes[4].input_shapes == ((3, 4, 3), (3, 4, 3))
    assert graph.to(torch.float32).nodes[1].input_shapes == ((2, 7, 5),)


def test_constants_join_every_example():
    value = torch.tensor([[1.0, 2.0]])
    nodes = (
        Node("x", "input", (), (1, 2)),
        Node("c", "constant", (), (1, 2), {}, {"value": value}),
        Node("both", "concat", (0, 1), (2, 2), {"axis": 0}),
    )
    assert evaluate(Graph(nodes), torch.zeros(3, 1, 2)).tolist() == [[0, 0, 1, 2]] * 3
    assert evaluate(Graph(nodes[:2]), torch.zeros(3, 1, 2)).tolist() == [[1, 2]] * 3
