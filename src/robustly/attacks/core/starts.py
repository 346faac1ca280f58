"""Where a search starts, beside the points that a threat can draw by itself."""

from torch import Tensor

from robustly.attacks.core.contract import Images
from robustly.attacks.core.search import Rows, Search
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import Ball


def random_direction_ascent(
    search: Search, rows: Rows, x_adv: Images, ball: Ball, draws: KeyedGenerator, steps: int
) -> Images:
    """Output-diversified initialisation: ascent with steps of length epsilon on w . z(x), w uniform in (-1, 1)^K.

    Starts that differ in what the model answers, not only in their pixels (Tashiro, Song and Ermon, "Diversity can
    be transferred", NeurIPS 2020; with seven steps the "ADI" of Liu et al., CVPR 2022).

    Args:
        search: counts and judges the points on the way.
        rows: examples `(M,)`.
        x_adv: where they stand, `(M, ...)`.
        ball: the allowed images around them.
        draws: their random numbers.
        steps: each one forward and one backward pass.
    """
    weights = draws.fold("weights").uniform(search.clean.shape[1]).to(x_adv) * 2 - 1

    def diversity(logits: Tensor, goal: Goal) -> Tensor:
        return (weights.to(logits) * logits).sum(1)

    for _ in range(steps):
        found = search.value_and_grad(x_adv, rows, diversity, rank=False)
        x_adv = ball.step(x_adv, found.gradient, ball.radius)
    return x_adv
