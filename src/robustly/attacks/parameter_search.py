"""Random search on the parameters of any threat, from logits alone."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import ANY_BUT_L0, AttackError, AttackResult, Images, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Theta, Threat, ThreatSet, per_example


@dataclass(frozen=True)
class ParameterSearch:
    """Move random parameters by random steps that shrink, and keep a move if the objective increases.

    The scheme of Square (Andriushchenko et al., ECCV 2020) on the parameters of a threat, such as an angle and a
    shift, in place of windows of an image. A move changes about half of the parameters, at least one, each up or
    down; its length is uniform up to the step size of its query, which falls geometrically from `first_step` to
    `last_step` radii. Early moves cross the whole set, late ones refine.

    A robust example costs 1 + restarts * (queries + 1) forward passes and no backward pass.

    Args:
        queries: moves per restart, at least 0.
        restarts: independent runs from random starts, at least 1; later ones attack only unbroken examples.
        first_step: largest length of the first move, in radii, above 0.
        last_step: that of the last one, above 0 and at most `first_step`.
        objective: function to maximise.
        precision: "full", "ambient" or "bfloat16"; see `PGD`. In bfloat16 every success costs one more pass, in
            full precision.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = ANY_BUT_L0
    minimum_norm: ClassVar[bool] = False

    queries: int = 200
    restarts: int = 1
    first_step: float = 1.0
    last_step: float = 0.02
    objective: Objective = margin
    precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.queries < 0 or self.restarts < 1:
            raise AttackError(
                f"queries must be at least 0 and restarts at least 1, got {self.queries}, {self.restarts}"
            )
        if not 0 < self.last_step <= self.first_step < float("inf"):
            raise AttackError(
                "steps must be positive and shrink from first_step to last_step, got "
                f"{self.first_step} and {self.last_step}"
            )

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

    def step_size(self, query: int) -> float:
        """Largest length of a move, in radii."""
        done = query / max(self.queries - 1, 1)
        return self.first_step * math.pow(self.last_step / self.first_step, done)

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        for restart in range(self.restarts):
            rows = search.unbroken
            rows = rows[search.threat_set.radius[rows] > 0]
            if len(rows) == 0:
                return
            self._search(search, rows, generator.select(rows).fold("restart", restart))

    def _search(self, search: Search, rows: Rows, draws: KeyedGenerator) -> None:
        allowed = search.threat_set.select(rows)
        current = allowed.random_start(draws.fold("start"))
        found = search.value_and_grad(current, rows, self.objective, gradient=False)
        value, keep = found.value, found.going
        for query in range(self.queries):
            if not bool(keep.all()):
                rows, draws, allowed = rows[keep], draws.select(keep), allowed.select(keep)
                current, value = current[keep], value[keep]
                if len(rows) == 0:
                    return
            moved = proposal(allowed, current, draws.fold("query", query), self.step_size(query))
            found = search.value_and_grad(moved, rows, self.objective, gradient=False)
            better = found.value > value
            current = torch.where(per_example(better, current), moved, current)
            value, keep = torch.where(better, found.value, value), found.going


def proposal(allowed: ThreatSet, theta: Theta, draws: KeyedGenerator, share: float) -> Theta:
    """Allowed parameters at a random step of at most `share` radii from others."""
    number = draws.uniform(*theta.shape[1:]).to(theta) - 0.5
    largest = per_example(number.abs().flatten(1).amax(1), theta)
    direction = torch.where(number.abs() >= largest.clamp_max(0.25), number.sign(), 0.0)
    length = share * (1 - draws.fold("length").uniform(1)[:, 0]).to(allowed.radius) * allowed.radius
    return allowed.step(theta, direction, length)
