"""Ascent with momentum and variance tuning: VMI-FGSM (Wang and He, CVPR 2021, algorithm 1)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.ascent import Ascent, constant_step_size
from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.core.update_rules import Iterate, Momentum, State
from robustly.attacks.transfer import endless
from robustly.objectives import Goal, Objective, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import LpBall
from robustly.threats.contract import Theta, Threat, per_example


@dataclass(frozen=True)
class VarianceTuned:
    """Steepest step along a decaying sum of normalised gradients, each corrected by the last step's variance.

    velocity <- decay * velocity + (g + v) / |g + v|_1, and after the step v <- mean of the gradients at `samples`
    neighbours of the point, minus g. A neighbour adds to each value a number drawn uniformly within `reach` radii.

    Args:
        decay: mu, at least 0.
        samples: N, the number of neighbours, at least 1; each costs a forward and a backward pass.
        reach: beta, in radii of the threat, positive.
    """

    decay: float = 1.0
    samples: int = 20
    reach: float = 1.5

    def init(self, theta: Theta) -> State:
        """Velocity and variance of zero."""
        return torch.zeros_like(theta), torch.zeros_like(theta)

    def update(self, state: State, iterate: Iterate) -> tuple[Theta, State]:
        """One projected step along the velocity."""
        velocity, variance = state
        tuned = replace(iterate, gradient=iterate.gradient + variance)
        moved, (velocity,) = Momentum(self.decay).update((velocity,), tuned)
        return moved, (velocity, self._mean_gradient(iterate) - iterate.gradient)

    def _mean_gradient(self, iterate: Iterate) -> Theta:
        ball, theta = iterate.threat_set, iterate.theta
        assert isinstance(ball, LpBall)  # the attack's `needs` rejects other threats before
        draws, total = iterate.draws.fold("neighbour", iterate.step), torch.zeros_like(theta)
        reach = per_example(self.reach * ball.radius, theta)
        for sample in range(self.samples):
            noise = draws.fold("sample", sample).uniform(*theta.shape[1:]).to(theta) * 2 - 1
            total += iterate.gradient_at(theta + ball.along_free(reach * noise))
        return total / self.samples


@dataclass(frozen=True)
class VMI:
    """Momentum with variance tuning: VMI-FGSM, whose examples transfer better than those of MI-FGSM.

    A robust example costs 2 + steps * (1 + samples) forward and steps * (1 + samples) backward passes. Neighbours
    are not iterates: they get no verdict and do not count in `correct_iterates`.

    Args:
        steps: at least 1.
        decay: mu, at least 0.
        samples: N, neighbours of each iterate, at least 1; 20 in the paper.
        reach: beta, largest change of a neighbour's value in units of epsilon, positive; 1.5 in the paper.
        objective: function to maximise.
        step_size: length of a step in units of the images; None uses epsilon / steps.
        early_stop: True removes an example from the batch as soon as it is broken.
        keep: "best" returns the first broken iterate, or else the iterate of highest objective; "last" returns the
            last iterate of all examples without evaluating it, for transfer.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("linf")
    minimum_norm: ClassVar[bool] = False

    steps: int = 10
    decay: float = 1.0
    samples: int = 20
    reach: float = 1.5
    objective: Objective = cross_entropy
    step_size: float | None = None
    early_stop: bool = True
    keep: Literal["best", "last"] = "best"
    precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 1:
            raise AttackError(f"steps and samples must be at least 1, got {self.steps}, {self.samples}")
        if not (0 <= self.decay < float("inf") and 0 < self.reach < float("inf")):
            raise AttackError(f"decay must be at least 0 and reach positive, got {self.decay}, {self.reach}")
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise AttackError(f"step_size must be a positive number, got {self.step_size}")

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
        y = endless(y) if self.keep == "last" else y
        return run_search(
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, precision=self.precision
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        rows = search.unbroken
        ascent = Ascent(
            self.steps,
            self.objective,
            constant_step_size(self.step_size, self.steps),
            VarianceTuned(self.decay, self.samples, self.reach),
            early_stop=self.early_stop,
            finish="evaluate" if self.keep == "best" else "keep",
        )
        start = search.threat_set.select(rows).identity()
        ascent.run(search, rows, start, search.goal.select(rows), generator.select(rows))
