"""Which wrong class to go for first."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.attacks.search import Search

Ranking = Literal["confidence", "malt"]
CANDIDATES = 20  # with many classes, only those of the largest logits are linearised
_DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf"), "l0": float("inf")}


def ranked_targets(search: Search, ranking: Ranking, count: int) -> Int64[Tensor, "n t"]:
    """Wrong classes of each example in the order in which to go for them, at most `count` and K - 1.

    Args:
        search: after its clean pass.
        ranking: "confidence" or "malt".
        count: how many are wanted.
    """
    y = search.goal.y
    count = min(count, search.clean.shape[1] - 1)
    lowest = torch.finfo(search.clean.dtype).min
    by_logit = search.clean.scatter(1, y[:, None], lowest).argsort(dim=1, descending=True, stable=True)[:, :-1]
    if ranking == "confidence":
        return by_logit[:, :count]
    ranked = by_logit.clone()
    rows = search.standing
    if len(rows):
        candidates = by_logit[rows, : max(CANDIDATES, count)]
        order = linearised_distances(search, rows, candidates).argsort(dim=1, stable=True)
        ranked[rows, : candidates.shape[1]] = candidates.gather(1, order)
    return ranked[:, :count]


def linearised_distances(
    search: Search, rows: Int64[Tensor, " m"], classes: Int64[Tensor, "m c"]
) -> Float[Tensor, "m c"]:
    """How far each class would be if the model were linear: (z_y - z_j) / ||grad (z_y - z_j)||_q.

    q is dual to the threat's norm. The score of MALT (Melamed, Yehudai and Shamir, NeurIPS 2024), with the norm
    that makes it exact for a linear model. Costs one forward and C + 1 backward passes. Infinite where the
    gradient is zero.

    Args:
        search: the search.
        rows: examples `(M,)`.
        classes: `(M, C)`.
    """
    y = search.goal.y[rows]
    logits, slopes = search.jacobian(search.x[rows], rows, torch.cat([y[:, None], classes], dim=1))
    gap = logits.gather(1, y[:, None]) - logits.gather(1, classes)
    difference = (slopes[:, :1] - slopes[:, 1:]).flatten(2)
    steepness = torch.linalg.vector_norm(difference, _DUAL[search.threat.norm], dim=2)
    return torch.where(steepness > 0, gap / steepness.clamp_min(torch.finfo(gap.dtype).tiny), torch.inf)
