"""Input splitting: a network of few inputs is verified by halving its input box until every part is decided."""

import heapq
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from robustly.certification.bounds.boxes import AnyNetwork, BoxBounds, Boxed
from robustly.certification.bounds.dense import Dense
from robustly.certification.deadline import Deadline
from robustly.certification.falsify import ball_sizes, descend
from robustly.certification.network import Graph
from robustly.certification.outcome import Outcome, spent
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.evidence import Verdict

_LEAST = 1e-12  # margin above 0 that closes a disjunct; clipping removes inputs above it only
_CLIPS = 2
_SMALLEST = 2.0**-34  # width of a part that is not halved, as a share of the box
_STEPS, _CANDIDATES = 4, 32
_DESCENT, _EVERY = 20, 8  # gradient steps from the best candidates, in one of so many rounds


@dataclass(frozen=True)
class Parts:
    """Open parts of the input box.

    Args:
        lower: `(N, d)` float64.
        upper: `(N, d)`.
        bound: proved lower bound of each disjunct's largest row, `(N, D)`; above 0 where the disjunct is refuted.
        stable: signs of the hidden neurons, `(N, n)` int8, 0 for unknown.
        near: least margin that was found at a point near, `(N,)`.
    """

    lower: Tensor
    upper: Tensor
    bound: Tensor
    stable: Tensor
    near: Tensor

    def __len__(self) -> int:
        return len(self.lower)

    def select(self, index: Tensor) -> "Parts":
        """Some of the parts."""
        return Parts(*(getattr(self, field.name)[index] for field in fields(Parts)))

    @staticmethod
    def joined(parts: "list[Parts]") -> "Parts":
        """All parts of several groups."""
        if len(parts) == 1:
            return parts[0]
        return Parts(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Parts)))


