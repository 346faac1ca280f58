"""The l2 attack of Carlini and Wagner ("Towards evaluating the robustness of neural networks", S&P 2017)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.penalty import PenaltyWeight, capped_lead, check_penalty_search
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat, per_example

INSIDE = 0.999999  # keeps the inverse of tanh finite at the edge of the box
CHECKS = 10  # number of checks for progress per run
PROGRESS = 0.9999  # a loss above this share of the loss at the last check ends a run
BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam


@dataclass(frozen=True)
class CarliniWagner:
    """Minimise |x' - x|^2 + c max(z_y - max_{j != y} z_j + confidence, 0) over x' = box of tanh(w), by Adam.

    The perturbation is measured in widths of the box, so that settings mean the same on every box. c is searched
    for each example (see `PenaltyWeight`). A step costs one forward and one backward pass. A run ends early if the
    loss, checked ten times from the first step on, makes no progress.

    Args:
        steps: per value of c, at least 1.
        search_steps: values of c, at least 1; from ten on, the last is the smallest that sufficed.
        initial_c: first value.
        confidence: smallest lead of a success, at least 0.
        learning_rate: of Adam, in the variable w.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("l2")
    minimum_norm: ClassVar[bool] = True

    steps: int = 1000
    search_steps: int = 9
    initial_c: float = 1e-3
    confidence: float = 0.0
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        check_penalty_search(self.steps, self.search_steps, self.initial_c, self.learning_rate)
        if not self.confidence >= 0:
            raise AttackError(f"confidence must be at least 0, got {self.confidence}")

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
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, nearest=True
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        rows = search.unbroken
        weight = PenaltyWeight.starting_at(self.initial_c, search.distance[rows])
        for turn in range(self.search_steps):
            if turn == self.search_steps - 1 and self.search_steps >= 10:
                weight = weight.best_known()
            weight = weight.after(self._descend(search, rows, weight.c))

    def _descend(self, search: Search, rows: Rows, c: Float[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """One run with given weights; returns a mask of the examples that reached the goal with the confidence."""
        ball = search.ball.select(rows)
        low, high = ball.box
        width = high - low
        half, place = width / 2, torch.arange(len(rows), device=rows.device)
        x = ball.x
        w = torch.atanh(((x - low) / half - 1) * INSIDE)
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        success = torch.zeros_like(rows).bool()
        last = torch.full_like(c, torch.inf)
        objective = capped_lead(self.confidence)
        every = max(self.steps // CHECKS, 1)
        for step in range(self.steps):
            here, squashed = rows[place], torch.tanh(w)
            point = ball.clamp(low + half * (squashed + 1))
            found = search.value_and_grad(point, here, objective, inside=False)
            reached = (found.value >= self.confidence) & search.goal.select(here).reached(found.output)
            # a success that leads by less than the confidence must not be recorded; all else may be
            recordable = reached | ~search.goal.select(here).reached(found.output) | ~found.output.isfinite().all(1)
            if bool(recordable.any()):
                search.record(point[recordable], here[recordable], found.output[recordable], None, exact=True)
            success[place] |= reached
            keep = ~search.invalid[here]
            moved = (point - x) / width
            if step % every == 0:
                change = moved.flatten(1).square().sum(1)
                loss = change + c * (self.confidence - found.value)
                keep &= loss <= PROGRESS * last
                last = loss
            gradient = (2 * moved / width - per_example(c, x) * found.gradient) * half * (1 - squashed.square())
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
            ahead = first / (1 - BETAS[0] ** (step + 1))
            w = w - self.learning_rate * ahead / ((second / (1 - BETAS[1] ** (step + 1))).sqrt() + TINY)
            if not bool(keep.all()):
                place, ball, w, c, last = place[keep], ball.select(keep), w[keep], c[keep], last[keep]
                x = ball.x
                first, second = first[keep], second[keep]
                if len(place) == 0:
                    break
        return success
