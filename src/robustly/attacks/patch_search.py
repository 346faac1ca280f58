"""Search for an adversarial patch: its place and its contents."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.ascent import Ascent
from robustly.attacks.core.contract import AttackError, AttackResult, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.core.search_state import Rows
from robustly.attacks.core.update_rules import Iterate, State
from robustly.objectives import Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Images, Theta, Threat
from robustly.threats.patch import PatchSet

RANDOM_EVERY = 4
"""One in so many first patches has random contents, for models whose gradient is zero or misleads."""


@dataclass(frozen=True)
class PatchSearch:
    """Best of many places, ascent of the contents there, then small moves of the place.

    Places have many local maxima, which gradients do not leave. They are therefore drawn: first one where the
    gradient is largest, then random ones, most of them filled with the corners of the box that the gradient at the
    input points to. After the ascent the patch moves at random by at most half its side, as long as the objective
    rises. A second ascent follows.

    A robust example costs 1 + restarts * (locations + moves + 2 * steps + 4) forward and
    restarts * (2 * steps + 1) backward passes.

    Args:
        steps: gradient steps of each of the two ascents, at least 0.
        objective: function to maximise.
        locations: random places at the start, at least 0.
        moves: random moves of the best patch, at least 0.
        relative_step_size: length of a step as a share of the box's width; None is 2.5 / steps.
        restarts: independent searches, at least 1; later ones attack only unbroken examples.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.

    Raises:
        AttackError: a setting that is out of range; at use, a threat that is not a patch.
    """

    needs: ClassVar[Needs] = Needs((PatchSet,))
    minimum_norm: ClassVar[bool] = False

    steps: int = 30
    objective: Objective = margin
    locations: int = 50
    moves: int = 20
    relative_step_size: float | None = None
    restarts: int = 1
    precision: Precision = "full"

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("locations", 0), ("moves", 0), ("restarts", 1)):
            if getattr(self, name) < least:
                raise AttackError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.relative_step_size is not None and not 0 < self.relative_step_size < float("inf"):
            raise AttackError(f"relative_step_size must be a positive number, got {self.relative_step_size}")

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

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        for restart in range(self.restarts):
            draws = generator.fold("restart", restart)
            self._ascend(search, draws, self._drawn(search, draws))
            self._move(search, draws)
            self._ascend(search, draws, search.theta)

    def _drawn(self, search: Search, draws: KeyedGenerator) -> Theta:
        """The best of the first patches of each example."""
        best, value = search.threat_set.identity(), torch.full_like(search.distance, -torch.inf)
        rows = search.unbroken
        if len(rows) == 0:
            return best
        allowed, here = _patches(search, rows), best[rows]
        found = search.value_and_grad(here, rows, self.objective, goal=search.goal.select(rows))
        slope = torch.zeros_like(best)
        slope[rows] = found.gradient
        candidate = allowed.step(here, found.gradient, allowed.radius)
        for location in range(self.locations + 1):
            found = search.value_and_grad(candidate, rows, self.objective, gradient=False)
            better = found.value > value[rows]
            best[rows[better]], value[rows[better]] = candidate[better], found.value[better]
            rows = search.unbroken
            if len(rows) == 0:
                break
            allowed, numbers = _patches(search, rows), draws.select(rows).fold("location", location)
            if location % RANDOM_EVERY == RANDOM_EVERY - 1:
                candidate = allowed.random_start(numbers)
            else:
                candidate = allowed.filled(slope[rows], allowed.random_corners(numbers))
        return best

    def _ascend(self, search: Search, draws: KeyedGenerator, theta: Theta) -> None:
        """Ascent of the contents of patches `(N, ...)` in place."""
        rows = search.unbroken
        if len(rows):
            share = self.relative_step_size or 2.5 / max(self.steps, 1)
            ascent = Ascent(self.steps, self.objective, lambda step, allowed: allowed.radius * share, _InPlace())
            ascent.run(search, rows, theta[rows], search.goal.select(rows), draws.select(rows))

    def _move(self, search: Search, draws: KeyedGenerator) -> None:
        """Moves of the best patch so far by at most half its side, with the contents along."""
        for move in range(self.moves):
            rows = search.unbroken
            if len(rows) == 0:
                return
            allowed, theta = _patches(search, rows), search.theta[rows]
            reach = max(allowed.side // 2, 1)
            by = draws.select(rows).fold("move", move).integers(2 * reach + 1, 2).to(rows.device) - reach
            room = torch.tensor(allowed.x.shape[2:], device=rows.device) - allowed.side
            corners = torch.minimum((allowed.corners(theta) + by).clamp_min(0), room)
            moved = allowed.placed(allowed.contents(theta), corners)
            search.value_and_grad(moved, rows, self.objective, gradient=False)  # keeps it if it is better


@dataclass(frozen=True)
class _InPlace:
    """Update rule that moves the contents of a patch and not its place."""

    def init(self, theta: Theta) -> State:
        """No state."""
        return ()

    def update(self, state: State, iterate: Iterate) -> tuple[Theta, State]:
        """One step of the contents."""
        assert isinstance(iterate.threat_set, PatchSet)  # the only sets that the attack is defined for
        return iterate.threat_set.step_in_place(iterate.theta, iterate.gradient, iterate.step_size), state


def _patches(search: Search, rows: Rows) -> PatchSet:
    allowed = search.threat_set.select(rows)
    assert isinstance(allowed, PatchSet)  # the only sets that the attack is defined for
    return allowed
