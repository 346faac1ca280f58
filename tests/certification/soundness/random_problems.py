"""Random small networks of all operations, with sets and properties, and points that come near the truth."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, Node
from robustly.certification.operations import RULES
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.threats.lp import ThreatModel

KINKS = ("relu", "relu", "relu", "leaky_relu", "abs", "clip")
SMOOTH = ("sigmoid", "tanh", "gelu", "elu", "softplus", "silu", "square")
INFINITY = float("inf")


@dataclass
class Draft:
    """A network in the making.

    Args:
        draws: random choices.
        weights: random numbers.
        nodes: the nodes so far.
        kinked_only: only operations that mixed-integer programs encode.
        most: largest number of values of a node.
    """

    draws: random.Random
    weights: torch.Generator
    nodes: list[Node]
    kinked_only: bool = False
    most: int = 160

    def numbers(self, *shape: int, fan_in: int = 1) -> Tensor:
        values = torch.randn(*shape, generator=self.weights, dtype=torch.float64)
        return values * (self.draws.choice((0.5, 1.0, 1.0, 2.0)) / fan_in**0.5)

    def add(self, op: str, *inputs: int, settings=None, constants=None, shape=None) -> int:
        """Add a node; its shape follows from evaluation, a node of many values is left out."""
        shapes = tuple(self.nodes[one].shape for one in inputs)
        rank = shape or (shapes[0] if shapes else ())
        node = Node(f"n{len(self.nodes)}", op, inputs, rank, settings or {}, constants or {}, shapes)
        if shape is None:
            made = RULES[op].evaluate(node, [torch.zeros(1, *one, dtype=torch.float64) for one in shapes])
            node = Node(node.name, op, inputs, tuple(made.shape[1:]), settings or {}, constants or {}, shapes)
        if not 0 < node.size <= self.most:
            raise RuntimeError("too large")
        self.nodes.append(node)
        return len(self.nodes) - 1


def activation(d: Draft, at: int) -> int:
    """Add a random activation."""
    op = d.draws.choice(KINKS if d.kinked_only or d.draws.random() < 0.7 else SMOOTH)
    settings, constants, shape = {}, {}, d.nodes[at].shape
    if op == "leaky_relu":
        settings = {"slope": d.draws.choice((0.01, 0.3, 1.5, -0.5, 0.0))}
        if len(shape) == 3 and d.draws.random() < 0.3:
            settings, constants = {}, {"slope": d.numbers(shape[0], 1, 1)}
    elif op == "clip":
        low, high = d.draws.choice(((-0.5, 0.7), (0.0, 6.0), (-INFINITY, 0.3), (0.1, INFINITY), (-1.0, 1.0)))
        settings = {"low": low, "high": high}
    elif op == "elu":
        settings = {"alpha": d.draws.choice((1.0, 0.5, 2.0))}
    elif op == "softplus":
        settings = {"beta": d.draws.choice((1.0, 3.0))}
    elif op == "gelu":
        settings = {"approximate": d.draws.choice(("none", "tanh"))}
    return d.add(op, at, settings=settings, constants=constants, shape=shape)


def _linear(d: Draft, at: int) -> int:
    length = d.nodes[at].shape[-1]
    count = d.draws.randint(1, 6)
    constants = {"weight": d.numbers(count, length, fan_in=length)}
    if d.draws.random() < 0.8:
        constants["bias"] = 0.5 * d.numbers(count)
    return d.add("linear", at, constants=constants)


def _convolution(d: Draft, at: int, stride=None, kernel=None) -> int:
    shape = d.nodes[at].shape
    axes = len(shape) - 1
    groups = d.draws.choice([g for g in (1, 1, 2, 3) if shape[0] % g == 0])
    kernel = kernel or tuple(d.draws.randint(1, 3) for _ in range(axes))
    channels = groups * d.draws.randint(1, 2)
    settings = {
        "stride": stride or tuple(d.draws.choice((1, 1, 2, 3)) for _ in range(axes)),
        "padding": tuple(d.draws.choice((0, 0, 1, 2)) if stride is None else 0 for _ in range(axes)),
        "dilation": tuple(d.draws.choice((1, 1, 1, 2)) if stride is None else 1 for _ in range(axes)),
        "groups": groups,
    }
    fan_in = shape[0] // groups * math.prod(kernel)
    constants = {"weight": d.numbers(channels, shape[0] // groups, *kernel, fan_in=fan_in)}
    if d.draws.random() < 0.7:
        constants["bias"] = 0.5 * d.numbers(channels)
    return d.add("conv", at, settings=settings, constants=constants)


def _transposed(d: Draft, at: int) -> int:
    shape = d.nodes[at].shape
    axes = len(shape) - 1
    groups = d.draws.choice([g for g in (1, 2) if shape[0] % g == 0])
    stride = tuple(d.draws.randint(1, 2) for _ in range(axes))
    settings = {
        "stride": stride,
        "padding": tuple(d.draws.randint(0, 1) for _ in range(axes)),
        "dilation": (1,) * axes,
        "groups": groups,
        "output_padding": tuple(d.draws.randint(0, step - 1) for step in stride),
    }
    kernel = tuple(d.draws.randint(1, 3) for _ in range(axes))
    return d.add(
        "conv_transpose", at, settings=settings, constants={"weight": d.numbers(shape[0], 1, *kernel, fan_in=4)}
    )


def pool(d: Draft, at: int) -> int:
    """Add a random pool of a plane or a sequence."""
    shape = d.nodes[at].shape
    axes = range(len(shape) - 1)
    kernel = tuple(d.draws.randint(1, 3) for _ in axes)
    stride = kernel if d.draws.random() < 0.5 else tuple(d.draws.randint(1, 2) for _ in axes)
    settings = {
        "kernel": kernel,
        "stride": stride,
        "padding": tuple(d.draws.randint(0, size // 2) for size in kernel),
        "ceil_mode": d.draws.random() < 0.3,
    }
    if d.draws.random() < 0.6:
        settings["dilation"] = tuple(d.draws.choice((1, 1, 2)) for _ in axes)
        return d.add("max_pool", at, settings=settings)
    if len(shape) > 1 and d.draws.random() < 0.3:
        out = tuple(d.draws.randint(1, length) for length in shape[1:])
        return d.add("adaptive_avg_pool", at, settings={"output": out}, shape=(shape[0], *out))
    settings["count_include_pad"] = d.draws.random() < 0.5
    return d.add("avg_pool", at, settings=settings)


def _moved(d: Draft, at: int) -> int:  # noqa: PLR0911
    shape = d.nodes[at].shape
    axis = d.draws.randrange(len(shape))
    kind = d.draws.choice(("slice", "gather", "concat", "pad", "sum", "transpose", "scale", "reshape", "constant"))
    if kind == "slice":
        start = d.draws.randrange(shape[axis])
        settings = {"axis": axis, "start": start, "stop": shape[axis], "step": d.draws.randint(1, 2)}
        return d.add("slice", at, settings=settings)
    if kind == "gather":
        index = torch.tensor([d.draws.randrange(shape[axis]) for _ in range(d.draws.randint(1, 4))])
        return d.add(
            "gather",
            at,
            settings={"axis": axis},
            constants={"index": index},
            shape=(*shape[:axis], len(index), *shape[axis + 1 :]),
        )
    if kind == "concat":
        same = [one for one, node in enumerate(d.nodes) if node.shape == shape]
        return d.add("concat", at, d.draws.choice(same), settings={"axis": axis})
    if kind == "constant":
        value = d.add("constant", constants={"value": d.numbers(*shape)}, shape=shape)
        return d.add(d.draws.choice(("add", "sub", "mul")), value, at, shape=shape)
    if kind == "pad":
        pads = [d.draws.choice((0, 1, 1, -1, 2)) for _ in range(2 * min(2, len(shape)))]
        return d.add("pad", at, settings={"pads": pads, "value": d.draws.choice((0.0, 0.0, 0.5, -0.3))})
    if kind == "sum":
        return d.add("sum", at, settings={"axes": (axis,), "keepdim": len(shape) == 1 or d.draws.random() < 0.3})
    if kind == "transpose":
        return d.add(
            "transpose", at, settings={"permutation": tuple(d.draws.sample(range(len(shape)), len(shape)))}
        )
    if kind == "scale":
        over = (shape[0], *[1] * (len(shape) - 1)) if d.draws.random() < 0.5 else shape
        return d.add("scale", at, constants={"factor": d.numbers(*over), "shift": 0.3 * d.numbers(*over)})
    size = d.nodes[at].size
    options = [(size,)] + [(size // n, n) for n in (2, 3) if size % n == 0]
    options += [(size // 4, 2, 2)] * (size % 4 == 0) + [(1, size // 3, 3)] * (size % 3 == 0)
    return d.add("reshape", at, shape=d.draws.choice(options))


def _joined(d: Draft, at: int) -> int:
    """A sum, difference or product with another node of the same shape, or of two paths of different strides."""
    shape = d.nodes[at].shape
    if len(shape) == 3 and d.draws.random() < 0.4 and min(shape[1:]) >= 4:
        paths = [_convolution(d, at, (1, 1), (shape[1] - 1, shape[2] - 1)), _convolution(d, at, (2, 2), (2, 2))]
        sizes = [d.nodes[one].shape for one in paths]
        low = [min(size[axis] for size in sizes) for axis in range(3)]
        cut = []
        for one in paths:
            for axis in range(3):
                settings = {"axis": axis, "start": 0, "stop": low[axis], "step": 1}
                if d.nodes[one].shape[axis] != low[axis]:
                    one = d.add("slice", one, settings=settings)  # noqa: PLW2901
            cut.append(one)
        return d.add("add", *cut, shape=tuple(low))
    same = [one for one, node in enumerate(d.nodes) if node.shape == shape and node.op != "constant"]
    ops = ("add", "sub") if d.kinked_only else ("add", "add", "sub", "mul")
    return d.add(d.draws.choice(ops), at, d.draws.choice(same), shape=shape)


def random_network(seed: int, *, kinked_only: bool = False, flat: bool = False) -> Graph:
    """A network of about 4 to 14 nodes over 1 to 4 inputs, a sequence or a small image.

    Args:
        seed: seed of all choices.
        kinked_only: only piecewise linear operations.
        flat: only affine maps of vectors and ReLUs, which input splitting supports.
    """
    draws = random.Random(seed)
    shapes = [(draws.randint(1, 4),)]
    if not flat:
        size = draws.randint(3, 6)
        shapes += [(draws.randint(1, 2), size, size), (draws.randint(1, 2), draws.randint(4, 8))]
    d = Draft(
        draws, torch.Generator().manual_seed(seed), [Node("x", "input", (), draws.choice(shapes))], kinked_only
    )
    at = 0
    for _ in range(draws.randint(2, 4)):
        shape = d.nodes[at].shape
        steps: list[Callable[[Draft, int], int]] = [_linear, _linear]
        if len(shape) > 1 and not flat:
            steps = [_convolution, _convolution, _convolution, pool, _transposed]
        steps = steps if flat else [*steps, _moved, _joined]
        for step in draws.sample(steps, draws.randint(1, 2)):
            if draws.random() < 0.15 and not flat:
                at = draws.choice([one for one, node in enumerate(d.nodes) if node.op != "constant"])
            count = len(d.nodes)
            try:
                at = step(d, at)
            except (RuntimeError, ValueError, IndexError):  # the operation does not fit this shape
                del d.nodes[count:]
        at = d.add("relu", at, shape=d.nodes[at].shape) if flat else activation(d, at)
        if not flat and draws.random() < 0.3:
            at = _joined(d, at)
    if len(d.nodes[at].shape) != 1:
        at = d.add("reshape", at, shape=(d.nodes[at].size,))
    if draws.random() < 0.85 or flat:
        _linear(d, at)
    return Graph(tuple(d.nodes), f"network {seed}")


def random_set(
    graph: Graph, seed: int, count: int, norms: tuple[str, ...] = ("linf", "l2", "l1", "l0")
) -> InputSet:
    """Input sets around random centres, in which a few values may change."""
    draws = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shape = graph.input_shape
    norm = draws.choice(norms)
    size = math.prod(shape)
    box = draws.choice(((0.0, 1.0), (-1.0, 1.0)))
    x = box[0] + (box[1] - box[0]) * torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    mask = None
    if draws.random() < 0.8 and norm != "l0":
        mask = torch.zeros(size)
        chosen = torch.randperm(size, generator=generator)[: draws.randint(1, 3)]
        shares = torch.rand(len(chosen), generator=generator) + 1e-3 if norm == "linf" else torch.ones(len(chosen))
        mask = mask.index_put((chosen,), shares.clamp_max(1)).view(shape)
    epsilon = draws.choice((1.0, 2.0)) if norm == "l0" else draws.choice((0.02, 0.1, 0.3, 1.0))
    return InputSet.of(ThreatModel(norm, epsilon, box, mask), x, torch.float64)


def random_specification(outputs: int, seed: int, count: int) -> Specification:
    """Single rows, AND of rows, OR of ANDs; some strict."""
    draws = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    lengths = draws.choice(([1], [1], [2], [1, 1], [2, 1], [1, 3], [2, 2]))
    disjunct = torch.tensor([place for place, length in enumerate(lengths) for _ in range(length)])
    rows = torch.randn(count, len(disjunct), outputs, generator=generator, dtype=torch.float64)
    if outputs > 1 and draws.random() < 0.5:
        rows = rows.round()
    strict = torch.rand(len(disjunct), generator=generator) < 0.3
    return Specification(rows, torch.zeros(count, len(disjunct), dtype=torch.float64), disjunct, strict)


def random_points(inputs: InputSet, count: int, generator: torch.Generator, near: Tensor | None = None) -> Tensor:
    """Points of the sets `(B, count, *shape)`: corners and random ones, or near some given points `(B, *shape)`."""
    low, high = inputs.lower.unsqueeze(1), inputs.upper.unsqueeze(1)
    share = torch.rand(len(inputs.lower), count, *inputs.lower.shape[1:], generator=generator, dtype=torch.float64)
    if near is None:
        share[:, : count // 3] = share[:, : count // 3].round()
        points = low + share * (high - low)
    else:
        scale = 10.0 ** -(1 + torch.arange(count) % 4).view(1, -1, *[1] * (near.dim() - 1))
        moved = near.unsqueeze(1) + (2 * share - 1) * scale * (high - low)
        points = torch.minimum(torch.maximum(moved, low), high)
        points[:, 0] = near
    return inside(inputs, points)


def inside(inputs: InputSet, points: Tensor) -> Tensor:
    """Points `(B, P, *shape)` of boxes, moved towards the centre until they lie in the balls."""
    ball = inputs.ball
    if ball is None:
        return points
    center = ball.center.unsqueeze(1)
    change = points - center
    flat = change.flatten(2)
    if ball.norm == "l0":
        size = change.abs().sum(2).flatten(2) if points.dim() == 5 else flat.abs()
        keep = int(ball.radius[0])
        places = size.topk(min(keep, size.shape[2]), dim=2).indices
        kept = torch.zeros_like(size).scatter(2, places, 1.0)
        shape = (*points.shape[:2], 1, *points.shape[3:]) if points.dim() == 5 else points.shape
        return center + change * kept.view(shape)
    size = flat.norm(dim=2) if ball.norm == "l2" else flat.abs().sum(2)
    share = (ball.radius.unsqueeze(1) * (1 - 1e-12) / size.clamp_min(1e-300)).clamp_max(1)
    return center + change * share.view(*share.shape, *[1] * (points.dim() - 2))


def nearest(
    graph: Graph,
    inputs: InputSet,
    spec: Specification,
    generator: torch.Generator,
    *,
    count: int = 64,
    rounds: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of small worst margin `(B, *shape)`, these margins `(B,)`, and all points that were tried."""
    points = random_points(inputs, count, generator)
    tried = [points]
    for step in range(rounds + 1):
        values = evaluate(graph, points.flatten(0, 1)).view(*points.shape[:2], -1)
        margins = torch.einsum("bro,bpo->bpr", spec.rows, values) + spec.offset.unsqueeze(1)
        worst = spec.worst(margins.flatten(0, 1)).view(points.shape[:2])
        least = worst.argmin(1)
        rows = torch.arange(len(points))
        best, margin = points[rows, least], worst[rows, least]
        if step < rounds:
            points = random_points(inputs, count // 2, generator, best)
            tried.append(points)
    return best, margin, torch.cat(tried, 1)
