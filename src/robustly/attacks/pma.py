"""Probability-margin attack (Xie et al., arXiv 2411.15210)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images
from robustly.attacks.core.search import Precision, Rows, Search, run_search
from robustly.objectives import Goal, Objective, probability_margin
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel


@dataclass(frozen=True)
class PMA:
    """Ascent on margins of probabilities, in two halves with a step size that falls from 2 epsilon as a cosine.

    The first step goes up in confidence, to leave flat ground; the rest of the first half lowers the true class
    (first pass) or raises the strongest other (second pass); the second half maximises max_{j != y} p_j - p_y. A
    robust example costs 1 + 2 * (steps + 1) forward and 2 * steps backward passes.

    Args:
        steps: gradient steps of each of the two passes, at least 2.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.

    Raises:
        AttackError: fewer than 2 steps.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

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
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`. Untargeted only.

        Raises:
            AttackError: as `Attack`; a goal with target classes.
        """
        if isinstance(y, Goal) and y.target is not None:
            raise AttackError("PMA has no targeted form: give labels, or use TargetedAPGD")
        return run_search(
            self._run,
            model,
            x,
            y,
            threat=threat,
            generator=generator,
            norms=self.norms,
            by_margin=True,
            precision=self.precision,
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        for turn in range(2):
            rows = search.unbroken
            if len(rows) == 0:
                return
            self._pass(search, rows, generator.select(rows).fold("pass", turn), turn)

    def _pass(self, search: Search, rows: Rows, draws: KeyedGenerator, turn: int) -> None:
        goal, ball = search.select(rows)
        x_adv = ball.random_start(draws)
        half = self.steps // 2
        for step in range(self.steps + 1):
            is_last = step == self.steps
            found = search.value_and_grad(
                x_adv, rows, _objective(step, half, turn), goal=goal, gradient=not is_last
            )
            if is_last:
                return
            gradient, keep = found.gradient, found.unbroken
            if not bool(keep.all()):
                rows, goal, ball = rows[keep], goal.select(keep), ball.select(keep)
                if len(rows) == 0:
                    return
                x_adv, gradient = x_adv[keep], gradient[keep]
            x_adv = ball.step(x_adv, gradient, ball.radius * _share(step, half, self.steps))


def _share(step: int, half: int, steps: int) -> float:
    """Step size as a multiple of epsilon: a cosine from 2 to 0, once in each half."""
    place = step / half if step < half else (step - half) / (steps - half)
    return 1 + math.cos(math.pi * place)


def _objective(step: int, half: int, turn: int) -> Objective:
    if step == 0:
        return _true_probability
    if step < half:
        return _other_probability if turn else _lost_probability
    return probability_margin


def _true_probability(logits: Tensor, goal: Goal) -> Tensor:
    return logits.softmax(1).gather(1, goal.y[:, None])[:, 0]


def _lost_probability(logits: Tensor, goal: Goal) -> Tensor:
    return -_true_probability(logits, goal)


def _other_probability(logits: Tensor, goal: Goal) -> Tensor:
    return logits.softmax(1).scatter(1, goal.y[:, None], 0.0).amax(1)
