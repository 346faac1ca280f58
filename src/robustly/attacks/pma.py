"""Probability-margin attack (Xie et al., arXiv 2411.15210)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.ascent import Ascent
from robustly.attacks.core.contract import ANY_BUT_L0, AttackError, AttackResult, Images, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.objectives import ClassificationGoal, Goal, Objective, probability_margin
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat, ThreatSet


@dataclass(frozen=True)
class PMA:
    """Ascent on margins of probabilities, in two halves with a step size that falls from 2 epsilon as a cosine.

    The first step raises the probability of the true class, to leave flat regions. The rest of the first half
    lowers the true class (first pass) or raises the strongest other (second pass). The second half maximises
    max_{j != y} p_j - p_y. A robust example costs 1 + 2 * (steps + 1) forward and 2 * steps backward passes.

    Args:
        steps: gradient steps of each of the two passes, at least 2.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.

    Raises:
        AttackError: fewer than 2 steps.
    """

    needs: ClassVar[Needs] = ANY_BUT_L0
    minimum_norm: ClassVar[bool] = False

    steps: int = 100
    precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise AttackError(f"steps must be at least 2, got {self.steps}")

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`. Untargeted only.

        Raises:
            AttackError: as `Attack`; a goal with target classes.
        """
        if isinstance(y, ClassificationGoal) and y.target is not None:
            raise AttackError("PMA has no targeted form: give labels, or use TargetedAPGD")
        return run_search(
            self._run,
            model,
            x,
            y,
            threat=threat,
            generator=generator,
            needs=self.needs,
            by_margin=True,
            precision=self.precision,
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        for turn in range(2):
            rows = search.unbroken
            if len(rows) == 0:
                return
            draws = generator.select(rows).fold("pass", turn)
            start = search.threat_set.select(rows).random_start(draws)
            ascent = Ascent(self.steps, _Halves(raises_other=turn == 1), self._step_sizes)
            ascent.run(search, rows, start, search.goal.select(rows), draws)

    def _step_sizes(self, step: int, threat_set: ThreatSet) -> Float[Tensor, " m"]:
        """Cosine from 2 radii to 0, once in each half."""
        half = self.steps // 2
        place = step / half if step < half else (step - half) / (self.steps - half)
        return threat_set.radius * (1 + math.cos(math.pi * place))


@dataclass(frozen=True)
class _Halves:
    """Objective of a pass: confidence, then one of the two probabilities, then their difference."""

    raises_other: bool

    def __call__(self, logits: Tensor, goal: ClassificationGoal) -> Tensor:
        return probability_margin(logits, goal)

    def at(self, step: int, steps: int) -> Objective:
        if step == 0:
            return _true_probability
        if step < steps // 2:
            return _other_probability if self.raises_other else _lost_probability
        return probability_margin


def _true_probability(logits: Tensor, goal: ClassificationGoal) -> Tensor:
    return logits.softmax(1).gather(1, goal.y[:, None])[:, 0]


def _lost_probability(logits: Tensor, goal: ClassificationGoal) -> Tensor:
    return -_true_probability(logits, goal)


def _other_probability(logits: Tensor, goal: ClassificationGoal) -> Tensor:
    return logits.softmax(1).scatter(1, goal.y[:, None], 0.0).amax(1)
