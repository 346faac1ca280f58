"""Rules of elementwise activations: two lines for each value."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from robustly.certification.network import Node, UnsupportedOperationError
from robustly.certification.operations import relaxations
from robustly.certification.operations.relaxations import Smooth, slack
from robustly.certification.operations.rows import Rows
from robustly.certification.operations.rule import Interval, Pushed, Relaxation, Rule

_Relax = Callable[[Node, Interval, Tensor | None], Relaxation]


def push_lines(node: Node, rows: Rows, extra: Relaxation | None) -> Pushed:
    """Rows through an elementwise operation: lower line where a coefficient is positive, else the upper line."""
    assert extra is not None
    coefficients = rows.coefficients
    low, high, below, above = _at_rows(rows, extra)
    up, down = coefficients.clamp_min(0), coefficients.clamp_max(0)
    bias = None if above is None else rows.products(down, above)
    if below is not None:
        under = rows.products(up, below)
        bias = under if bias is None else bias + under
    return Pushed((rows.with_coefficients(torch.addcmul(down * high, up, low)),), bias)


def _at_rows(rows: Rows, extra: Relaxation) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Slopes and offsets where the coefficients are; those of windows are gathered at once."""
    low, high, below, above = extra.lower_slope, extra.upper_slope, extra.lower_offset, extra.upper_offset
    if extra.per_row:
        return low, high, below, above
    if rows.offset is None:
        gathered = [None if one is None else rows.gather(one) for one in (below, above)]
        return rows.gather(low), rows.gather(high), gathered[0], gathered[1]
    offsets = [one for one in (below, above) if one is not None]
    parts = list(rows.gather(torch.cat([low, high, *offsets], 1)).chunk(2 + len(offsets), 1))
    return parts[0], parts[1], parts[2] if below is not None else None, parts[-1] if above is not None else None


def _one(node: Node) -> int:
    return 1


def _rule(
    function: Callable[[Node, Tensor], Tensor], interval: Callable[[Node, Interval], Interval], relax: _Relax
) -> Rule:
    def evaluate(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        return function(node, inputs[0])

    def bounds(node: Node, inputs: Sequence[Interval]) -> Interval:
        return interval(node, inputs[0])

    def relaxed(node: Node, inputs: Sequence[Interval], free: Tensor | None) -> Relaxation:
        lines = relax(node, inputs[0], free)
        per_row = free is not None and free.dim() > 1 + len(node.shape)
        return replace(lines, per_row=True) if per_row else lines

    return Rule(evaluate, bounds, push_lines, relaxed, has_free=True, windows=True, terms=_one)


def _relu(node: Node, x: Tensor) -> Tensor:
    return x.relu()


def _relu_interval(node: Node, x: Interval) -> Interval:
    return Interval(x.lower.relu(), x.upper.relu())


def _relu_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    return relaxations.relu(x, free)


def _steep(node: Node) -> float | Tensor:
    """Slope below 0: a number, or one for each channel (PReLU)."""
    if node.op == "abs":
        return -1.0
    slope: float | Tensor = node.constants["slope"] if "slope" in node.constants else float(node.settings["slope"])
    return slope


def _kink(node: Node, x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * _steep(node))


def _kink_interval(node: Node, x: Interval) -> Interval:
    ends = (_kink(node, x.lower), _kink(node, x.upper))
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    open_ = (x.lower < 0) & (x.upper > 0)
    return Interval(torch.where(open_, low.clamp_max(0), low), high)


def _kink_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    return relaxations.kink(x, _steep(node), free)


def _limits(node: Node) -> tuple[float, float]:
    low, high = float(node.settings["low"]), float(node.settings["high"])
    _need(node, low <= high, f"clips to [{low:g}, {high:g}]", "the lower limit at most the upper one")
    return low, high


def _need(node: Node, fulfilled: bool, has: str, allowed: str) -> None:
    if not fulfilled:
        raise UnsupportedOperationError(f"node {node.name!r} ({node.op}) {has}; supported is {allowed}")


def _clip(node: Node, x: Tensor) -> Tensor:
    return x.clamp(*_limits(node))


def _clip_interval(node: Node, x: Interval) -> Interval:
    return Interval(_clip(node, x.lower), _clip(node, x.upper))


def _clip_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    return relaxations.clip(x, *_limits(node), free)


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _tanh_slope(x: Tensor) -> Tensor:
    return 4 * _sigmoid_slope(2 * x)


SIGMOID = Smooth(torch.sigmoid, _sigmoid_slope, 0.0963)
TANH = Smooth(torch.tanh, _tanh_slope, 0.7699)


def _outwards(low: Tensor, high: Tensor) -> Interval:
    return Interval(low - slack(low), high + slack(high))


def _increasing(function: Callable[[Node, Tensor], Tensor]) -> Callable[[Node, Interval], Interval]:
    def interval(node: Node, x: Interval) -> Interval:
        return _outwards(function(node, x.lower), function(node, x.upper))

    return interval


def _sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def _sigmoid_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    return relaxations.s_shaped(x, SIGMOID, 0.5, free)


def _tanh(node: Node, x: Tensor) -> Tensor:
    return torch.tanh(x)


def _tanh_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    return relaxations.s_shaped(x, TANH, 0.0, free)


def _beta(node: Node) -> float:
    beta = float(node.settings.get("beta", 1.0))
    _need(node, beta > 0, f"has beta {beta:g}", "more than 0")
    return beta


def _softplus(node: Node, x: Tensor) -> Tensor:
    beta = _beta(node)
    return torch.logaddexp(beta * x, torch.zeros_like(x)) / beta


def _softplus_interval(node: Node, x: Interval) -> Interval:
    low, high = _softplus(node, x.lower), _softplus(node, x.upper)
    beta = _beta(node)  # rounding beta * x changes exp(beta * x) by that many units
    return Interval(low - slack(low, low * beta * x.lower), high + slack(high, high * beta * x.upper))


def _softplus_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    beta = _beta(node)

    def slope(x: Tensor) -> Tensor:
        return torch.sigmoid(beta * x)

    return relaxations.convex(x, Smooth(lambda x: _softplus(node, x), slope), free)


def _alpha(node: Node) -> float:
    alpha = float(node.settings.get("alpha", 1.0))
    _need(node, alpha >= 0, f"has alpha {alpha:g}", "0 or more")
    return alpha


def _elu(node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, _alpha(node))


def _elu_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    alpha = _alpha(node)

    def slope(x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, alpha * x.clamp_max(0).exp())

    if alpha <= 1:
        return relaxations.convex(x, Smooth(lambda x: _elu(node, x), slope), free)
    low, high = _increasing(_elu)(node, x)
    flat = torch.zeros_like(low) if free is None else 0 * free  # optimisers need the parameter in the graph
    return Relaxation(flat, low, flat, high)


def _square(node: Node, x: Tensor) -> Tensor:
    return x * x


def _square_interval(node: Node, x: Interval) -> Interval:
    ends = (x.lower * x.lower, x.upper * x.upper)
    high = torch.maximum(*ends)
    low = torch.where((x.lower < 0) & (x.upper > 0), 0.0, torch.minimum(*ends))
    return Interval((low - slack(low)).clamp_min(0), high + slack(high))


def _square_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    return relaxations.convex(x, Smooth(torch.square, lambda x: 2 * x), free)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=str(node.settings.get("approximate", "none")))


