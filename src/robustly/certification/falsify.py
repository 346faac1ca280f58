"""Search for a counterexample: an input of a set whose output violates a specification."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustly.certification.deadline import Deadline
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph
from robustly.certification.sets import Ball, InputSet
from robustly.certification.specification import Specification
from robustly.randomness import KeyedGenerator

_CHUNK = 1 << 22  # values of the widest node in one batch of points, which bounds the memory
_BEYOND = 1.2  # share of the way to 0 that Polyak's step goes
_FIRST_RATE, _DECAY = 0.3, 0.9  # size of the first step as a share of the box, and its factor per step


@dataclass(frozen=True)
class Found:
    """Result of a search for many examples.

    Args:
        mask: examples with a counterexample, `(B,)` bool.
        points: float32 inputs inside the sets, `(B, *shape)`: the counterexample, or the point of the least margin.
        margin: worst margin at the points in float64, `(B,)`; at most 0 where the mask is set.
    """

    mask: Tensor
    points: Tensor
    margin: Tensor


def falsify(
    graph: Graph,
    inputs: InputSet,
    spec: Specification,
    *,
    starts: int = 256,
    steps: int = 40,
    seed: int = 0,
    deadline: Deadline | None = None,
) -> Tensor | None:
    """Search for a counterexample of one property by gradient steps from many starts.

    Starts are the centre, corners and random points; the first follow the worst disjunct, the others one disjunct
    each. Points are float32 values inside the set before they are judged, and are judged in float64.

    Args:
        graph: the network.
        inputs: the set of one example.
        spec: the property of one example.
        starts: number of starts, at least 1; they run in the same batch.
        steps: gradient steps from each start.
        seed: seed of the random starts.
        deadline: moment at which the search stops.

    Returns:
        A counterexample `(1, *shape)` in float32, or None.
    """
    ids = torch.zeros(1, dtype=torch.int64, device=inputs.lower.device)
    generator = KeyedGenerator(seed, ids).fold("falsify")
    low, high = inside(inputs)
    lower, span = low.double(), high.double() - low.double()
    shape = low.shape[1:]
    random = generator.uniform(starts, *shape)[0].double()
    corner = generator.fold("corner").bits(starts, *shape)[0].bitwise_and_(1)
    number = torch.arange(starts, device=low.device)
    at_corner = number // 2 % 4 == 1
    share = torch.where(at_corner.view(-1, *[1] * len(shape)), corner, random)
    share[0] = 0.5
    target = number // 2 % (spec.disjuncts + 1) - 1
    sums = (number % 2 == 1) & (len(spec.disjunct) > spec.disjuncts)
    to_zero = number % 2 == 1
    problem = _Problem(inputs, low, high, _expanded(spec, starts), target, sums, to_zero)
    found = _chunked(graph, problem, lower + share * span, steps, deadline or Deadline(), stop=True)
    hits = found.mask.nonzero()
    return found.points[hits[0]] if len(hits) else None


def falsify_each(
    graph: Graph,
    inputs: InputSet,
    spec: Specification,
    *,
    steps: int = 20,
    generator: KeyedGenerator | None = None,
    start: Tensor | None = None,
    deadline: Deadline | None = None,
) -> Found:
    """Search for counterexamples of many examples, from one start each; examples that are solved leave the batch.

    Args:
        graph: the network.
        inputs: a set for each of B examples.
        spec: a property for each.
        steps: gradient steps.
        generator: random numbers of the starts; None for seed 0 and ids 0 to B-1.
        start: starts, `(B, *shape)`; None for a random point of each box.
        deadline: moment at which the search stops.
    """
    low, high = inside(inputs)
    generator = generator or KeyedGenerator(0, torch.arange(len(low), device=low.device))
    share = generator.fold("falsify").uniform(*low.shape[1:]).double()
    begin = low.double() + share * (high.double() - low.double()) if start is None else start.double()
    nearest = torch.full((len(low),), -1, device=low.device)
    no = torch.zeros_like(nearest, dtype=torch.bool)
    problem = _Problem(inputs, low, high, spec, nearest, no, no)
    return _chunked(graph, problem, begin, steps, deadline or Deadline())


def descend(
    graph: Graph, inputs: InputSet, spec: Specification, points: Tensor, steps: int, deadline: Deadline
) -> Tensor | None:
    """Search for a counterexample of one property from given points `(P, *shape)`, by Polyak's steps.

    Returns:
        A counterexample `(1, *shape)` in float32, or None.
    """
    low, high = inside(inputs)
    number = torch.arange(len(points), device=points.device)
    nearest, yes = torch.full_like(number, -1), torch.ones_like(number, dtype=torch.bool)
    sums = yes & (len(spec.disjunct) > spec.disjuncts)
    problem = _Problem(inputs, low, high, _expanded(spec, len(points)), nearest, sums, yes)
    found = _chunked(graph, problem, points.double(), steps, deadline, stop=True)
    hits = found.mask.nonzero()
    return found.points[hits[0]] if len(hits) else None


def inside(inputs: InputSet) -> tuple[Tensor, Tensor]:
    """Least and largest float32 values inside each box, `(B, *shape)`; the nearest value where none is inside."""
    low, high = inputs.lower.float(), inputs.upper.float()
    up, down = torch.full_like(low, torch.inf), torch.full_like(low, -torch.inf)
    low = torch.where(low.double() < inputs.lower.double(), low.nextafter(up), low)
    high = torch.where(high.double() > inputs.upper.double(), high.nextafter(down), high)
    middle = ((inputs.lower.double() + inputs.upper.double()) / 2).float()
    empty = low > high
    return torch.where(empty, middle, low), torch.where(empty, middle, high)


def samples(inputs: InputSet, count: int) -> Tensor:
    """Float32 points of the set of one example, `(count, *shape)`: half of them corners, the others random."""
    low, high = inside(inputs)
    share = torch.rand(count, *low.shape[1:], generator=torch.Generator().manual_seed(0)).to(low)
    share[: count // 2] = share[: count // 2].round()
    share[:1], share[1:2] = 0, 1
    return _rounded(inputs.ball, low, high, low + share * (high - low))


def judge(graph: Graph, inputs: InputSet, spec: Specification, points: Tensor) -> tuple[Tensor, Tensor]:
    """Round points into the sets and evaluate them in float64.

    Args:
        graph: the network.
        inputs: sets of B examples, or of one example that is shared by all points.
        spec: their properties, likewise.
        points: `(B, *shape)`.

    Returns:
        The float32 points, and their worst margins `(B,)`, positive where a point is not a counterexample.
    """
    low, high = inside(inputs)
    rounded = _rounded(inputs.ball, low, high, points)
    value = _exact(graph.to(torch.float64), inputs, spec.to(torch.float64), rounded)
    return rounded, value


def _exact(graph: Graph, inputs: InputSet, spec: Specification, points: Tensor) -> Tensor:
    """Worst margins in float64, positive where a strict row or the set does not hold, `(P,)`."""
    outputs = evaluate(graph, points.double())
    spec = _expanded(spec, len(points))
    value = spec.worst(spec.margins(outputs))
    wrong = (~spec.violated(outputs) | ~_member(inputs, points)) & (value <= 0)
    return torch.where(wrong, torch.finfo(value.dtype).tiny, value)


def _member(inputs: InputSet, points: Tensor) -> Tensor:
    """Mask of points in the sets, `(P,)` bool."""
    exact = points.double()
    within = ((exact >= inputs.lower.double()) & (exact <= inputs.upper.double())).flatten(1).all(1)
    if inputs.ball is None:
        return within
    return within & (ball_sizes(inputs.ball, exact - inputs.ball.center.double()) <= inputs.ball.radius.double())


def ball_sizes(ball: Ball, change: Tensor) -> Tensor:
    """Sizes of changes `(P, *shape)` in the norm of the ball, `(P,)`."""
    if ball.norm == "l0":
        return _pixels(change.abs()).gt(0).sum(1)
    flat = change.flatten(1)
    return flat.abs().sum(1) if ball.norm == "l1" else flat.square().sum(1).sqrt()


def _pixels(size: Tensor) -> Tensor:
    """Sums over the channels of images `(P, C, H, W)`, flattened; other inputs have no channels."""
    return size.sum(1).flatten(1) if size.ndim == 4 else size.flatten(1)


def _expanded(spec: Specification, count: int) -> Specification:
    if len(spec.rows) == count:
        return spec
    return Specification(spec.rows.expand(count, -1, -1), spec.offset.expand(count, -1), spec.disjunct, spec.strict)


@dataclass(frozen=True)
class _Problem:
    """Sets, properties and objectives of P points of one batch.

    Args:
        inputs: their sets, or one set for all.
        low: least float32 values of the sets.
        high: largest float32 values.
        spec: their properties.
        target: disjunct that a point follows, `(P,)`; -1 for the nearest.
        sums: points that descend on the sum of the rows' excess instead of the largest row, `(P,)` bool.
        to_zero: points whose steps go to where the linear approximation of the objective is 0 (Polyak's step),
            instead of by signs and of a length that decreases, `(P,)` bool.
    """

    inputs: InputSet
    low: Tensor
    high: Tensor
    spec: Specification
    target: Tensor
    sums: Tensor
    to_zero: Tensor

    def select(self, index: Tensor) -> "_Problem":
        one = len(self.low) == 1
        inputs, low, high = (
            (self.inputs, self.low, self.high)
            if one
            else (self.inputs.select(index), self.low[index], self.high[index])
        )
        return _Problem(
            inputs, low, high, self.spec.select(index), self.target[index], self.sums[index], self.to_zero[index]
        )

    def rounded(self, points: Tensor) -> Tensor:
        """The nearest points of the sets in float32, `(P, *shape)`."""
        return _rounded(self.inputs.ball, self.low, self.high, points)

    def moved(self, points: Tensor, gradient: Tensor, value: Tensor, rate: float) -> Tensor:
        """Points after a step against the gradient of objectives with the given values, `(P,)`."""
        extra = [1] * (points.ndim - 1)
        width = self.high - self.low
        ball = self.inputs.ball
        if ball is None or ball.norm == "l0":
            change = rate * width * gradient.sign()
        else:
            gradient = torch.where(width > 0, gradient, 0.0)
            direction = gradient
            if ball.norm == "l1":
                size = gradient.abs().flatten(1)
                least = size.topk(max(1, size.shape[1] // 50), dim=1).values[:, -1]
                direction = torch.where(gradient.abs() >= least.view(-1, *extra), gradient.sign(), 0.0)
            scale = rate * 2 * ball.radius.float() / ball_sizes(ball, direction).clamp_min(1e-30)
            change = scale.view(-1, *extra) * direction
        scaled = gradient * width
        length = _BEYOND * value / scaled.flatten(1).square().sum(1).clamp_min(1e-30)
        to_zero = width * (length.view(-1, *extra) * scaled).clamp(-_FIRST_RATE, _FIRST_RATE)
        return self.rounded(points - torch.where(self.to_zero.view(-1, *extra), to_zero, change))


def _rounded(ball: Ball | None, low: Tensor, high: Tensor, points: Tensor) -> Tensor:
    """The nearest points in float32 of boxes and balls, `(P, *shape)`."""
    points = points.float().maximum(low).minimum(high)
    if ball is None:
        return points
    center = ball.center.float()
    change = points - center
    extra = [1] * (points.ndim - 1)
    if ball.norm == "l0":
        size = _pixels(change.abs())
        keep = int(ball.radius.max())
        least = (
            size.topk(min(keep, size.shape[1]), dim=1).values[:, -1]
            if keep
            else size.new_full((len(size),), torch.inf)
        )
        channels = change.abs().sum(1, keepdim=True) if change.ndim == 4 else change.abs()
        return torch.where(channels >= least.view(-1, *extra), points, center)
    share = ball.radius.float() * (1 - 1e-6) / ball_sizes(ball, change).clamp_min(1e-30)
    return torch.where((share < 1).view(-1, *extra), center + change * share.clamp_max(1).view(-1, *extra), points)


def _excess(spec: Specification, margins: Tensor) -> Tensor:
    """Sum over the rows of each disjunct of what they exceed 0 by, `(P, D)`; it moves along all rows at once."""
    slack = 0.01 * margins.detach().abs().amax(1, keepdim=True)
    start = margins.new_zeros(len(margins), spec.disjuncts)
    return start.scatter_add(1, spec.disjunct.expand_as(margins), (margins + slack).clamp_min(0))


def _search(graph: Graph, problem: _Problem, start: Tensor, steps: int, deadline: Deadline, stop: bool) -> Found:
    """Descend from a start for each of P points; with `stop` up to the first counterexample."""
    fast, exact = graph.to(torch.float32), graph.to(torch.float64)
    x = problem.rounded(start)
    points, margin = x.clone(), x.new_full((len(x),), torch.inf, dtype=torch.float64)
    alive = torch.arange(len(x), device=x.device)
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        spec = problem.spec.to(torch.float32)
        with torch.enable_grad():
            margins = spec.margins(evaluate(fast, x))
            parts = spec.by_disjunct(margins)
            costs = torch.where(problem.sums.unsqueeze(1), _excess(spec, margins), parts)
            followed = costs.gather(1, problem.target.clamp_min(0).unsqueeze(1)).squeeze(1)
            objective = torch.where(problem.target < 0, costs.amin(1), followed)
            (gradient,) = torch.autograd.grad(objective.sum(), x)
        x, value = x.detach(), parts.detach().amin(1).double()
        hits = (value <= 0).nonzero().squeeze(1)
        if len(hits):
            some = problem.select(hits)
            value[hits] = _exact(exact, some.inputs, some.spec.to(torch.float64), x[hits])
        better = value < margin[alive]
        margin[alive[better]], points[alive[better]] = value[better], x[better]
        done = margin[alive] <= 0
        if done.all() or (stop and done.any()) or deadline.passed or step == steps:
            break
        if done.any():
            rest = (~done).nonzero().squeeze(1)
            alive, x, gradient, problem = alive[rest], x[rest], gradient[rest], problem.select(rest)
            objective = objective[rest]
        x = problem.moved(x, gradient, objective.detach(), _FIRST_RATE * _DECAY**step)
    return Found(margin <= 0, points, margin)


def _chunked(
    graph: Graph, problem: _Problem, start: Tensor, steps: int, deadline: Deadline, stop: bool = False
) -> Found:
    """Search in batches that fit into memory; with `stop` up to the first counterexample."""
    size = max(1, _CHUNK // max(node.size for node in graph.nodes))
    parts: list[Found] = []
    for first in range(0, len(start), size):
        index = torch.arange(first, min(first + size, len(start)), device=start.device)
        parts.append(_search(graph, problem.select(index), start[index], steps, deadline, stop))
        if stop and bool(parts[-1].mask.any()):
            break
    return Found(
        torch.cat([part.mask for part in parts]),
        torch.cat([part.points for part in parts]),
        torch.cat([part.margin for part in parts]),
    )
