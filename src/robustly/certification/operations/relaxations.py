"""Linear relaxations of functions of one variable: an interval in, two lines out, sound in floating point.

Every line has its slope first, rounded or not, and then an offset that makes it valid for exactly that slope.
Offsets are moved outwards by a few units in the last place of what they were computed from.

Sources: Zhang et al., "Efficient neural network robustness certification with general activation functions"
(NeurIPS 2018), for ReLU and S-shaped functions; the bound of a function between samples by its second derivative is
the error of linear interpolation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustly.certification.operations.rule import Interval, Relaxation

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Smooth:
    """A smooth function of one variable.

    Args:
        value: the function.
        slope: its derivative.
        curvature: bound of the absolute value of its second derivative.
    """

    value: Function
    slope: Function
    curvature: float = float("inf")


def slack(*sizes: Tensor) -> Tensor:
    """Bound of the rounding errors of a few operations on numbers of these sizes."""
    total = sizes[0].abs()
    for size in sizes[1:]:
        total = total + size.abs()
    info = torch.finfo(total.dtype)
    return 16 * info.eps * total + info.tiny


def relu(interval: Interval, free: Tensor | None = None) -> Relaxation:
    """Bound relu(x) by two lines.

    Args:
        interval: bounds of x.
        free: slope of the lower line where the sign of x is open, in [0, 1]; None: 1 where u > -l, else 0.
    """
    lower, upper = interval
    info = torch.finfo(upper.dtype)
    open_ = (lower < 0) & (upper > 0)
    active = (lower >= 0).to(upper.dtype)
    width = torch.where(open_, upper - lower, 1.0)
    chord = upper / width
    offset = torch.where(open_, (4 * info.eps) * width + info.tiny - lower * chord, 0.0)
    slope = (upper > -lower).to(upper.dtype) if free is None else torch.where(open_, free, active)
    return Relaxation(slope, None, torch.where(open_, chord, active), offset)


def kink(interval: Interval, slope: float | Tensor, free: Tensor | None = None) -> Relaxation:
    """Bound the function that is x for x >= 0 and `slope * x` below 0: leaky ReLU, or |x| for slope -1.

    Args:
        interval: bounds of x.
        slope: slope below 0; a tensor broadcasts against the bounds.
        free: place of the slope of the line through the kink, between `slope` (0) and 1 (1); None: 1 where u > -l,
            else 0.
    """
    lower, upper = interval
    steep = torch.as_tensor(slope, dtype=upper.dtype, device=upper.device)
    open_ = (lower < 0) & (upper > 0)
    width = torch.where(open_, upper - lower, 1.0)
    chord = (upper - steep * lower) / width
    least = (upper > -lower).to(upper.dtype) if free is None else free
    through = steep + least * (1 - steep)
    convex = steep <= 1
    away = slack(upper, steep * lower, chord * upper, chord * lower)
    ends = (steep * lower - chord * lower, upper - chord * upper)
    above = torch.maximum(*ends) + away
    below = torch.minimum(*ends) - away
    stable = torch.where(lower >= 0, torch.ones_like(steep), steep)
    return Relaxation(
        torch.where(open_, torch.where(convex, through, chord), stable),
        torch.where(open_ & ~convex, below, 0.0),
        torch.where(open_, torch.where(convex, chord, through), stable),
        torch.where(open_ & convex, above, 0.0),
    )


def clip(interval: Interval, low: float, high: float, free: Tensor | None = None) -> Relaxation:
    """Bound min(max(x, low), high).

    Args:
        interval: bounds of x.
        low: least value, -inf for none.
        high: largest value, inf for none.
        free: slope of the lines through the kinks as part of the largest valid one; None: the largest where that
            line encloses the smaller area, else 0.
    """
    above = _under_ceiling(interval, low, high, free)
    below = _under_ceiling(Interval(-interval.upper, -interval.lower), -high, -low, free)
    return Relaxation(below[0], -below[1], above[0], above[1])


def _under_ceiling(interval: Interval, low: float, high: float, free: Tensor | None) -> tuple[Tensor, Tensor]:
    """Slope and offset of a line above a clipped value: through (high, high), or the chord below `high`."""
    lower, upper = interval
    start = lower.clamp(min=low, max=high)
    top = upper.clamp(min=low, max=high)
    reached = upper > high  # the function is constant from `high` on
    width = top - lower
    rising = (width > 0) & (top > start)
    largest = torch.where(rising, (top - start) / torch.where(rising, width, 1.0), 0.0).clamp(0, 1)
    part = (top > (lower + upper) / 2).to(upper.dtype) if free is None else free
    slope = torch.where(reached, part * largest, largest)
    pivot = torch.where(rising, top - slope * top, top)
    through = torch.maximum(pivot, start - slope * lower)
    exact = (lower >= low) & (upper <= high)
    offset = torch.where(exact, 0.0, through + slack(start, top, slope * lower))
    return torch.where(exact, 1.0, slope), offset


def convex(interval: Interval, function: Smooth, free: Tensor | None = None) -> Relaxation:
    """Bound a convex function: chord above, tangent below.

    Args:
        interval: bounds of x.
        function: the function and its derivative.
        free: place of the tangent point in the interval, in [0, 1]; None: the middle.
    """
    lower, upper = interval
    at_lower, at_upper = function.value(lower), function.value(upper)
    width = upper - lower
    point = lower + (0.5 if free is None else free) * width
    tangent, at_point = function.slope(point), function.value(point)
    narrow = width <= 1e-6 * (1 + upper.abs())
    chord = torch.where(narrow, tangent, (at_upper - at_lower) / torch.where(narrow, 1.0, width))
    reach = torch.maximum(lower.abs(), upper.abs())
    above = torch.maximum(at_lower - chord * lower, at_upper - chord * upper)
    above = above + slack(at_lower, at_upper, chord * reach)
    below = at_point - tangent * point - slack(at_point, tangent * reach)
    return Relaxation(tangent, below, chord, above)


def s_shaped(interval: Interval, function: Smooth, center: float, free: Tensor | None = None) -> Relaxation:
    """Bound an increasing function that is convex below 0, concave above 0 and point-symmetric about (0, center).

    Args:
        interval: bounds of x.
        function: the function and its derivative.
        center: its value at 0.
        free: place of the tangent points in their valid range, in [0, 1]; None: the middle of an interval on one
            side of 0; else the tangent through the end of the interval.
    """
    lower, upper = interval
    above = _concave_side(Interval(lower, upper), function, free)
    below = _concave_side(Interval(-upper, -lower), function, free)
    return Relaxation(below[0], 2 * center - below[1] - slack(torch.full_like(lower, center)), above[0], above[1])


def _concave_side(interval: Interval, function: Smooth, free: Tensor | None) -> tuple[Tensor, Tensor]:
    """Slope and offset of a line above an S-shaped function."""
    lower, upper = interval
    at_lower, at_upper = function.value(lower), function.value(upper)
    width = upper - lower
    narrow = width <= 1e-3
    chord = (at_upper - at_lower) / torch.where(narrow, 1.0, width)
    first = _first_tangent(interval, function)
    part = torch.where(lower >= 0, 0.5, 0.0) if free is None else free
    point = first + part * (upper - first).clamp_min(0)
    straight = ~narrow & ((upper <= 0) | (first >= upper))
    point = torch.where(narrow, lower + 0.5 * width, torch.where(straight, upper, point))
    slope = torch.where(straight, chord, function.slope(point))
    at_point = function.value(point)
    offset = torch.where(
        straight,
        torch.maximum(at_lower - chord * lower, at_upper - chord * upper),
        at_point - slope * point + torch.where(narrow, function.curvature / 8 * width * width, 0.0),
    )
    reach = torch.maximum(lower.abs(), upper.abs())
    return slope, offset + slack(at_lower, at_upper, at_point, slope * reach)


def _first_tangent(interval: Interval, function: Smooth) -> Tensor:
    """The least point d >= 0 whose tangent lies above the function on the interval; the upper end if none does.

    The tangent at d lies above the concave part; its value at the lower end grows with d.
    """
    lower, upper = (bound.detach() for bound in interval)
    at_lower = function.value(lower)
    low, high = lower.clamp_min(0), upper.clamp_min(0)
    steps = 60 if low.dtype == torch.float64 else 30
    for _ in range(steps):
        middle = (low + high) / 2
        valid = function.value(middle) + function.slope(middle) * (lower - middle) >= at_lower
        high = torch.where(valid, middle, high)
        low = torch.where(valid, low, middle)
    return torch.where(interval.lower >= 0, interval.lower, high)


def sampled(
    interval: Interval, function: Smooth, tail: float, error: float, free: Tensor | None = None, samples: int = 64
) -> Relaxation:
    """Bound a smooth function that is close to relu(x) far from 0: chord slope above, slope of a tangent below.

    The offsets are the largest and least differences from the line at samples of the interval, moved outwards by
    the error of linear interpolation between samples.

    Args:
        interval: bounds of x.
        function: the function, its derivative and the bound of its second derivative.
        tail: from this size of x on, the function differs from relu(x) by at most `error`.
        error: see `tail`.
        free: place in the interval of the point whose derivative is the slope below; None: the middle.
        samples: number of samples, at least 2.
    """
    lower, upper = interval
    width = upper - lower
    point = lower + (0.5 if free is None else free) * width
    tangent = function.slope(point)
    at_lower, at_upper = function.value(lower), function.value(upper)
    narrow = width <= 1e-3
    chord = torch.where(narrow, tangent, (at_upper - at_lower) / torch.where(narrow, 1.0, width))
    start, end = lower.clamp(-tail, tail), upper.clamp(-tail, tail)
    below = torch.minimum(at_lower - tangent * lower, at_upper - tangent * upper)
    above = torch.maximum(at_lower - chord * lower, at_upper - chord * upper)
    for step in range(samples + 1):
        place = start + (step / samples) * (end - start)
        here = function.value(place)
        below = torch.minimum(below, here - tangent * place)
        above = torch.maximum(above, here - chord * place)
    between = function.curvature / 8 * ((end - start) / samples) ** 2
    reach = torch.maximum(lower.abs(), upper.abs())
    outside = ((lower < -tail) | (upper > tail)).to(upper.dtype) * (2 * error)
    away = between + outside + slack(reach, at_lower, at_upper)
    return Relaxation(tangent, below - away - slack(tangent * reach), chord, above + away + slack(chord * reach))


def product(first: Interval, second: Interval, free: Tensor | None = None) -> Relaxation:
    """Bound x * z by planes (McCormick, Mathematical Programming 1976).

    Args:
        first: bounds of x.
        second: bounds of z.
        free: place between the two planes of each side, in [0, 1]; None: the middle.

    Returns:
        Slopes with a last axis: of x, of z.
    """
    (a, b), (c, d) = first, second
    part = 0.5 if free is None else free

    def mixed(start: Tensor, end: Tensor) -> Tensor:
        return start + part * (end - start)

    # Below: c x + a z - a c and d x + b z - b d; above: c x + b z - b c and d x + a z - a d. The offset of a
    # mixture is the extreme difference, which a bilinear function has in a corner.
    low_x, low_z = mixed(c, d), mixed(a, b)
    high_x, high_z = mixed(c, d), mixed(b, a)
    away = 4 * slack(torch.maximum(a.abs(), b.abs()) * torch.maximum(c.abs(), d.abs()))
    corners = [(x, z) for x in (a, b) for z in (c, d)]
    under = [x * z - low_x * x - low_z * z for x, z in corners]
    over = [x * z - high_x * x - high_z * z for x, z in corners]
    below = torch.stack(under).amin(0) - away
    above = torch.stack(over).amax(0) + away
    return Relaxation(torch.stack([low_x, low_z], -1), below, torch.stack([high_x, high_z], -1), above)