def _gelu_slope(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2)) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    factor = math.sqrt(2 / math.pi)
    inner = factor * (x + 0.044715 * x**3)
    half = torch.sigmoid(2 * inner)
    return half + 2 * x * half * torch.sigmoid(-2 * inner) * factor * (1 + 3 * 0.044715 * x * x)


def _silu(node: Node, x: Tensor) -> Tensor:
    return functional.silu(x)


def _silu_slope(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1 + x * torch.sigmoid(-x))


# Place of the least value, and a number below that value.
_VALLEYS = {"none": (-0.7517916, -0.1699713), "tanh": (-0.7524614, -0.1700410), "silu": (-1.2784645, -0.2784646)}


def _with_valley(node: Node, x: Interval) -> Interval:
    """Bounds of a function that decreases up to one place and increases from there on."""
    place, least = _VALLEYS["silu" if node.op == "silu" else str(node.settings.get("approximate", "none"))]
    function = _silu if node.op == "silu" else _gelu
    ends = (function(node, x.lower), function(node, x.upper))
    # Near the valley the function is flat: the least value is a valid lower bound in a neighbourhood of its place.
    inside = (x.lower < place + 1e-5) & (x.upper > place - 1e-5)
    low = torch.where(inside, least, torch.minimum(*ends))
    return _outwards(low - slack(x.lower, x.upper) / 4, torch.maximum(*ends) + slack(x.lower, x.upper) / 4)


def _gelu_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    slope = _gelu_slope if str(node.settings.get("approximate", "none")) == "none" else _gelu_tanh_slope
    return relaxations.sampled(x, Smooth(lambda x: _gelu(node, x), slope, 0.81), 6.0, 1e-8, free)


def _silu_lines(node: Node, x: Interval, free: Tensor | None) -> Relaxation:
    return relaxations.sampled(x, Smooth(functional.silu, _silu_slope, 0.51), 16.0, 2e-6, free)


RULES = {
    "relu": _rule(_relu, _relu_interval, _relu_lines),
    "leaky_relu": _rule(_kink, _kink_interval, _kink_lines),
    "abs": _rule(_kink, _kink_interval, _kink_lines),
    "clip": _rule(_clip, _clip_interval, _clip_lines),
    "sigmoid": _rule(_sigmoid, _increasing(_sigmoid), _sigmoid_lines),
    "tanh": _rule(_tanh, _increasing(_tanh), _tanh_lines),
    "softplus": _rule(_softplus, _softplus_interval, _softplus_lines),
    "elu": _rule(_elu, _increasing(_elu), _elu_lines),
    "square": _rule(_square, _square_interval, _square_lines),
    "gelu": _rule(_gelu, _with_valley, _gelu_lines),
    "silu": _rule(_silu, _with_valley, _silu_lines),
}
