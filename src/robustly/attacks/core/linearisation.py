"""Linearised decision boundaries, and the smallest step to them inside the box."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.attacks.core.contract import AttackError, Images
from robustly.attacks.core.model_access import input_gradient, logits_of
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import ClassificationGoal, margin
from robustly.threats.balls import Limit, LpBall
from robustly.threats.contract import per_example

ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
_DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf"), "l0": float("inf")}


def step_to_hyperplane(
    x: Float[Tensor, "n ..."],
    gradient: Float[Tensor, "n ..."],
    rise: Float[Tensor, " n"],
    norm: str,
    low: Limit,
    high: Limit,
) -> Float[Tensor, "n ..."]:
    """Smallest change d in the norm with `gradient . d = rise` and `x + d` in the box.

    Every coordinate moves in the direction of `rise`, by `min(t, room)` under linf and by `min(t |gradient|, room)`
    under l2, where `room` is its distance to the box. The gain is piecewise linear in t with a corner where a
    coordinate reaches the box: the corners are sorted and the root is solved on its segment. Under l1 the
    coordinates are used up in order of their gradients. These are the projections of FAB (Croce and Hein,
    "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020, eqs. 4-6).

    Args:
        x: points in the box, `(N, ...)`.
        gradient: normals of the hyperplanes, `(N, ...)`.
        rise: required change of the linear function, of either sign, `(N,)`.
        norm: "linf", "l2" or "l1".
        low: least valid values: a number, or `(N, ...)`.
        high: largest valid values.

    Returns:
        The change; where the hyperplane is out of reach, the change to the corner of the box nearest to it. Zero
        where the gradient is zero.
    """
    flat, normal = x.flatten(1).double(), gradient.flatten(1).double()
    largest = normal.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    needed = rise.double()[:, None] / scale
    direction = (normal * torch.where(needed < 0, -1.0, 1.0)).sign()
    gain = normal.abs() / scale  # scaled: the squares of a confident network's gradients underflow
    room = torch.where(direction > 0, _flat(high) - flat, flat - _flat(low)).clamp_min(0.0) * (gain > 0)
    moved = _spend_in_order(gain, room, needed.abs()) if norm == "l1" else _spend_evenly(gain, room, needed, norm)
    return (direction * moved).to(x.dtype).view_as(x)


def _flat(limit: Limit) -> float | Float[Tensor, "n d"]:
    return limit if isinstance(limit, float) else limit.flatten(1).double()


def _spend_in_order(
    gain: Float[Tensor, "n d"], room: Float[Tensor, "n d"], needed: Float[Tensor, "n 1"]
) -> Float[Tensor, "n d"]:
    """Move the steepest coordinates to the box, and the last one as far as needed."""
    steepest, order = gain.sort(dim=1, descending=True)
    most = room.gather(1, order)
    gained = steepest * most
    left = (needed - (gained.cumsum(1) - gained)).clamp_min(0.0)
    spent = torch.minimum(left / torch.where(steepest > 0, steepest, torch.inf), most)
    return torch.zeros_like(gain).scatter(1, order, spent)


def _spend_evenly(
    gain: Float[Tensor, "n d"], room: Float[Tensor, "n d"], needed: Float[Tensor, "n 1"], norm: str
) -> Float[Tensor, "n d"]:
    """Move every coordinate by `t` (linf) or `t * gain` (l2), or to the box."""
    moving = gain > 0
    pace = moving.double() if norm == "linf" else gain
    corner, order = torch.where(moving, room / torch.where(moving, pace, 1.0), 0.0).sort(dim=1)
    rate = (pace * gain).gather(1, order)
    at_box = (rate * corner).cumsum(1)
    remaining = rate.flip(1).cumsum(1).flip(1)
    gained = at_box + corner * (remaining - rate)  # at each corner
    place = (gained < needed.abs()).sum(1, keepdim=True).clamp_max(gain.shape[1] - 1)
    before = (at_box - rate * corner).gather(1, place)
    still = remaining.gather(1, place)
    t = (needed.abs() - before) / torch.where(still > 0, still, 1.0)
    return torch.minimum(t.clamp_min(0.0) * pace, room)


def steepness(gradient: Images, norm: str) -> Float[Tensor, " n"]:
    """Dual norm of gradients: the largest gain of a linear function under a perturbation of length 1."""
    largest = gradient.flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest, 1.0)
    length: Tensor = torch.linalg.vector_norm(
        (gradient / per_example(scale, gradient)).flatten(1), _DUAL[norm], dim=1
    )
    return length * scale


def unit(gradient: Images) -> Images:
    """Gradients at Euclidean length 1, also very small ones; zero where they are zero."""
    largest = gradient.flatten(1).abs().amax(1)
    scaled = gradient / per_example(torch.where(largest > 0, largest, 1.0), gradient)
    length = torch.linalg.vector_norm(scaled.flatten(1), dim=1)
    return scaled / per_example(torch.where(largest > 0, length, 1.0), gradient)


def lead_of_target(logits: Float[Tensor, "n k"], goal: ClassificationGoal) -> Float[Tensor, " n"]:
    """Lead of the target over every other class: positive exactly where a targeted attack succeeded.

    Raises:
        ValueError: the goal has no target.
    """
    if goal.target is None:
        raise ValueError("only a goal with a target has a lead: give ClassificationGoal(y, target=classes)")
    return -margin(logits, ClassificationGoal(goal.target))


def nearest_boundary(
    search: Search, points: Images, rows: Rows, classes: Int64[Tensor, "m c"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m ..."]]:
    """The boundary z_j - z_y = 0 that is nearest in the linearised model.

    Costs one forward and C backward passes. Only the nearest gradient of each point is held in memory, so that
    memory does not grow with the number of classes.

    Args:
        search: records the points.
        points: `(M, ...)`, in the box.
        rows: their examples.
        classes: wrong classes `(M, C)`.

    Returns:
        z_j - z_y of the class of smallest |z_j - z_y| / ||grad (z_j - z_y)||_q, q dual to the threat's norm, and
        its gradient, zero where all are.
    """
    here = points.detach().requires_grad_()
    logits = logits_of(search.model, here)
    ahead = logits.gather(1, classes) - logits.gather(1, search.labels.y[rows][:, None])
    gap, gradient = points.new_zeros(len(points)), torch.zeros_like(points)
    nearest = torch.full_like(gap, torch.inf)
    for column in range(classes.shape[1]):
        normal = input_gradient(ahead[:, column].sum(), here, keep_graph=column + 1 < classes.shape[1])
        normal = search.along_free(normal)
        value, gain = ahead[:, column].detach().to(gap), steepness(normal, search.ball.norm)
        distance = torch.where(gain > 0, value.abs() / gain, torch.inf)
        closer = distance < nearest
        nearest, gap = torch.where(closer, distance, nearest), torch.where(closer, value, gap)
        gradient = torch.where(per_example(closer, gradient), normal, gradient)
    search.forwards[rows] += 1
    search.backwards[rows] += classes.shape[1]
    search.zero_gradients[rows] += nearest == torch.inf
    search.correct_iterates[rows] += ~search.goal.select(rows).reached(logits)
    search.record(points, rows, logits.detach(), None, exact=True)
    return gap, gradient


Ranking = Literal["confidence", "malt"]
CANDIDATES = 20  # largest number of classes that are linearised: those of the largest logits


def ranked_targets(search: Search, ranking: Ranking, count: int) -> Int64[Tensor, "n t"]:
    """Wrong classes of each example in the order of attack, at most `count` and K - 1.

    Args:
        search: after its clean pass.
        ranking: "confidence" or "malt".
        count: largest number of classes.
    """
    y = search.labels.y
    count = min(count, search.clean.shape[1] - 1)
    lowest = torch.finfo(search.clean.dtype).min
    by_logit = search.clean.scatter(1, y[:, None], lowest).argsort(dim=1, descending=True, stable=True)[:, :-1]
    if ranking == "confidence":
        return by_logit[:, :count]
    if not isinstance(search.threat_set, LpBall):
        raise AttackError(f"the ranking 'malt' is defined for Lp balls, the threat is {search.threat}")
    ranked = by_logit.clone()
    rows = search.unbroken
    if len(rows):
        candidates = by_logit[rows, : max(CANDIDATES, count)]
        order = linearised_distances(search, rows, candidates).argsort(dim=1, stable=True)
        ranked[rows, : candidates.shape[1]] = candidates.gather(1, order)
    return ranked[:, :count]


def linearised_distances(
    search: Search, rows: Int64[Tensor, " m"], classes: Int64[Tensor, "m c"]
) -> Float[Tensor, "m c"]:
    """Distances of the classes in the linearised model: (z_y - z_j) / ||grad (z_y - z_j)||_q.

    q is dual to the threat's norm. This is the score of MALT (Melamed, Yehudai and Shamir, NeurIPS 2024), with the
    norm for which it is exact on a linear model. Costs one forward and C + 1 backward passes. Infinite where the
    gradient is zero.

    Args:
        search: the search.
        rows: examples `(M,)`.
        classes: `(M, C)`.
    """
    y = search.labels.y[rows]
    logits, gradients = search.jacobian(search.x[rows], rows, torch.cat([y[:, None], classes], dim=1))
    gap = logits.gather(1, y[:, None]) - logits.gather(1, classes)
    difference = (gradients[:, :1] - gradients[:, 1:]).flatten(2)
    steepness = torch.linalg.vector_norm(difference, _DUAL[search.ball.norm], dim=2)
    return torch.where(steepness > 0, gap / steepness.clamp_min(torch.finfo(gap.dtype).tiny), torch.inf)
