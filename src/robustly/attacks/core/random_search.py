"""Random search on the objective: propose, ask, keep what is better. The loop of Square and sparse-RS."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.attacks.core.search import Rows, Search
from robustly.objectives import Objective
from robustly.randomness import KeyedGenerator

BLOCK = 64  # queries whose random numbers are drawn at once: hashing them one by one would cost more than asking
Flat = Float[Tensor, "m d"]


@runtime_checkable
class Moves(Protocol):
    """How candidates are made; points are flat, `(M, D)`, channel after channel."""

    def draw(self, draws: KeyedGenerator, queries: int, share: float) -> Float[Tensor, "m q ..."]:
        """Random numbers in [0, 1) for the candidates of the next queries, whose share is this one or smaller."""
        ...

    def start(self, draws: KeyedGenerator) -> Flat:
        """Where the search begins, as a tensor of its own."""
        ...

    def propose(self, current: Flat, numbers: Float[Tensor, "m ..."], share: float) -> Flat:
        """The next candidates, which change a share of what may be changed; `current` stays as it is."""
        ...

    def accept(self, better: Int64[Tensor, " b"]) -> None:
        """Told which of the last candidates were taken, as positions."""
        ...

    def select(self, keep: Bool[Tensor, " m"]) -> "Moves":
        """The moves of some of the examples."""
        ...


def random_search(
    search: Search,
    rows: Rows,
    draws: KeyedGenerator,
    moves: Moves,
    objective: Objective,
    shares: Callable[[int], float],
    queries: int,
) -> None:
    """Search from one start; never asks for a gradient. Costs queries + 1 forward passes.

    Args:
        search: counts and judges the points.
        rows: examples `(M,)`.
        draws: their random numbers.
        moves: how candidates are made for them.
        objective: what is maximised.
        shares: how much is changed at a query, from 0; falling.
        queries: candidates tried.
    """
    goal, shape = search.goal.select(rows), search.x.shape[1:]
    current = moves.start(draws.fold("start"))
    found = search.value_and_grad(current.view(-1, *shape), rows, objective, goal=goal, gradient=False)
    value, keep = found.value, found.going
    block = current.new_zeros(len(rows), BLOCK, 0)
    for query in range(queries):
        if not bool(keep.all()):
            rows, goal, draws, moves = rows[keep], goal.select(keep), draws.select(keep), moves.select(keep)
            current, value, block = current[keep], value[keep], block[keep]
            if len(rows) == 0:
                return
        share = shares(query)
        if query % BLOCK == 0:
            block = moves.draw(draws.fold("queries", query // BLOCK), BLOCK, share)
        new = moves.propose(current, block[:, query % BLOCK], share)
        found = search.value_and_grad(new.view(-1, *shape), rows, objective, goal=goal, gradient=False)
        better = (found.value > value).nonzero()[:, 0]  # few: copying all images would cost more than the rest
        current[better], value[better] = new[better], found.value[better]
        moves.accept(better)
        keep = found.going


def falling_share(initial: float, query: int, bounds: tuple[int, ...], divisors: tuple[int, ...]) -> float:
    """`initial` over the divisor that is due after as many bounds as the query has passed."""
    return initial / divisors[sum(query > bound for bound in bounds)]
