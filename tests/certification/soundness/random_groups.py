"""Many random networks of one architecture in one graph: groups of convolutions that do not mix.

Every group of channels is a network of its own, with its own weights, inputs and property.
"""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from certification.soundness.random_problems import Draft, activation, inside, pool
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, Node
from robustly.certification.sets import InputSet

NETWORKS = 16


def _convolution(
    d: Draft, at: int, stride: tuple[int, ...] | None = None, kernel: tuple[int, ...] | None = None
) -> int:
    shape = d.nodes[at].shape
    axes = range(len(shape) - 1)
    kernel = kernel or tuple(d.draws.randint(1, 3) for _ in axes)
    each, made = shape[0] // NETWORKS, d.draws.randint(1, 2)
    settings = {
        "stride": stride or tuple(d.draws.choice((1, 1, 2)) for _ in axes),
        "padding": tuple(d.draws.choice((0, 0, 1, 2)) if stride is None else 0 for _ in axes),
        "dilation": tuple(d.draws.choice((1, 1, 1, 2)) if stride is None else 1 for _ in axes),
        "groups": NETWORKS,
    }
    weight = d.numbers(NETWORKS * made, each, *kernel, fan_in=each * math.prod(kernel))
    return d.add("conv", at, settings=settings, constants={"weight": weight, "bias": 0.4 * d.numbers(len(weight))})


def _transposed(d: Draft, at: int) -> int:
    shape = d.nodes[at].shape
    axes = range(len(shape) - 1)
    settings = {
        "stride": tuple(d.draws.randint(1, 2) for _ in axes),
        "padding": tuple(d.draws.randint(0, 1) for _ in axes),
        "dilation": (1,) * len(axes),
        "output_padding": (0,) * len(axes),
        "groups": NETWORKS,
    }
    kernel = tuple(d.draws.randint(1, 3) for _ in axes)
    return d.add("conv_transpose", at, settings=settings, constants={"weight": d.numbers(shape[0], 1, *kernel)})


def _scaled(d: Draft, at: int) -> int:
    over = (d.nodes[at].shape[0], *[1] * (len(d.nodes[at].shape) - 1))
    return d.add("scale", at, constants={"factor": d.numbers(*over), "shift": 0.3 * d.numbers(*over)})


def _cut(d: Draft, at: int) -> int:
    shape = d.nodes[at].shape
    axis = d.draws.randrange(1, len(shape))
    if d.draws.random() < 0.4:
        pads = [d.draws.choice((0, 1, -1)) for _ in range(2 * (len(shape) - 1))]
        return d.add("pad", at, settings={"pads": pads, "value": d.draws.choice((0.0, 0.4))})
    if d.draws.random() < 0.5:
        return d.add("concat", at, at, settings={"axis": axis})
    settings = {"axis": axis, "start": d.draws.randint(0, 1), "stop": shape[axis], "step": d.draws.randint(1, 2)}
    return d.add("slice", at, settings=settings)


def _joined(d: Draft, at: int) -> int:
    shape = d.nodes[at].shape
    if min(shape[1:]) >= 4 and d.draws.random() < 0.5:  # two paths of different strides
        half = tuple(length // 2 for length in shape[1:])
        kernel = tuple(length - made + 1 for length, made in zip(shape[1:], half, strict=True))
        ends = [
            _convolution(d, at, (1,) * len(half), kernel),
            _convolution(d, at, (2,) * len(half), (2,) * len(half)),
        ]
        if d.nodes[ends[0]].shape == d.nodes[ends[1]].shape:
            return d.add("add", *ends, shape=d.nodes[ends[0]].shape)
    same = [one for one, node in enumerate(d.nodes) if node.shape == shape]
    return d.add(d.draws.choice(("add", "add", "sub", "mul")), at, d.draws.choice(same), shape=shape)


def random_group(seed: int) -> Graph:
    """`NETWORKS` networks of 3 to 10 operations over sequences or small images."""
    draws = random.Random(seed)
    channels = NETWORKS * draws.choice((1, 1, 2))
    shape = draws.choice(((channels, 1), (channels, 2), (channels, 3), (channels, 2, 2), (channels, 4, 4)))
    d = Draft(draws, torch.Generator().manual_seed(seed), [Node("x", "input", (), shape)], most=160 * NETWORKS)
    at = 0
    for _ in range(draws.randint(2, 3)):
        steps: list[Callable[[Draft, int], int]] = [
            _convolution,
            _convolution,
            _scaled,
            pool,
            _transposed,
            _cut,
            _joined,
        ]
        for step in [_convolution, *draws.sample(steps, draws.randint(0, 2))]:
            count = len(d.nodes)
            try:
                at = step(d, at)
            except (RuntimeError, ValueError, IndexError):  # the operation does not fit this shape
                del d.nodes[count:]
        at = activation(d, at)
        if draws.random() < 0.3:
            at = _joined(d, at)
    if draws.random() < 0.7:
        at = _convolution(d, at, (1,) * (len(shape) - 1), d.nodes[at].shape[1:])
    d.add("reshape", at, shape=(d.nodes[at].size,))
    return Graph(tuple(d.nodes), f"group {seed}")


def random_boxes(graph: Graph, seed: int) -> InputSet:
    """A box for all networks of a group; in each one about 3 values may change."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, *graph.input_shape)
    size = graph.nodes[0].size // NETWORKS
    center = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    radius = 10 ** (-2 * torch.rand(NETWORKS, generator=generator, dtype=torch.float64))
    free = torch.rand(NETWORKS, size, generator=generator) < min(1.0, 3 / size)
    reach = (radius.unsqueeze(1) * free).view(shape)
    return InputSet(center - reach, center + reach)


def random_rows(graph: Graph, seed: int) -> Tensor:
    """One row for each network, over its own outputs: `(1, NETWORKS, outputs)`."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(NETWORKS, graph.outputs // NETWORKS, generator=generator, dtype=torch.float64)
    return torch.block_diag(*rows).unsqueeze(0)


def least_values(
    graph: Graph, inputs: InputSet, rows: Tensor, generator: torch.Generator, *, count: int = 96, rounds: int = 3
) -> tuple[Tensor, Tensor]:
    """The least attained value of each row `(NETWORKS,)`, and all points `(1, P, *shape)`."""
    low, high = inputs.lower, inputs.upper
    share = torch.rand(count, *low.shape[1:], generator=generator, dtype=torch.float64)
    share[: count // 3] = share[: count // 3].round()
    points = low + share * (high - low)
    tried = [points]
    for step in range(rounds + 1):
        values = evaluate(graph, points) @ rows[0].T
        least = values.argmin(0)
        if step == rounds:
            break
        parts = points.view(len(points), NETWORKS, -1)
        best = parts[least, torch.arange(NETWORKS)].reshape(low.shape)
        share = 2 * torch.rand(count // 2, *low.shape[1:], generator=generator, dtype=torch.float64) - 1
        scale = (10.0 ** -(step + torch.arange(count // 2) % 3)).view(-1, *[1] * (low.dim() - 1))
        points = torch.minimum(torch.maximum(best + scale * share * (high - low), low), high)
        points[0] = best
        tried.append(points)
    return values.amin(0), inside(inputs, torch.cat(tried).unsqueeze(0))
