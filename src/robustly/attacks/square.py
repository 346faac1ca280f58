"""Square attack: random search over square windows, from logits alone (Andriushchenko et al., ECCV 2020)."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.random_search import Flat, Moves, falling_share, random_search
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal, Objective, cross_entropy, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import LinfBall, LpBall
from robustly.threats.contract import Threat
from robustly.threats.projections import project_l1

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TINY = 1e-12
Windows = Int64[Tensor, "m c s"]


@dataclass(frozen=True)
class Square:
    """Change one random window at a time, and keep the change if the objective increases.

    Algorithms 1 to 3 of Andriushchenko, Croce, Flammarion and Hein, "Square attack" (ECCV 2020), as in AutoAttack,
    with its l1 version. Under linf a window is set to plus or minus epsilon, each channel at random; under l2 and
    l1 the perturbation of one window is moved into a bump in another. Two things differ from AutoAttack: windows
    are drawn for each example and not for the batch, and from all places (AutoAttack never draws the last row and
    column).

    A robust example costs 1 + restarts * (queries + 1) forward passes and no backward pass. Inputs that are not
    `(N, C, H, W)` are reshaped to the most nearly square grid of their length.

    Args:
        queries: candidates per restart, at least 0.
        p_init: share of the image that the first windows cover, in (0, 1].
        restarts: independent runs, at least 1; later ones attack only unbroken examples.
        rescale_schedule: True stretches the schedule of window sizes from 10,000 queries to `queries`; AutoAttack
            does not.
        objective: function to maximise without a target class. With one it is the cross-entropy to it.
        precision: "full", "ambient" or "bfloat16"; see `PGD`. In bfloat16 every success costs one more pass, in
            full precision.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("linf", "l2", "l1")
    minimum_norm: ClassVar[bool] = False

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    rescale_schedule: bool = False
    objective: Objective = margin
    precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.queries < 0 or self.restarts < 1:
            raise AttackError(
                f"queries must be at least 0 and restarts at least 1, got {self.queries}, {self.restarts}"
            )
        if not 0 < self.p_init <= 1:
            raise AttackError(f"p_init must be a share of the image in (0, 1], got {self.p_init}")

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
        """Share of the image that the window of a query covers: halved after 10, 50, 200, 500, ... queries."""
        if self.rescale_schedule:
            query = int(query / self.queries * 10_000)
        return falling_share(self.p_init, query, HALVED_AFTER, tuple(2**times for times in range(10)))

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        for restart in range(self.restarts):
            rows = search.unbroken
            rows = rows[search.ball.radius[rows] > 0]
            if len(rows) == 0:
                return
            self._search(search, rows, generator.select(rows).fold("restart", restart))

    def _search(self, search: Search, rows: Rows, draws: KeyedGenerator) -> None:
        goal, ball = search.labels.select(rows), search.ball.select(rows)
        objective = self.objective if goal.target is None else cross_entropy
        moves: Moves = (_Squares if isinstance(ball, LinfBall) else _Bumps).around(ball)
        random_search(search, rows, draws, moves, objective, self.share, self.queries)


