"""The composite attack on chains: part after part, in a fixed, a random or a scheduled order."""

from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal, Objective, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.any_order import AnyOrderSet
from robustly.threats.chain import Chain
from robustly.threats.contract import Theta, Threat, per_example

Schedule = Float[Tensor, "m k k"]
"""Share of each part (last axis) in each slot; rows and columns sum to 1."""
Order = Int64[Tensor, "m k"]
"""Number of the part in each slot."""
MOST_PARTS = 7
"""Most parts whose order can be scheduled: the best of all orders is found by comparing them."""
_NORMALISATIONS = 20
_TRIES = 3


@dataclass(frozen=True)
class Composite:
    """Composite adversarial attack (CAA) on a chain in any order, such as "hue:0.5&linf:8/255".

    Each slot of the order moves its part only, by steps along the sign of the gradient, while the parts of later
    slots change nothing yet; its result is the input of the next slot. A scheduled order comes from a doubly
    stochastic matrix S: slot t of a relaxed chain returns the mean of all parts' results, weighted by row t of S.
    S ascends the objective and is normalised by Sinkhorn's algorithm; the order is the permutation of the largest
    sum of entries. If it stays the same, S is drawn anew. Hsiung, Tsai, Chen and Ho, "Towards compositional
    adversarial robustness", CVPR 2023; their released code picks the order row by row, which may name a part twice.

    For K parts, a robust example costs 1 + restarts (rounds (K steps + 1) + (rounds - 1) (K^2 schedule_steps + 1))
    forward passes, the second summand with scheduled orders only, and 1 + restarts rounds fewer backward passes.

    Args:
        steps: gradient steps of each part, at least 1.
        order: "scheduled", "random", or "fixed": that of the text.
        rounds: orders that are tried one after the other, each from the parameters of the one before; with a fixed
            order there is one.
        schedule_steps: steps of each part in each slot of the relaxed chain, at least 0.
        restarts: independent random starts.
        objective: function to maximise.

    Raises:
        AttackError: a setting out of range; at use, a scheduled order of more than `MOST_PARTS` parts.
    """

    needs: ClassVar[Needs] = Needs((AnyOrderSet,))
    minimum_norm: ClassVar[bool] = False

    steps: int = 10
    order: Literal["scheduled", "random", "fixed"] = "scheduled"
    rounds: int = 5
    schedule_steps: int = 3
    restarts: int = 1
    objective: Objective = cross_entropy

    def __post_init__(self) -> None:
        least = {"steps": 1, "rounds": 1, "schedule_steps": 0, "restarts": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise AttackError(f"{name} must be at least {number}, got {getattr(self, name)}")
        if self.order not in ("scheduled", "random", "fixed"):
            raise AttackError(f"order must be scheduled, random or fixed, got {self.order!r}")

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`."""
        if self.order == "scheduled" and isinstance(threat, Chain) and len(threat.parts) > MOST_PARTS:
            raise AttackError(
                f"an order of at most {MOST_PARTS} parts can be scheduled, the threat has {len(threat.parts)}: use "
                "the random order"
            )
        return run_search(self._restarts, model, x, y, threat=threat, generator=generator, needs=self.needs)

    def _restarts(self, search: Search, generator: KeyedGenerator) -> None:
        for restart in range(self.restarts):
            self._rounds(search, search.unbroken, generator.fold("restart", restart))

    def _rounds(self, search: Search, rows: Rows, generator: KeyedGenerator) -> None:
        """Try the orders in turn, on the examples that are not broken yet."""
        allowed = _around(search, rows)
        theta = allowed.random_start(generator.select(rows).fold("start"))
        schedule, order = self.first_order(allowed, generator.select(rows))
        for number in range(1 if self.order == "fixed" else self.rounds):
            if len(rows) == 0:
                return
            draws = generator.select(rows).fold("round", number)
            schedule, order = self.next_order(search, rows, theta, schedule, order, draws, first=number == 0)
            theta = self._parts_in_turn(search, rows, theta, order)
            going = ~(search.broken | search.invalid)[rows]
            rows, theta, order, schedule = rows[going], theta[going], order[going], schedule[going]

    def _parts_in_turn(self, search: Search, rows: Rows, theta: Theta, order: Order) -> Theta:
        """Move the part of each slot in turn; returns the parameters of all examples, broken ones included."""
        everyone, count = rows, order.shape[1]
        final = theta.clone()
        final[:, -count:] = order.to(theta)
        place = torch.arange(len(rows), device=rows.device)
        owner = _owners(_around(search, rows))
        for slot in range(count):
            active_part = owner == order[:, slot, None]
            later_parts = (owner[None, :, None] == order[:, None, slot + 1 :]).any(2)
            for _ in range(self.steps):
                going = ~(search.broken | search.invalid)[everyone[place]]
                place = place[going]
                if len(place) == 0:
                    return final
                here, rows = final[place], everyone[place]
                allowed = _around(search, rows)
                partial = torch.where(later_parts[place], allowed.identity(), here)
                found = search.value_and_grad(partial, rows, self.objective)
                active = active_part[place]
                gradient = torch.where(active, found.gradient, torch.zeros_like(found.gradient))
                moved = allowed.step(partial, gradient, allowed.default_step_size(self.steps))
                final[place] = torch.where(active, moved, here)
        going = ~(search.broken | search.invalid)[everyone]
        if bool(going.any()):
            search.value_and_grad(final[going], everyone[going], self.objective, gradient=False)
        return final

    def first_order(self, allowed: AnyOrderSet, draws: KeyedGenerator) -> tuple[Schedule, Order]:
        """The schedule before the first round, and the order of the text."""
        count = allowed.count
        noise = draws.fold("schedule").normal(count, count).to(allowed.x)
        return sinkhorn(noise), torch.arange(count, device=allowed.x.device).expand(len(allowed.x), -1)

    def next_order(
        self,
        search: Search,
        rows: Rows,
        theta: Theta,
        schedule: Schedule,
        last: Order,
        draws: KeyedGenerator,
        *,
        first: bool,
    ) -> tuple[Schedule, Order]:
        """The schedule and the order of a round, from those of the round before.

        Args:
            search: the attack on the batch.
            rows: the M examples.
            theta: their parameters, `(M, P + K)`.
            schedule: the schedule so far.
            last: the order so far.
            draws: random numbers of the M examples in this round.
            first: whether this is the first round, whose scheduled order has no gradient step.
        """
        if self.order == "random":
            return schedule, draws.fold("order").uniform(last.shape[1]).argsort(1).to(last.device)
        if self.order == "fixed":
            return schedule, last
        if not first:
            schedule = sinkhorn(schedule + self._schedule_gradient(search, rows, theta, schedule))
        return _rescheduled(schedule, None if first else last, draws)

    def _schedule_gradient(self, search: Search, rows: Rows, theta: Theta, schedule: Schedule) -> Schedule:
        """Gradient of the objective with respect to the shares of a relaxed chain."""
        allowed = _around(search, rows)
        parts, _ = allowed.parted(theta)
        links, count = allowed.chain.links, allowed.count
        images, chosen = search.x[rows], []
        for slot in range(count):
            here = [link.moved_to(images) for link in links]
            moved = []
            for link, part in zip(here, parts, strict=True):
                for _ in range(self.schedule_steps):
                    gradient = search.gradient_through(link.apply, part, rows, self.objective)
                    part = link.step(part, gradient, link.default_step_size(max(self.schedule_steps, 1)))  # noqa: PLW2901
                moved.append(part)
            chosen.append(moved)
            with torch.no_grad():
                images = _mixed([one.apply(part) for one, part in zip(here, moved, strict=True)], schedule[:, slot])

        def render(shares: Tensor) -> Images:
            mixed = search.x[rows]
            for slot, moved in enumerate(chosen):
                results = [link.moved_to(mixed).apply(part) for link, part in zip(links, moved, strict=True)]
                mixed = _mixed(results, shares[:, slot])
            return mixed

        return search.gradient_through(render, schedule, rows, self.objective)


def sinkhorn(numbers: Schedule) -> Schedule:
    """exp(numbers), normalised by rows and columns in turn until it is doubly stochastic (Sinkhorn's algorithm)."""
    logs = numbers
    for _ in range(_NORMALISATIONS):
        logs = logs - logs.logsumexp(2, keepdim=True)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp()


def best_order(schedule: Schedule) -> Order:
    """Part of each slot in the permutation with the largest sum of entries."""
    count = schedule.shape[1]
    orders = torch.tensor(list(permutations(range(count))), device=schedule.device)
    slots = torch.arange(count, device=schedule.device)
    return orders[schedule[:, slots, orders].sum(2).argmax(1)]


def _rescheduled(schedule: Schedule, last: Order | None, draws: KeyedGenerator) -> tuple[Schedule, Order]:
    """The schedule and its order; both are drawn anew where the order is the last one."""
    order = best_order(schedule)
    if last is None:
        return schedule, order
    for attempt in range(_TRIES):
        same = (order == last).all(1)
        if not bool(same.any()):
            break
        noise = 2 * (draws.fold("noise", attempt).normal(*schedule.shape[1:]).to(schedule) + 1)
        schedule = torch.where(same[:, None, None], sinkhorn(schedule + noise), schedule)
        order = best_order(schedule)
    return schedule, order


def _around(search: Search, rows: Rows) -> AnyOrderSet:
    allowed = search.threat_set.select(rows)
    assert isinstance(allowed, AnyOrderSet)  # `check_needs` rejects other threats before
    return allowed


def _owners(allowed: AnyOrderSet) -> Int64[Tensor, " p"]:
    """Number of the part that each column of theta belongs to; -1 for those of the order."""
    parts = [part.flatten(1).shape[1] for part in allowed.chain.split(allowed.chain.identity())]
    numbers = [number for number, size in enumerate(parts) for _ in range(size)]
    return torch.tensor([*numbers, *[-1] * allowed.count], device=allowed.x.device)


def _mixed(results: list[Images], shares: Float[Tensor, "m k"]) -> Images:
    return torch.stack([result * per_example(shares[:, i], result) for i, result in enumerate(results)]).sum(0)
