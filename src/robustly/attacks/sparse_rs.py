"""Sparse-RS: random search over few pixels, from logits alone (Croce et al., AAAI 2022)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.random_search import Flat, falling_share, random_search
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.objectives import Goal, Objective, cross_entropy, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import L0Ball
from robustly.threats.contract import Threat

LESS_AFTER = (0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
DIVISORS = (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)


@dataclass(frozen=True)
class SparseRS:
    """Swap some of the changed pixels for others of random corner colours, and keep improvements.

    Algorithm 1 of Croce, Andriushchenko, Singh, Flammarion and Hein, "Sparse-RS" (AAAI 2022), for l0: exactly
    epsilon pixels are set to corners of the colour cube. A single pixel that is swapped in always gets a new
    colour. Pixels are drawn for each example, not for the batch.

    A robust example costs 1 + restarts * (queries + 1) forward passes and no backward pass.

    Args:
        queries: candidates per restart, at least 0. The paper uses 10,000.
        alpha_init: share of the pixels that are swapped, in (0, 1]. It is halved after the first queries and falls
            to a twentieth over the run, whatever its length. The paper uses 0.1 for target classes.
        restarts: independent runs, at least 1; later ones attack only unbroken examples.
        objective: function to maximise without a target class. With one it is the cross-entropy to it.
        precision: "full", "ambient" or "bfloat16"; see `Square`.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("l0")
    minimum_norm: ClassVar[bool] = False

    queries: int = 5000
    alpha_init: float = 0.3
    restarts: int = 1
    objective: Objective = margin
    precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.queries < 0 or self.restarts < 1:
            raise AttackError(
                f"queries must be at least 0 and restarts at least 1, got {self.queries}, {self.restarts}"
            )
        if not 0 < self.alpha_init <= 1:
            raise AttackError(f"alpha_init must be a share of the changed pixels in (0, 1], got {self.alpha_init}")

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
        return run_search(
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, precision=self.precision
        )

    def share(self, query: int) -> float:
        """Share of the changed pixels that a query swaps; the schedule is stretched from 10,000 queries."""
        return falling_share(
            self.alpha_init, max(int((query + 1) / self.queries * 10_000), 1), LESS_AFTER, DIVISORS
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        for restart in range(self.restarts):
            rows = search.unbroken
            rows = rows[search.ball.radius[rows] > 0]
            if len(rows) == 0:
                return
            goal, ball = search.labels.select(rows), search.ball.select(rows)
            objective = self.objective if goal.target is None else cross_entropy
            draws = generator.select(rows).fold("restart", restart)
            assert isinstance(ball, L0Ball)  # the only ball that the attack is defined for
            moves = _Swaps.of(ball, draws.fold("pixels"))
            random_search(search, rows, draws, moves, objective, self.share, self.queries)


@dataclass(eq=False)
class _Swaps:
    """Changed pixels of M examples, and the swap that was proposed last.

    Args:
        x: original images, flat, `(M, C * P)`.
        channels: C; flat images are pixels of one channel.
        order: a permutation of the pixels of each example; the first `chosen` of them are changed, and those that
            may not change come last.
        chosen: number of changed pixels, at most `usable`.
        box: least and largest value.
        largest: the largest of `chosen`, or more.
        usable: number of pixels that may change.
        free: mask of the values that may change; None for all.
        swapped: of the last proposal, places in `order` that exchange their pixels, `(M, S)` each.
    """

    x: Flat
    channels: int
    order: Int64[Tensor, "m p"]
    chosen: Int64[Tensor, "m 1"]
    box: tuple[float, float]
    largest: int
    usable: int
    free: Bool[Tensor, "1 d"] | None = None
    swapped: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(ball: L0Ball, draws: KeyedGenerator) -> "_Swaps":
        """Random pixels."""
        x = ball.x
        channels = x.shape[1] if x.ndim > 2 else 1
        order = ball.random_pixel_order(draws)
        usable = order.shape[1] if ball.free_pixels is None else int(ball.free_pixels.sum())
        chosen = ball.radius.long().clamp_max(usable)[:, None]
        free = None if ball.allowed is None else ball.allowed.expand(x.shape[1:]).reshape(1, -1)
        return _Swaps(x.flatten(1), channels, order, chosen, ball.box, int(chosen.max()), usable, free)

    def draw(self, draws: KeyedGenerator, queries: int, share: float) -> Float[Tensor, "m q s r"]:
        """Random numbers, drawn pixel by pixel: those of an example must not depend on the others' epsilon."""
        parts = [
            draws.fold("pixel", pixel).uniform(queries, 5 + self.channels) for pixel in range(self._most(share))
        ]
        return torch.stack(parts, dim=2)

    def start(self, draws: KeyedGenerator) -> Flat:
        pixels = self.order.shape[1]
        colours = self._colours(draws.uniform(self.channels, pixels))
        rank = self.order.argsort(dim=1)
        changed = (rank < self.chosen)[:, None]
        return self._allowed(torch.where(changed, colours, self.x.view(-1, self.channels, pixels)).flatten(1))

    def propose(self, current: Flat, numbers: Float[Tensor, "m s r"], share: float) -> Flat:
        most = self._most(share)
        needed = (share * self.chosen.double()).long().clamp_min(1)
        room = self.usable - self.chosen
        numbers = numbers[:, :most]
        leaving, first = _distinct(numbers[:, :, 0:2].flatten(1), self.chosen, needed)
        arriving, second = _distinct(numbers[:, :, 2:4].flatten(1), room.clamp_min(1), needed)
        count = torch.minimum(first, second)
        arriving = torch.where(
            room > 0, arriving + self.chosen, leaving
        )  # all pixels changed: colours alone change
        idle = torch.arange(most, device=current.device) >= count
        leaving, arriving = (torch.where(idle, places[:, :1], places) for places in (leaving, arriving))
        self.swapped = leaving, arriving
        old, new = self.order.gather(1, leaving), self.order.gather(1, arriving)
        there = self._everywhere(new)
        colours = self._colours(numbers[:, :, 5:].mT)
        other = self._other(colours, current, there, numbers[:, :1, 4])
        colours = torch.where((needed == 1)[:, :, None], other, colours)
        colours = torch.where(idle[:, None], colours[:, :, :1], colours)
        here = self._everywhere(old).flatten(1)
        candidate = current.scatter(1, here, self.x.gather(1, here))
        return self._allowed(candidate.scatter_(1, there.flatten(1), colours.flatten(1)))

    def accept(self, better: Int64[Tensor, " b"]) -> None:
        assert self.swapped is not None
        leaving, arriving = (places[better] for places in self.swapped)
        order = self.order[better]
        old, new = order.gather(1, leaving), order.gather(1, arriving)
        self.order[better] = order.scatter(1, leaving, new).scatter_(1, arriving, old)

    def select(self, keep: Bool[Tensor, " m"]) -> "_Swaps":
        return replace(self, x=self.x[keep], order=self.order[keep], chosen=self.chosen[keep], swapped=None)

    def _allowed(self, points: Flat) -> Flat:
        return points if self.free is None else torch.where(self.free, points, self.x)

    def _most(self, share: float) -> int:
        return max(1, int(share * self.largest))

    def _everywhere(self, pixels: Int64[Tensor, "m s"]) -> Int64[Tensor, "m c s"]:
        """Places of pixels in the flat image, in every channel."""
        channel = torch.arange(self.channels, device=pixels.device)[:, None]
        return pixels[:, None] + channel * self.order.shape[1]

    def _colours(self, numbers: Tensor) -> Tensor:
        low, high = self.box
        return torch.where(numbers < 0.5, low, high).to(self.x)

    def _other(self, colours: Tensor, current: Flat, there: Tensor, extra: Float[Tensor, "m 1"]) -> Tensor:
        """Colours, with one random channel inverted where they equal those of the image."""
        same = (current.gather(1, there.flatten(1)).view(there.shape) == colours).all(1, keepdim=True)
        turned = (extra * self.channels).long()[:, :, None] == torch.arange(self.channels, device=extra.device)[
            :, None
        ]
        low, high = self.box
        return torch.where(same & turned, low + high - colours, colours)


def _distinct(
    numbers: Float[Tensor, "m twice"], below: Int64[Tensor, "m 1"], needed: Int64[Tensor, "m 1"]
) -> tuple[Int64[Tensor, "m most"], Int64[Tensor, "m 1"]]:
    """Distinct integers in {0, ..., below - 1}, all subsets equally likely, from 2 * needed draws.

    Returns:
        The integers, and the number of valid ones, from the left: `needed` but for rare cases, at least 1.
    """
    drawn, twice = (numbers * below).long(), numbers.shape[1]
    unused = torch.arange(twice, device=drawn.device) >= 2 * needed
    unused |= (drawn[:, :, None] == drawn[:, None, :]).tril(-1).any(2)
    first = unused.to(torch.int8).argsort(dim=1, stable=True)[:, : twice // 2]
    return drawn.gather(1, first), torch.minimum((~unused).sum(1, keepdim=True), needed)