@dataclass(frozen=True)
class Grid:
    """Channels, height and width of an image."""

    channels: int
    height: int
    width: int

    @staticmethod
    def of(shape: torch.Size) -> "Grid":
        """Grid of an image; inputs without two spatial dimensions are folded into nearly square rows."""
        if len(shape) == 3:
            return Grid(*shape)
        channels, length = (1, shape.numel()) if len(shape) < 2 else (shape[0], shape[1:].numel())
        height = next(side for side in range(math.isqrt(length), 0, -1) if length % side == 0)
        return Grid(channels, height, length // height)

    def windows(self, corner: Float[Tensor, "m 2"], tall: int, wide: int) -> Windows:
        """Places in the flat image of one window per example, in each channel.

        Args:
            corner: two numbers in [0, 1) that select one of all places, the last row and column included.
            tall: height of the windows.
            wide: their width.
        """
        top = (corner[:, 0] * (self.height - tall + 1)).long()
        left = (corner[:, 1] * (self.width - wide + 1)).long()
        row, column, channel = (torch.arange(size, device=corner.device) for size in (tall, wide, self.channels))
        inside = (row[:, None] * self.width + column).reshape(-1)
        first = (top * self.width + left)[:, None] + channel * (self.height * self.width)
        return first[:, :, None] + inside


@dataclass(frozen=True, eq=False)
class _Squares:
    """Windows at plus or minus epsilon; the start is vertical stripes of width one."""

    edges: Float[Tensor, "m pair"]
    grid: Grid

    @staticmethod
    def around(ball: LpBall) -> "_Squares":
        assert isinstance(ball, LinfBall)
        return _Squares(torch.cat([ball.lower.flatten(1), ball.upper.flatten(1)], dim=1), Grid.of(ball.x.shape[1:]))

    def draw(self, draws: KeyedGenerator, queries: int, share: float) -> Float[Tensor, "m q r"]:
        return draws.uniform(queries, 2 + self.grid.channels)

    def start(self, draws: KeyedGenerator) -> Flat:
        grid = self.grid
        up = draws.uniform(grid.channels, 1, grid.width) >= 0.5
        lower, upper = self.edges.view(-1, 2, grid.channels, grid.height, grid.width).unbind(1)
        return torch.where(up, upper, lower).flatten(1)

    def propose(self, current: Flat, numbers: Float[Tensor, "m r"], share: float) -> Flat:
        grid = self.grid
        side = max(1, round(math.sqrt(share * grid.height * grid.width)))
        places = grid.windows(numbers[:, :2], min(side, grid.height), min(side, grid.width))
        up = (numbers[:, 2:] >= 0.5)[:, :, None]
        values = self.edges.gather(1, (places + up * current.shape[1]).flatten(1))
        return current.scatter(1, places.flatten(1), values)

    def accept(self, better: Int64[Tensor, " b"]) -> None:
        pass

    def select(self, keep: Bool[Tensor, " m"]) -> "_Squares":
        return _Squares(self.edges[keep], self.grid)


@dataclass(frozen=True, eq=False)
class _Bumps:
    """The l2 or l1 budget, moved from one window into a bump in another; the start is a grid of bumps."""

    centre: Flat
    radius: Float[Tensor, "m 1"]
    power: int
    box: tuple[float, float]
    grid: Grid
    free: Bool[Tensor, "1 d"] | None = None  # mask of the values that may change; None for all
    patterns: dict[int, Tensor] = field(default_factory=dict)  # by side, which has ten values in a search

    @staticmethod
    def around(ball: LpBall) -> "_Bumps":
        power, shape = 1 if ball.norm == "l1" else 2, ball.x.shape[1:]
        free = None if ball.allowed is None else ball.allowed.expand(shape).reshape(1, -1)
        return _Bumps(ball.x.flatten(1), ball.radius[:, None], power, ball.box, Grid.of(shape), free)

    def draw(self, draws: KeyedGenerator, queries: int, share: float) -> Float[Tensor, "m q r"]:
        return draws.uniform(queries, 5 + self.grid.channels)

    def start(self, draws: KeyedGenerator) -> Flat:
        grid = self.grid
        side = max(1, min(grid.height, grid.width) // 5)
        rows, columns = grid.height // side, grid.width // side
        sign = _signs(draws.fold("signs").uniform(grid.channels, rows, columns)).to(self.centre)
        turned = draws.fold("turned").uniform(1, rows, 1, columns, 1) < 0.5
        pattern = self._pattern(side)
        tiles = torch.where(turned, pattern.T[:, None], pattern[:, None]) * sign[:, :, :, None, :, None]
        change = self.centre.new_zeros(len(sign), grid.channels, grid.height, grid.width)
        top, left = (grid.height - rows * side) // 2, (grid.width - columns * side) // 2
        inside = tiles.reshape(len(sign), grid.channels, rows * side, columns * side)
        change[:, :, top : top + rows * side, left : left + columns * side] = inside
        return self._allowed(change.flatten(1) * (self.box[1] - self.box[0]))

    def propose(self, current: Flat, numbers: Float[Tensor, "m r"], share: float) -> Flat:
        grid, change = self.grid, current - self.centre
        side = max(round(math.sqrt(share * grid.height * grid.width)), 3) | 1
        side = min(side, grid.height, grid.width)
        here = grid.windows(numbers[:, 0:2], side, side)
        there = grid.windows(numbers[:, 2:4], side, side)
        old = change.gather(1, here.flatten(1)).view(here.shape)
        rest = change.scatter(1, here.flatten(1), 0.0).gather(1, there.flatten(1)).view(there.shape)
        spare = (self.radius**self.power - self._spent(change)).clamp_min(0.0)[:, :, None] / grid.channels
        pattern = self._pattern(side)
        pattern = torch.where((numbers[:, 4] < 0.5)[:, None, None], pattern.T, pattern).reshape(-1, 1, side * side)
        new = pattern * _signs(numbers[:, 5:]).to(current)[:, :, None] + old / (self._length(old) + _TINY)
        new = new / (self._length(new) + _TINY) * self._budget(spare, old, rest)
        change = change.scatter_(1, there.flatten(1), 0.0).scatter_(1, here.flatten(1), new.flatten(1))
        return self._allowed(change)

    def accept(self, better: Int64[Tensor, " b"]) -> None:
        pass

    def select(self, keep: Bool[Tensor, " m"]) -> "_Bumps":
        return replace(self, centre=self.centre[keep], radius=self.radius[keep])

    def _pattern(self, side: int) -> Float[Tensor, "s s"]:
        if side not in self.patterns:
            self.patterns[side] = bump(side, self.power, self.centre)
        return self.patterns[side]

    def _budget(self, spare: Tensor, old: Tensor, rest: Tensor) -> Float[Tensor, "m _ 1"]:
        """Length of a channel's new window: the lengths of the two windows, and the unspent rest.

        As in the released code: under l1 per channel, times the number of channels; under l2 over all channels.
        """
        had = self._spent(old) + self._spent(rest)
        if self.power == 1:
            return (spare + had) * self.grid.channels
        return (spare + had.sum(1, keepdim=True)).sqrt()

    def _spent(self, values: Tensor) -> Tensor:
        """Share of an additive budget that values use: their absolute values, or squares."""
        size = values.abs() if self.power == 1 else values.square()
        return size.sum(-1, keepdim=True)

    def _length(self, values: Tensor) -> Tensor:
        return self._spent(values) if self.power == 1 else self._spent(values).sqrt()

    def _allowed(self, change: Flat) -> Flat:
        """Nearest allowed point in l1; in l2 the perturbation at full length, clipped to the box."""
        low, high = self.box
        if self.free is not None:
            change = change * self.free
        if self.power == 1:
            change = self._projected_l1(change)
        else:
            change = change * (self.radius / (self._length(change) + _TINY))
        return (self.centre + change).clamp_(low, high)

    def _projected_l1(self, change: Flat) -> Flat:
        """Projection of the changed values alone, a tenth of an image or less, because the projection sorts."""
        low, high = self.box
        changed = int((change != 0).sum(1).max())
        places = change.abs().topk(changed, dim=1).indices
        centre = self.centre.gather(1, places)
        projected = project_l1(change.gather(1, places), low - centre, high - centre, self.radius)
        return torch.zeros_like(change).scatter_(1, places, projected)


def bump(side: int, power: int, like: Tensor) -> Float[Tensor, "s s"]:
    """Two half-windows of nested rectangles around their centres, of opposite signs and equal norm; total norm 1.

    Rectangle j from the centre out has height 1 / j^2 under l2 (paper, eq. 2), 1 / j^4 under l1.
    """
    halves = [_nested(side // 2, side, power, like), -_nested(side - side // 2, side, power, like)]
    window = torch.cat([half / _norm(half, power) for half in halves if half.numel()])
    return window / _norm(window, power)


def _nested(height: int, width: int, power: int, like: Tensor) -> Float[Tensor, "h w"]:
    window = like.new_zeros(height, width)
    row, column = height // 2, width // 2
    for ring in range(max(row, column) + 1):
        decay = 1.0 / (ring + 1) ** (4 if power == 1 else 2)
        window[max(row - ring, 0) : row + ring + 1, max(column - ring, 0) : column + ring + 1] += decay
    return window


def _norm(window: Tensor, power: int) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(window, power)
    return length


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)
