"""Input splitting: a network of few inputs is verified by halving its input box until every part is decided."""

import heapq
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robustly.certification.bounds.dense import BoxBounds, Dense
from robustly.certification.deadline import Deadline
from robustly.certification.falsify import judge
from robustly.certification.network import Graph
from robustly.certification.outcome import Outcome
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.evidence import Verdict

_LEAST = 1e-12  # margin above 0 that closes a disjunct; clipping removes inputs above it only
_CLIPS = 2


@dataclass(frozen=True)
class Parts:
    """Open parts of the input box.

    Args:
        lower: `(N, d)` float64.
        upper: `(N, d)`.
        bound: proved lower bound of each disjunct's largest row, `(N, D)`; above 0 where the disjunct is refuted.
        stable: signs of the hidden neurons, `(N, n)` int8, 0 for unknown.
    """

    lower: Tensor
    upper: Tensor
    bound: Tensor
    stable: Tensor

    def __len__(self) -> int:
        return len(self.lower)

    def select(self, index: Tensor | slice) -> "Parts":
        return Parts(self.lower[index], self.upper[index], self.bound[index], self.stable[index])

    @staticmethod
    def joined(parts: "list[Parts]") -> "Parts":
        if len(parts) == 1:
            return parts[0]
        return Parts(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Parts)))


class Queue:
    """Open parts, the worst first, in chunks that are cheap to move."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[float, int, Parts]] = []
        self._pushed = 0

    def push(self, parts: Parts) -> None:
        """Add parts."""
        order = parts.bound.amin(1).argsort()
        for index in order.split(max(1, self.size // 2)):
            chunk = parts.select(index)
            heapq.heappush(self._heap, (float(chunk.bound.amin()), self._pushed, chunk))
            self._pushed += 1

    def pop(self) -> Parts | None:
        """The worst parts, about `size`; None if the queue is empty."""
        taken: list[Parts] = []
        while self._heap and sum(len(part) for part in taken) < self.size:
            taken.append(heapq.heappop(self._heap)[2])
        return Parts.joined(taken) if taken else None

    @property
    def worst(self) -> float:
        """Least bound of the open parts; infinite if there are none."""
        return self._heap[0][0] if self._heap else float("inf")


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
    net = Dense.of(graph)
    assert net is not None
    net = net.with_property(spec)
    deadline = deadline or Deadline()
    shape = inputs.lower.shape[1:]
    hidden = sum(len(layer.bias) for layer in net.layers[:-1])
    lower, upper = inputs.lower.double().flatten(1), inputs.upper.double().flatten(1)
    queue = Queue(batch)
    queue.push(
        Parts(
            lower,
            upper,
            lower.new_full((1, spec.disjuncts), -torch.inf),
            lower.new_zeros(1, hidden, dtype=torch.int8),
        )
    )
    proved, work = float("inf"), 0
    while (parts := queue.pop()) is not None:
        worst = float(parts.bound.amin())
        if deadline.passed or (domains is not None and work >= domains):
            verdict = Verdict.TIMEOUT if deadline.passed else Verdict.UNKNOWN
            return Outcome(verdict, min(proved, worst, queue.worst), None, "split", work, "open")
        work += len(parts)
        found = net.bounds(parts.lower, parts.upper, parts.stable)
        bound = torch.maximum(parts.bound, spec.by_disjunct(found.value))
        least = bound.amin(1)
        closed = least > _LEAST
        if closed.any():
            proved = min(proved, float(least[closed].min()))
        still = (~closed).nonzero().squeeze(1)
        if not len(still):
            continue
        found = BoxBounds(*(part[still] for part in found))
        parts = Parts(parts.lower[still], parts.upper[still], bound[still], found.stable)
        point = _counterexample(graph, inputs, spec, net, parts, found)
        if point is not None:
            return Outcome(Verdict.FALSIFIED, min(proved, worst, queue.worst), point, "split", work)
        parts, kept = _clipped(parts, found, spec)
        proved = min(proved, _LEAST)
        if len(parts):
            queue.push(_halved(parts, found.influence[kept], spec))
    return Outcome(Verdict.VERIFIED, proved, None, "split", work)


def _counterexample(
    graph: Graph, inputs: InputSet, spec: Specification, net: Dense, parts: Parts, found: BoxBounds
) -> Tensor | None:
    """A counterexample among the centres and the corners where the rows of the worst disjuncts are least."""
    lower, upper = parts.lower, parts.upper
    rows = _of_worst(parts.bound, found.rows, spec)
    total = rows.sum(1)
    largest = torch.where(_member(parts.bound, spec), found.value, -torch.inf).argmax(1)
    hardest = found.rows.gather(1, largest.view(-1, 1, 1).expand(-1, 1, rows.shape[2])).squeeze(1)
    points = torch.cat(
        [(lower + upper) / 2, torch.where(total > 0, lower, upper), torch.where(hardest > 0, lower, upper)]
    )
    value = spec.worst_of(net.evaluate(points)) if hasattr(spec, "worst_of") else spec.worst(net.evaluate(points))
    best = value.argmin()
    if value[best] > 0:
        return None
    point, margin = judge(graph, inputs, spec, points[best : best + 1].view(1, *inputs.lower.shape[1:]))
    return point if margin.item() <= 0 else None


def _member(bound: Tensor, spec: Specification) -> Tensor:
    """Mask of the rows of each part's worst disjunct, `(N, R)`."""
    return spec.disjunct == bound.argmin(1, keepdim=True)


def _of_worst(bound: Tensor, rows: Tensor, spec: Specification) -> Tensor:
    return rows * _member(bound, spec).unsqueeze(2)


def _clipped(parts: Parts, found: BoxBounds, spec: Specification) -> tuple[Parts, Tensor]:
    """Parts without inputs at which every open disjunct has a row above `_LEAST`, and the indices of those left.

    A row `a x + b <= f` above the limit t excludes x, so what is left has `a_i x_i <= t - b - sum_{j != i} min a_j x_j`.
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
    bound = torch.where(alive, parts.bound, parts.bound.clamp_min(_LEAST))
    lower = torch.where(alive.unsqueeze(2), low, torch.inf).amin(1)
    upper = torch.where(alive.unsqueeze(2), high, -torch.inf).amax(1)
    kept = alive.any(1).nonzero().squeeze(1)
    return Parts(lower[kept], upper[kept], torch.where(alive, bound, torch.inf)[kept], parts.stable[kept]), kept


def _halved(parts: Parts, influence: Tensor, spec: Specification) -> Parts:
    """Both halves of each part along the input from which the relaxation of its worst disjunct loses most."""
    width = parts.upper - parts.lower
    axis = (_of_worst(parts.bound, influence, spec).sum(1)).argmax(1, keepdim=True)
    middle = (parts.lower.gather(1, axis) + parts.upper.gather(1, axis)) / 2
    left = Parts(parts.lower, parts.upper.scatter(1, axis, middle), parts.bound, parts.stable)
    right = Parts(parts.lower.scatter(1, axis, middle), parts.upper, parts.bound, parts.stable)
    return Parts.joined([left, right])
