"""Small networks as graphs, for tests."""

import itertools

import torch
from torch import Tensor

from robustly.certification.network import Graph, Node


def dense(weights: list[Tensor], biases: list[Tensor] | None = None, activation: str = "relu") -> Graph:
    """A fully connected network with an activation between its layers."""
    nodes = [Node("x", "input", (), (weights[0].shape[1],))]
    for layer, weight in enumerate(weights):
        constants = {"weight": weight}
        if biases is not None:
            constants["bias"] = biases[layer]
        nodes.append(Node(f"layer{layer}", "linear", (len(nodes) - 1,), (len(weight),), {}, constants))
        if layer + 1 < len(weights):
            nodes.append(Node(f"{activation}{layer}", activation, (len(nodes) - 1,), (len(weight),)))
    return Graph(tuple(nodes))


def random_dense(
    sizes: list[int], seed: int, activation: str = "relu", dtype: torch.dtype = torch.float64
) -> Graph:
    """A fully connected network with random weights."""
    draws = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(many, few, generator=draws, dtype=dtype) / few**0.5 for few, many in itertools.pairwise(sizes)
    ]
    biases = [0.3 * torch.randn(many, generator=draws, dtype=dtype) for many in sizes[1:]]
    return dense(weights, biases, activation)


def conv_node(
    name: str, source: int, shape: tuple[int, ...], weight: Tensor, bias: Tensor, stride: int, padding: int
):
    """A two-dimensional convolution."""
    settings = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1), "groups": 1}
    return Node(name, "conv", (source,), shape, settings, {"weight": weight, "bias": bias})


def random_conv(seed: int, residual: bool = False, dtype: torch.dtype = torch.float64) -> Graph:
    """Two or three convolutions and two linear layers; with a sum of two paths if `residual`."""
    draws = torch.Generator().manual_seed(seed)

    def weights(*shape: int) -> Tensor:
        fan_in = torch.Size(shape[1:]).numel()
        return torch.randn(*shape, generator=draws, dtype=dtype) / fan_in**0.5

    def bias(count: int) -> Tensor:
        return 0.2 * torch.randn(count, generator=draws, dtype=dtype)

    nodes = [
        Node("x", "input", (), (2, 7, 9)),
        conv_node("first", 0, (4, 4, 5), weights(4, 2, 3, 3), bias(4), 2, 1),
        Node("relu1", "relu", (1,), (4, 4, 5)),
        conv_node("second", 2, (4, 4, 5), weights(4, 4, 3, 3), bias(4), 1, 1),
    ]
    if residual:
        nodes.append(Node("sum", "add", (2, 3), (4, 4, 5)))
    last = len(nodes) - 1
    nodes += [
        Node("relu2", "relu", (last,), (4, 4, 5)),
        conv_node("third", last + 1, (3, 2, 2), weights(3, 4, 2, 2), bias(3), 2, 0),
        Node("relu3", "relu", (last + 2,), (3, 2, 2)),
        Node("flat", "reshape", (last + 3,), (12,)),
        Node("linear", "linear", (last + 4,), (3,), {}, {"weight": weights(3, 12), "bias": bias(3)}),
    ]
    return Graph(tuple(nodes))
