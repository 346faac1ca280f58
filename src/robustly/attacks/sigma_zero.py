"""sigma-zero: gradient descent on a smooth approximation of the number of pixels (Cina et al., ICLR 2025)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.penalty import capped_lead
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat, per_example

BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam
THRESHOLD_RATE = 0.01  # change of the threshold after a success or failure, per unit of the step size
LAST_STEP = 0.1  # the step size falls to this share of the first, as a cosine


@dataclass(frozen=True)
class SigmaZero:
    """Minimise max(z_y - max_{j != y} z_j, 0) + mean_p s_p / (s_p + sigma), and undo small changes.

    s_p is the squared change of pixel p over its channels. A pixel counts once, as in the threat l0; the paper
    counts values, which is the same for one channel. A step costs one forward and one backward pass.

    Args:
        steps: at least 1.
        sigma: scale below which a squared change counts as none, positive; on a box of width 1.
        threshold: pixels whose largest change is below it are reset; its first value, in [0, 1].
        learning_rate: first step size of Adam, on a box of width 1.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("l0")
    minimum_norm: ClassVar[bool] = True

    steps: int = 1000
    sigma: float = 1e-3
    threshold: float = 0.3
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not (self.sigma > 0 and self.learning_rate > 0 and 0 <= self.threshold <= 1):
            raise AttackError(
                "steps must be at least 1, sigma and learning_rate positive, threshold in [0, 1], got "
                f"{self.steps}, {self.sigma}, {self.learning_rate}, {self.threshold}"
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
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, nearest=True
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        self._descend(search, search.unbroken)

    def _descend(self, search: Search, rows: Rows) -> None:
        low, high = search.ball.box
        width = high - low
        ball = search.ball.select(rows)
        x = ball.x
        delta, first, second = (torch.zeros_like(x) for _ in range(3))
        threshold = torch.full_like(search.distance[rows], self.threshold)
        objective = capped_lead(0.0)
        for step in range(self.steps):
            point = ball.clamp(x + width * delta)
            found = search.value_and_grad(point, rows, objective)
            adversarial = search.goal.select(rows).reached(found.output)
            gradient = _count_slope(delta, self.sigma) - width * found.gradient
            largest = gradient.flatten(1).abs().amax(1)
            gradient = gradient / per_example(torch.where(largest > 0, largest, 1.0), gradient)
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
            share = LAST_STEP + (1 - LAST_STEP) * (1 + math.cos(math.pi * step / self.steps)) / 2
            ahead = first / (1 - BETAS[0] ** (step + 1))
            delta = delta - self.learning_rate * share * ahead / (
                (second / (1 - BETAS[1] ** (step + 1))).sqrt() + TINY
            )
            delta = (ball.clamp(x + width * delta) - x) / width
            threshold = threshold + THRESHOLD_RATE * share * torch.where(adversarial, 1.0, -1.0)
            threshold = threshold.clamp(0, 1)
            delta = _without_small_pixels(delta, threshold)
            keep = ~search.invalid[rows]
            if not bool(keep.all()):
                rows, ball, delta, threshold = rows[keep], ball.select(keep), delta[keep], threshold[keep]
                x = ball.x
                first, second = first[keep], second[keep]
                if len(rows) == 0:
                    return
        search.evaluate(ball.clamp(x + width * delta), rows)


def _by_pixel(delta: Images) -> Float[Tensor, "m c p"]:
    return delta.flatten(2) if delta.ndim > 2 else delta.unsqueeze(1)


def _count_slope(delta: Images, sigma: float) -> Images:
    """Gradient of the mean over pixels of s / (s + sigma)."""
    pixels = _by_pixel(delta)
    size = pixels.square().sum(1, keepdim=True)
    return (2 * pixels * sigma / (size + sigma).square() / pixels.shape[2]).view_as(delta)


def _without_small_pixels(delta: Images, threshold: Float[Tensor, " m"]) -> Images:
    pixels = _by_pixel(delta)
    small = pixels.abs().amax(1, keepdim=True) < threshold[:, None, None]
    return pixels.masked_fill(small, 0.0).reshape(delta.shape)
