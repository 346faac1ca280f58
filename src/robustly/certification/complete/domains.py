"""Sub-domains of a branch and bound over the signs of neurons, and the store of those that are open."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robustly.certification.bounds.ascent import KINKED
from robustly.certification.bounds.propagation import Bounds
from robustly.certification.network import Graph
from robustly.certification.operations import RULES, Interval


@dataclass(frozen=True)
class Sites:
    """Neurons that a search may split, and values with free slopes, both numbered through.

    Args:
        split: indices in the flattened node of neurons with an open sign, by node that a kinked operation reads.
        slope: indices of the values that have a free slope, by relaxed node.
        kinked: the kinked operations, by node that they read.
        complete: whether the network is linear once all these signs are known.
    """

    split: Mapping[int, Tensor]
    slope: Mapping[int, Tensor]
    kinked: Mapping[int, tuple[int, ...]]
    complete: bool

    @property
    def splits(self) -> int:
        """Number of neurons that may be split."""
        return sum(len(one) for one in self.split.values())

    def of_split(self, values: Tensor) -> dict[int, Tensor]:
        """Columns `(D, splits)` as one tensor for each node."""
        return _parts(self.split, values)

    def of_slope(self, values: Tensor) -> dict[int, Tensor]:
        """Columns `(D, slopes)` as one tensor for each node."""
        return _parts(self.slope, values)


def _parts(sites: Mapping[int, Tensor], values: Tensor) -> dict[int, Tensor]:
    if not sites:
        return {}
    parts = torch.split(values, [len(one) for one in sites.values()], 1)
    return dict(zip(sites, parts, strict=True))


def sites_of(graph: Graph, bounds: Bounds) -> Sites:
    """The sites of a network with bounds of one example."""
    split: dict[int, Tensor] = {}
    slope: dict[int, Tensor] = {}
    kinked: dict[int, tuple[int, ...]] = {}
    complete = True
    needed = set(graph.needed_for([graph.output]))
    for index, node in enumerate(graph.nodes):
        if index not in needed or index == 0:
            continue
        rule = RULES[node.op]
        if node.op in KINKED:
            source = node.inputs[0]
            open_ = (bounds[source].lower < 0) & (bounds[source].upper > 0)
            split[source] = open_.flatten().nonzero().squeeze(1)
            slope[index] = split[source]
            kinked[source] = (*kinked.get(source, ()), index)
        elif rule.relax is not None:
            complete = False
            if rule.has_free:
                slope[index] = torch.arange(node.size, device=bounds[index].lower.device)
    return Sites(split, slope, kinked, complete)


@dataclass(frozen=True)
class Domains:
    """Sub-domains; the first axis of all tensors counts them.

    Args:
        splits: sign of each neuron of the sites, 0 where it is open, int8.
        slopes: slopes of relaxations.
        multipliers: multipliers of the constraints that `splits` states.
        weights: weights of the rows of the disjunct.
        disjunct: the disjunct that is to be refuted.
        bound: lower bound that is proved.
        choice: number of the neuron that is split next; -1 if none is open.
    """

    splits: Tensor
    slopes: Tensor
    multipliers: Tensor
    weights: Tensor
    disjunct: Tensor
    bound: Tensor
    choice: Tensor

    def __len__(self) -> int:
        return len(self.bound)

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [getattr(self, one.name) for one in fields(self)]

    def select(self, index: Tensor) -> "Domains":
        """Some of the domains."""
        return Domains(*(one[index] for one in self.tensors()))

    def children(self) -> "Domains":
        """Both halves of every domain: first all with a positive sign of the chosen neuron, then the others."""
        halves = []
        for sign in (1, -1):
            splits = self.splits.scatter(1, self.choice.unsqueeze(1), sign)
            halves.append([splits, *self.tensors()[1:]])
        return Domains(*(torch.cat(pair) for pair in zip(*halves, strict=True)))


class Store:
    """Open domains, the worst bound first. Rows of the tensors are used again."""

    def __init__(self) -> None:
        self._data: list[Tensor] = []
        self._queue: list[tuple[float, int]] = []
        self._spare: list[int] = []

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def worst(self) -> float:
        """The least bound; infinite if the store is empty."""
        return self._queue[0][0] if self._queue else float("inf")

    def push(self, domains: Domains) -> None:
        """Add domains."""
        if not len(domains):
            return
        new = domains.tensors()
        if len(self._spare) < len(domains):
            old = len(self._data[0]) if self._data else 0
            size = max(2 * old, old + len(domains), 256)
            self._data = [
                torch.cat(
                    [self._data[number] if self._data else one[:0], one.new_zeros(size - old, *one.shape[1:])]
                )
                for number, one in enumerate(new)
            ]
            self._spare.extend(range(size - 1, old - 1, -1))
        places = [self._spare.pop() for _ in range(len(domains))]
        index = torch.tensor(places, device=new[0].device)
        for kept, one in zip(self._data, new, strict=True):
            kept[index] = one
        for bound, place in zip(domains.bound.tolist(), places, strict=True):
            heapq.heappush(self._queue, (bound, place))

    def pop(self, count: int) -> Domains:
        """Remove the domains with the least bounds."""
        places = [heapq.heappop(self._queue)[1] for _ in range(min(count, len(self._queue)))]
        index = torch.tensor(places, device=self._data[0].device)
        self._spare.extend(reversed(places))
        return Domains(*(one[index] for one in self._data))


def clamped(interval: Interval, index: Tensor, signs: Tensor) -> Interval:
    """Bounds `(1, *shape)` of a node in D domains with the given signs, `(D, S)`, of some neurons."""
    shape = interval.lower.shape[1:]
    lower = interval.lower.flatten(1).repeat(len(signs), 1)
    upper = interval.upper.flatten(1).repeat(len(signs), 1)
    low, high = lower[:, index], upper[:, index]
    lower[:, index] = torch.where(signs > 0, low.clamp_min(0), low)
    upper[:, index] = torch.where(signs < 0, high.clamp_max(0), high)
    return Interval(lower.view(-1, *shape), upper.view(-1, *shape))