class Queue:
    """Open parts in chunks that are cheap to move; the worst bound and the nearest miss come first in turn."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._open: dict[int, Parts] = {}
        self._heaps: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])
        self._pushed = self._popped = 0

    def push(self, parts: Parts) -> None:
        """Add parts."""
        order = (parts.bound.amin(1) if self._pushed % 2 else parts.near).argsort()
        for index in torch.split(order, max(1, self.size // 2)):
            chunk = parts.select(index)
            self._open[self._pushed] = chunk
            heapq.heappush(self._heaps[0], (float(chunk.bound.amin()), self._pushed))
            heapq.heappush(self._heaps[1], (float(chunk.near.amin()), self._pushed))
            self._pushed += 1

    def pop(self) -> Parts | None:
        """About `size` parts; None if the queue is empty."""
        heap = self._heaps[self._popped % 2]
        self._popped += 1
        taken: list[Parts] = []
        while self._open and sum(len(part) for part in taken) < self.size:
            part = self._open.pop(heapq.heappop(heap)[1], None)
            if part is not None:
                taken.append(part)
        return Parts.joined(taken) if taken else None

    def __len__(self) -> int:
        return sum(len(part) for part in self._open.values())

    @property
    def worst(self) -> float:
        """Least bound of the open parts; infinite if there are none."""
        return min((float(part.bound.amin()) for part in self._open.values()), default=float("inf"))


@torch.no_grad()
def split(
    graph: Graph,
    inputs: InputSet,
    spec: Specification,
    *,
    domains: int | None = None,
    batch: int = 64,
    deadline: Deadline | None = None,
) -> Outcome:
    """Verify one property over a box of few inputs, or falsify it.

    All bounds are in float64 with outward rounding. Parts outside a ball are dropped; a ball is bounded by its box.
    An input set is split where the relaxation loses most, so that inputs that move no unstable neuron stay whole.

    Args:
        graph: the network; a chain of affine operations and ReLUs is several times as fast as others.
        inputs: the set of one example.
        spec: the property of one example.
        domains: number of bounded parts after which the search stops; None for no limit.
        batch: parts that are bounded at a time.
        deadline: moment at which the search stops.

    Returns:
        Verified, falsified with a float32 point inside the set, or unknown or timeout; with the proved lower bound
        of the worst margin. Inputs that clipping removes have margins of more than 1e-12, and no better bound.
    """
    chain = Dense.of(graph)
    net: Boxed = AnyNetwork(graph, spec) if chain is None else chain.with_property(spec)
    deadline = deadline or Deadline()
    lower, upper = inputs.lower.double().flatten(1), inputs.upper.double().flatten(1)
    root = lower.new_full((1, spec.disjuncts), -torch.inf)
    queue = Queue(batch)
    queue.push(Parts(lower, upper, root, lower.new_zeros(1, net.hidden, dtype=torch.int8), lower.new_zeros(1)))
    proved, work, rounds, stuck = float("inf"), 0, 0, False
    while (parts := queue.pop()) is not None:
        worst = float(parts.bound.amin())
        if deadline.passed or (domains is not None and work >= domains):
            return spent(deadline, min(proved, worst, queue.worst), "split", work)
        work += len(parts)
        found = net.bounds(parts.lower, parts.upper, parts.stable)
        if not bool(found.value.isfinite().all()):
            reason = "the bounds are not finite: weights or inputs are infinite or not numbers"
            return Outcome(Verdict.UNKNOWN, -torch.inf, None, "split", work, reason)
        bound = torch.maximum(parts.bound, spec.by_disjunct(found.value))
        parts = replace(parts, bound=bound, stable=found.stable)
        least = bound.amin(1)
        refuted = least > _LEAST
        proved = min([proved, *least[refuted].tolist()])
        closed = refuted | ~_reached(inputs, parts)
        still = (~closed).nonzero().squeeze(1)
        if not len(still):
            continue
        parts, kept = _clipped(parts.select(still), found.select(still), spec)
        proved = min(proved, _LEAST)
        if not len(parts):
            continue
        found = found.select(still[kept])
        points, near = _candidates(net, spec, parts, found)
        rounds += 1
        steps = _DESCENT if rounds % _EVERY == 1 else 0
        if steps or bool((near <= 0).any()):
            point = descend(graph, inputs, spec, points.view(-1, *inputs.lower.shape[1:]), steps, deadline)
            if point is not None:
                return Outcome(Verdict.FALSIFIED, min(proved, worst, queue.worst), point, "split", work)
        halves, whole = _halved(replace(parts, near=near), found, spec, (upper - lower) * _SMALLEST)
        stuck = stuck or whole
        proved = min(proved, float(parts.bound.amin())) if whole else proved
        if len(halves):
            queue.push(halves)
    if stuck:
        reason = "parts too small to halve stayed open: the least margin is 0, or nearly"
        return Outcome(Verdict.UNKNOWN, proved, None, "split", work, reason)
    return Outcome(Verdict.VERIFIED, proved, None, "split", work)


def _reached(inputs: InputSet, parts: Parts) -> Tensor:
    """Mask of the parts that the ball of the set reaches, `(N,)`."""
    if inputs.ball is None:
        return torch.ones(len(parts), dtype=torch.bool, device=parts.lower.device)
    center = inputs.ball.center.double().flatten(1)
    away = (parts.lower - center).clamp_min(0) + (center - parts.upper).clamp_min(0)
    shape = inputs.lower.shape[1:]
    return ball_sizes(inputs.ball, away.view(-1, *shape)) * (1 - 1e-12) <= inputs.ball.radius.double()


def _candidates(net: Boxed, spec: Specification, parts: Parts, found: BoxBounds) -> tuple[Tensor, Tensor]:
    """The nearest points to a violation among those that the bounds suggest, `(P, d)`.

    They are the corners where the rows of the worst disjunct are least in sum, and the centres, moved by a few
    steps to where the largest row would be 0 if it had the slopes of its bound.

    Returns:
        The points, and the least margin at those of each part, `(N,)`.
    """
    lower, upper = parts.lower, parts.upper
    member = _member(parts.bound, spec)
    at_least = torch.where(_of_worst(parts.bound, found.rows, spec).sum(1) > 0, lower, upper)
    point = (lower + upper) / 2
    tried = [at_least]
    metric = found.rows * (upper - lower).square().unsqueeze(1)
    metric = metric / (found.rows * metric).sum(2, keepdim=True).clamp_min(1e-300)
    for _ in range(_STEPS):
        tried.append(point)
        value, row = torch.where(member, net.evaluate(point), -torch.inf).max(1)
        step = value.clamp_min(0).unsqueeze(1) * metric[torch.arange(len(row)), row]
        point = (point - 1.1 * step).maximum(lower).minimum(upper)
    points = torch.cat([*tried, point])
    value = spec.worst(net.evaluate(points))
    return points[value.argsort()[:_CANDIDATES]], value.view(-1, len(lower)).amin(0)


def _member(bound: Tensor, spec: Specification) -> Tensor:
    """Mask of the rows of each part's worst disjunct, `(N, R)`."""
    return spec.disjunct == bound.argmin(1, keepdim=True)


