"""Search for a printed patch that fools in expectation over its conditions (EOT)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Images, Theta, Threat
from robustly.threats.physical_patch_set import Conditions, PhysicalPatchSet


@dataclass(frozen=True)
class ExpectedPatch:
    """Gradient ascent of a print on the mean objective over random scales, rotations and brightnesses.

    Prints of random contents at random places are compared under the same random conditions. The best one climbs
    along the sign of the mean gradient over fresh conditions. The result is evaluated once, under the image's own
    conditions, which the search does not use. Expectation over transformation: Brown et al., arXiv 1712.09665;
    Athalye et al., ICML 2018.

    A robust example costs 2 + samples (locations + steps) forward and samples steps backward passes.

    Args:
        steps: gradient steps, at least 0.
        samples: random conditions of each step and of each comparison, at least 1.
        locations: random prints at the start, at least 1.
        objective: function to maximise.
        relative_step_size: length of a step as a share of the ranges of contents and place; None is 2.5 / steps.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.

    Raises:
        AttackError: a setting that is out of range; at use, a threat that is not a physical patch.
    """

    needs: ClassVar[Needs] = Needs((PhysicalPatchSet,))
    minimum_norm: ClassVar[bool] = False

    steps: int = 40
    samples: int = 8
    locations: int = 10
    objective: Objective = margin
    relative_step_size: float | None = None
    precision: Precision = "full"

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("samples", 1), ("locations", 1)):
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
        rows = search.unbroken
        draws, allowed = generator.select(rows), search.threat_set.select(rows)
        assert isinstance(allowed, PhysicalPatchSet)  # `check_needs` rejects other threats before
        theta = self._started(search, rows, allowed, draws)
        share = self.relative_step_size or 2.5 / max(self.steps, 1)
        for step in range(self.steps):
            gradient = torch.zeros_like(theta)
            for number in range(self.samples):
                seen = allowed.seen_under(_drawn(draws.fold("step", step, number)))
                gradient += search.gradient_through(seen.apply, theta, rows, self.objective)
            theta = allowed.step(theta, gradient, share * allowed.radius)
        search.evaluate(theta, rows)

    def _started(self, search: Search, rows: Rows, allowed: PhysicalPatchSet, draws: KeyedGenerator) -> Theta:
        """The best of the first prints, by the mean objective over conditions."""
        best, highest = allowed.identity(), torch.full_like(allowed.radius, -torch.inf)
        for location in range(self.locations):
            theta = allowed.random_start(draws.fold("location", location))
            value = torch.zeros_like(highest)
            for number in range(self.samples):
                seen = allowed.seen_under(_drawn(draws.fold("trial", number)))
                value += search.value_through(seen.apply, theta, rows, self.objective).to(value)
            better = value > highest
            best, highest = torch.where(better[:, None], theta, best), torch.where(better, value, highest)
        return best


def _drawn(draws: KeyedGenerator) -> Conditions:
    return 2 * draws.uniform(3) - 1
