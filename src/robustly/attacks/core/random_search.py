"""Random search on the objective, from outputs alone: the loop of Square and sparse-RS."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Objective
from robustly.randomness import KeyedGenerator

BLOCK = 64  # queries whose random numbers are drawn together: hashing them one by one costs more than the passes
Flat = Float[Tensor, "m d"]


@runtime_checkable
class Moves(Protocol):
    """Candidates of a random search; points are flat, `(M, D)`, channel after channel."""

    def draw(self, draws: KeyedGenerator, queries: int, share: float) -> Float[Tensor, "m q ..."]:
        """Random numbers in [0, 1) for the candidates of the next queries, whose share is at most this one."""
        ...

    def start(self, draws: KeyedGenerator) -> Flat:
        """Start of the search, in a new tensor."""
        ...

    def propose(self, current: Flat, numbers: Float[Tensor, "m ..."], share: float) -> Flat:
        """Next candidates, which change a share of the changeable values; `current` is not modified."""
        ...

    def accept(self, better: Int64[Tensor, " b"]) -> None:
        """Update the state after the last proposal.

        Args:
            better: positions of the candidates that were kept.
        """
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
    """Search from one start, without gradients. Costs queries + 1 forward passes.

    Args:
        search: evaluates and records the points.
        rows: examples `(M,)`.
        draws: their random numbers.
        moves: makes their candidates.
        objective: function to maximise.
        shares: share of the values that a query changes, from the number of the query; not increasing.
        queries: number of candidates.
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
    """`initial` divided by one of the divisors, whose index is the number of bounds below `query`."""
    return initial / divisors[sum(query > bound for bound in bounds)]
