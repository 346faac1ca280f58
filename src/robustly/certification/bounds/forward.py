"""Forward linear bounds for few inputs: every value between two linear functions of the input."""

import torch
from torch import Tensor

from robustly.certification.network import Graph, UnsupportedOperationError
from robustly.certification.operations import RULES, Interval, Relaxation, Rows
from robustly.certification.sets import InputSet

MOST_INPUTS = 100


def forward(graph: Graph, inputs: InputSet) -> dict[int, Interval]:
    """Bounds of every node from two linear functions of the input, which are moved forwards.

    For a search only: rounding errors are not bounded. A linear operation maps the pair (function below, function
    above) as it maps an interval, for the coefficients of each input and for the constant part.

    Raises:
        UnsupportedOperationError: the network has more than `MOST_INPUTS` inputs.
    """
    count = graph.nodes[0].size
    if count > MOST_INPUTS:
        raise UnsupportedOperationError(
            f"{graph.source}: forward bounds are for at most {MOST_INPUTS} inputs, the network has {count}"
        )
    batch = len(inputs.lower)
    eye = torch.eye(count, dtype=inputs.lower.dtype, device=inputs.lower.device).expand(batch, count, count)
    eye = eye.reshape(batch, count, *graph.input_shape)
    nothing = torch.zeros_like(inputs.lower)
    slopes = {0: Interval(eye, eye)}
    parts = {0: Interval(nothing, nothing)}
    bounds = {0: inputs.interval()}
    for index, node in enumerate(graph.nodes[1:], start=1):
        rule = RULES[node.op]
        sources = [bounds[one] for one in node.inputs]
        interval = rule.interval(node, sources)
        if not node.inputs:  # a constant
            interval = Interval(*(side.expand(batch, *node.shape) for side in interval))
            slopes[index] = Interval(*(interval.lower.new_zeros(batch, count, *node.shape),) * 2)
            parts[index] = interval
        elif rule.relax is None:
            base = rule.evaluate(node, [torch.zeros_like(parts[one].lower) for one in node.inputs])
            parts[index] = rule.interval(node, [parts[one] for one in node.inputs])
            flat = [Interval(*(side.flatten(0, 1) for side in slopes[one])) for one in node.inputs]
            moved = rule.interval(node, flat)
            shift = base[:1] if len(base) else base
            slopes[index] = Interval(*((side - shift).view(batch, count, *node.shape) for side in moved))
        else:
            relaxation = rule.relax(node, sources, None)
            if relaxation.index is not None or len(node.inputs) > 1:
                slopes[index] = Interval(*(interval.lower.new_zeros(batch, count, *node.shape),) * 2)
                parts[index] = interval
            else:
                source = node.inputs[0]
                slopes[index], parts[index] = _through(relaxation, slopes[source], parts[source])
        bounds[index] = _meet(interval, _over_inputs(slopes[index], parts[index], inputs))
    return bounds


def _through(relaxation: Relaxation, slopes: Interval, part: Interval) -> tuple[Interval, Interval]:
    low, high = relaxation.lower_slope, relaxation.upper_slope
    wide_low, wide_high = low.unsqueeze(1), high.unsqueeze(1)
    below = wide_low.clamp_min(0) * slopes.lower + wide_low.clamp_max(0) * slopes.upper
    above = wide_high.clamp_min(0) * slopes.upper + wide_high.clamp_max(0) * slopes.lower
    under = low.clamp_min(0) * part.lower + low.clamp_max(0) * part.upper
    over = high.clamp_min(0) * part.upper + high.clamp_max(0) * part.lower
    under = under if relaxation.lower_offset is None else under + relaxation.lower_offset
    over = over if relaxation.upper_offset is None else over + relaxation.upper_offset
    return Interval(below, above), Interval(under, over)


def _over_inputs(slopes: Interval, part: Interval, inputs: InputSet) -> Interval:
    shape = part.lower.shape

    def least(sign: int, side: Tensor, constant: Tensor) -> Tensor:
        coefficients = sign * side.flatten(2).transpose(1, 2)
        rows = Rows(coefficients.reshape(*coefficients.shape[:2], *inputs.lower.shape[1:]))
        return inputs.least(rows).view(shape) + sign * constant

    return Interval(least(1, slopes.lower, part.lower), -least(-1, slopes.upper, part.upper))


def _meet(first: Interval, second: Interval) -> Interval:
    return Interval(torch.maximum(first.lower, second.lower), torch.minimum(first.upper, second.upper))