def _of_worst(bound: Tensor, rows: Tensor, spec: Specification) -> Tensor:
    return rows * _member(bound, spec).unsqueeze(2)


def _clipped(parts: Parts, found: BoxBounds, spec: Specification) -> tuple[Parts, Tensor]:
    """Parts without inputs at which every open disjunct has a row above `_LEAST`, and the indices of those left.

    A row `a x + b <= f` above the limit excludes x. Where it is not, `a_i x_i` is at most the limit less b and the
    least values of the other terms.
    The boxes of several open disjuncts are joined to their hull.
    """
    rows, bias = found.rows, found.bias - _LEAST
    open_ = parts.bound <= _LEAST
    size = torch.maximum(parts.lower.abs(), parts.upper.abs()).unsqueeze(1)
    scale = (rows.abs() * size).sum(2, keepdim=True) + bias.abs().unsqueeze(2)
    usable = rows.abs() > 1e-9 * rows.abs().amax(2, keepdim=True)
    rows_safe = torch.where(usable, rows, 1.0)
    disjuncts = spec.disjuncts
    low = parts.lower.unsqueeze(1).expand(-1, disjuncts, -1)
    high = parts.upper.unsqueeze(1).expand(-1, disjuncts, -1)
    index = spec.disjunct.view(1, -1, 1).expand_as(rows)
    for _ in range(_CLIPS):
        at_low, at_high = low[:, spec.disjunct], high[:, spec.disjunct]
        least = torch.minimum(rows * at_low, rows * at_high)
        room = least - least.sum(2, keepdim=True) - bias.unsqueeze(2)
        limit = (room + 1e-13 * scale) / rows_safe
        pad = 1e-15 * (limit.abs() + size)
        top = torch.where(usable & (rows > 0), limit + pad, torch.inf)
        bottom = torch.where(usable & (rows < 0), limit - pad, -torch.inf)
        high = high.scatter_reduce(1, index, top, "amin")
        low = low.scatter_reduce(1, index, bottom, "amax")
    alive = open_ & (low <= high).all(2)
    lower = torch.where(alive.unsqueeze(2), low, torch.inf).amin(1)
    upper = torch.where(alive.unsqueeze(2), high, -torch.inf).amax(1)
    kept = alive.any(1).nonzero().squeeze(1)
    bound = torch.where(alive, parts.bound, torch.inf)
    return replace(parts, lower=lower, upper=upper, bound=bound).select(kept), kept


def _halved(parts: Parts, found: BoxBounds, spec: Specification, smallest: Tensor) -> tuple[Parts, bool]:
    """Both halves of each part along the input from which the relaxation of its worst disjunct loses most.

    Returns:
        The halves, and whether a part is left out because it is not wider than `smallest`, `(1, d)`.
    """
    middle = (parts.lower + parts.upper) / 2
    possible = (middle > parts.lower) & (middle < parts.upper) & (parts.upper - parts.lower > smallest)
    score = _of_worst(parts.bound, found.influence, spec).sum(1)
    slope = _of_worst(parts.bound, found.rows, spec).abs().amax(1) * (parts.upper - parts.lower)
    score = score + 1e-3 * slope + 1e-9 * (parts.upper - parts.lower)
    axis = torch.where(possible, score, -1.0).argmax(1, keepdim=True)
    cut = middle.gather(1, axis)
    left = replace(parts, upper=parts.upper.scatter(1, axis, cut))
    right = replace(parts, lower=parts.lower.scatter(1, axis, cut))
    can = possible.any(1)
    halves = Parts.joined([left, right])
    return halves.select(can.repeat(2)), not bool(can.all())
