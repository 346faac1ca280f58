"""Ascent on free parameters of lower bounds: slopes of relaxations, multipliers of splits, weights of rows.

Xu et al., "Fast and complete: enabling complete neural network verification with rapid and massively parallel
incomplete verifiers" (ICLR 2021, slopes); Wang et al., "Beta-CROWN" (NeurIPS 2021, multipliers). Every value of the
parameters gives a bound that holds, so the best one met is kept, the start included.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustly.certification.bounds.backward import Bounded, lower
from robustly.certification.network import Graph, Node
from robustly.certification.operations import RULES, Interval, Relaxation, Rows
from robustly.certification.sets import InputSet

Key = tuple[str, int]
Parameters = dict[Key, Tensor]

SLOPE, SPLIT, WEIGHT = "slope", "split", "weight"
KINKED = ("relu", "leaky_relu", "abs")
"""Operations that are linear on either side of 0. Their free parameter moves the slope of the line below evenly."""
S_SHAPED = ("sigmoid", "tanh")
_NARROW = 0.75
"""Rows that reached the goal are dropped when fewer than this share of rows is left."""
_LEAST = {SLOPE: 0.0, SPLIT: 0.0, WEIGHT: 1e-6}  # weights never sum to 0
_MOST = {SLOPE: 1.0, SPLIT: float("inf"), WEIGHT: float("inf")}
_MEAN, _SQUARE = 0.9, 0.999


@dataclass(frozen=True)
class Lines:
    """Relaxation of one operation for every row, with a free parameter per value.

    Args:
        node: the operation.
        intervals: bounds of its inputs, as seen by each row.
        base: the relaxation at parameter 0; None if it must be computed anew for each value of the parameter.
        span: what the parameter 1 adds to the lower slope, if `base` is given.
    """

    node: Node
    intervals: tuple[Interval, ...]
    base: Relaxation | None
    span: Tensor | None

    def at(self, free: Tensor) -> Relaxation:
        """The relaxation for free parameters in [0, 1]."""
        if self.base is None or self.span is None:
            rule = RULES[self.node.op]
            assert rule.relax is not None
            return replace(rule.relax(self.node, self.intervals, free), per_row=True)
        return replace(self.base, lower_slope=torch.addcmul(self.base.lower_slope, free, self.span))

    def select(self, index: Tensor) -> "Lines":
        """The lines of some rows."""
        intervals = tuple(Interval(one.lower[index], one.upper[index]) for one in self.intervals)
        if self.base is None or self.span is None:
            return replace(self, intervals=intervals)
        base = replace(
            self.base,
            lower_slope=self.base.lower_slope[index],
            lower_offset=None if self.base.lower_offset is None else self.base.lower_offset[index],
            upper_slope=self.base.upper_slope[index],
            upper_offset=None if self.base.upper_offset is None else self.base.upper_offset[index],
        )
        return Lines(self.node, (), base, self.span[index])


def lines_of(
    graph: Graph, at: Mapping[int, Rows], bounds: Mapping[int, Interval]
) -> tuple[dict[int, Lines], Parameters]:
    """Lines with free parameters of all operations that have them, and parameters of the standard relaxation.

    Args:
        graph: the network.
        at: rows over the output of each relaxed operation.
        bounds: bounds of every node.
    """
    lines: dict[int, Lines] = {}
    start: Parameters = {}
    for index, rows in at.items():
        node = graph.nodes[index]
        rule = RULES[node.op]
        same_shape = all(shape == node.shape for shape in node.input_shapes)
        if rule.relax is None or not rule.has_free or not same_shape:
            continue
        intervals = tuple(
            Interval(rows.gather(bounds[one].lower), rows.gather(bounds[one].upper)) for one in node.inputs
        )
        shape = rows.coefficients.shape
        none = torch.zeros_like(intervals[0].lower)
        free = torch.full_like(none, 0.5)
        if node.op in KINKED:
            base, steep = (replace(rule.relax(node, intervals, none + end), per_row=True) for end in (0.0, 1.0))
            span = steep.lower_slope - base.lower_slope
            usual = rule.relax(node, intervals, None).lower_slope - base.lower_slope
            free = torch.where(span != 0, usual / torch.where(span != 0, span, 1.0), 0.0).clamp(0, 1)
            lines[index] = Lines(node, intervals, base, span)
        else:
            if node.op in S_SHAPED:  # the standard relaxation has the outermost tangents over 0
                free = torch.where((intervals[0].lower < 0) & (intervals[0].upper > 0), 0.0, free)
            lines[index] = Lines(node, intervals, None, None)
        start[SLOPE, index] = free.expand(shape).clone()
    return lines, start


@dataclass(frozen=True)
class Task:
    """Rows whose lower bounds are raised; the first axis of all tensors counts the rows.

    Args:
        graph: the network.
        at: the node over whose output the rows stand.
        rows: `(P, K, *shape)` coefficients of which a convex combination is bounded for each of P examples, or rows
            with their own examples.
        offset: constant parts, `(P, K)` or `(P,)`; None for 0.
        inputs: the input sets.
        bounds: bounds of every node before `at`.
        lines: relaxations with free parameters, by node.
        signs: signs of split constraints `sign * value >= 0`, 0 where there is none, by node, `(P, 1, *shape)`.
    """

    graph: Graph
    at: int
    rows: Rows
    offset: Tensor | None
    inputs: InputSet
    bounds: Mapping[int, Interval]
    lines: Mapping[int, Lines]
    signs: Mapping[int, Tensor] = field(default_factory=dict)

    def bounded(self, parameters: Parameters, *, keep: bool = False, rounding: bool = False) -> Bounded:
        """Lower bounds for given parameters; nodes without parameters have their standard relaxation."""
        slopes = {index: line.at(parameters[SLOPE, index]) for index, line in self.lines.items()}
        added = {index: -sign * parameters[SPLIT, index] for index, sign in self.signs.items()}
        rows, offset = self.rows, self.offset
        weight = parameters.get((WEIGHT, self.at))
        if weight is not None:
            rows, offset = combined(rows, offset, weight)
        return lower(
            self.graph,
            self.at,
            rows,
            self.inputs,
            self.bounds,
            offset=offset,
            added=added,
            relaxations=slopes,
            keep=keep,
            rounding=rounding,
        )

    def select(self, index: Tensor) -> "Task":
        """The task of some rows."""
        rows, inputs, bounds = self.rows.with_coefficients(self.rows.coefficients[index]), self.inputs, self.bounds
        if rows.example is None:
            inputs = inputs.select(index)
            bounds = {key: Interval(one.lower[index], one.upper[index]) for key, one in bounds.items()}
        else:
            offset = None if rows.offset is None else rows.offset[index]
            rows = replace(rows, example=rows.example[index], offset=offset)
        return replace(
            self,
            rows=rows,
            offset=None if self.offset is None else self.offset[index],
            inputs=inputs,
            bounds=bounds,
            lines={key: line.select(index) for key, line in self.lines.items()},
            signs={key: sign[index] for key, sign in self.signs.items()},
        )


def combined(rows: Rows, offset: Tensor | None, weight: Tensor) -> tuple[Rows, Tensor | None]:
    """Convex combinations of the K rows of each example, `(P, 1, *shape)`; weights `(P, K)` are scaled to sum 1."""
    if weight.shape[1] == 1:
        return rows, offset
    share = weight / weight.sum(1, keepdim=True)
    coefficients = torch.bmm(share.unsqueeze(1), rows.coefficients.flatten(2))
    rows = rows.with_coefficients(coefficients.view(len(weight), 1, *rows.coefficients.shape[2:]))
    return rows, None if offset is None else (share * offset).sum(1, keepdim=True)


@dataclass(frozen=True)
class Raised:
    """Result of an ascent.

    Args:
        value: best lower bound of each row, `(P,)`.
        parameters: parameters with which it was reached.
    """

    value: Tensor
    parameters: Parameters


def ascend(
    task: Task,
    start: Parameters,
    *,
    iterations: int,
    rates: Mapping[str, float],
    decay: float,
    goal: float | None = 0.0,
) -> Raised:
    """Raise lower bounds with Adam.

    Rows do not influence each other. The start is an iterate too, so no bound becomes worse.

    Args:
        task: the rows.
        start: first parameters: slopes in [0, 1], multipliers and weights of at least 0.
        iterations: number of gradient steps.
        rates: learning rate by kind of parameter.
        decay: factor of the learning rates after each step.
        goal: value above which a row is left alone; None for none.
    """
    count = len(task.rows.coefficients)
    live = torch.arange(count, device=task.rows.coefficients.device)
    kept = {key: value.clone() for key, value in start.items()}
    best = torch.full((count,), -torch.inf, dtype=task.rows.coefficients.dtype, device=live.device)
    moving = {key: value.clone().requires_grad_() for key, value in start.items()}
    means = {key: torch.zeros_like(value) for key, value in start.items()}
    squares = {key: torch.zeros_like(value) for key, value in start.items()}
    for step in range(iterations + 1):
        with torch.set_grad_enabled(step < iterations):
            value = task.bounded(moving).value.flatten()
        now = value.detach()
        better = now > best[live]
        if goal is not None and step < iterations // 2:
            better &= (now > goal) | (step == 0)
        _keep(kept, best, live, moving, now, better)
        open_ = torch.ones_like(better) if goal is None else best[live] <= goal
        left = int(open_.sum())
        if step == iterations or not left:
            break
        gradients = torch.autograd.grad(value.sum(), list(moving.values()))
        with torch.no_grad():
            for (key, one), gradient in zip(moving.items(), gradients, strict=True):
                _move(one, gradient, means[key], squares[key], step + 1, rates[key[0]] * decay**step)
                one.clamp_(_LEAST[key[0]], _MOST[key[0]])
        if left < _NARROW * len(live):
            index = open_.nonzero().squeeze(1)
            live, task = live[index], task.select(index)
            moving, means, squares = (_narrowed(one, index) for one in (moving, means, squares))
            for one in moving.values():
                one.requires_grad_()
    return Raised(best, kept)


def _keep(kept: Parameters, best: Tensor, live: Tensor, moving: Parameters, now: Tensor, better: Tensor) -> None:
    place = better.nonzero().squeeze(1)
    if not len(place):
        return
    best[live[place]] = now[place]
    for key, one in moving.items():
        kept[key].index_copy_(0, live[place], one.detach().index_select(0, place))


def _move(value: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float) -> None:
    """One step upwards of Adam, in place (torch.optim.Adam takes a second to import)."""
    mean.lerp_(gradient, 1 - _MEAN)
    square.mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
    root = square.sqrt().add_(1e-8)
    scale = (1 - _SQUARE**step) ** 0.5 / (1 - _MEAN**step)
    value.addcdiv_(mean, root, value=rate * scale)


def _narrowed(values: Parameters, index: Tensor) -> Parameters:
    return {key: one.detach()[index] for key, one in values.items()}
