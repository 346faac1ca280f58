"""Linearised decision boundaries, and the shortest way to them inside the box."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.attacks.answers import answer, slope_of
from robustly.attacks.contract import Images
from robustly.attacks.search import Rows, Search
from robustly.balls import per_example
from robustly.objectives import Goal, margin

ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
_DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf"), "l0": float("inf")}


def step_to_hyperplane(
    x: Float[Tensor, "n ..."],
    slope: Float[Tensor, "n ..."],
    rise: Float[Tensor, " n"],
    norm: str,
    box: tuple[float, float],
) -> Float[Tensor, "n ..."]:
    """The smallest change d in the norm with `slope . d = rise` and `x + d` in the box.

    All coordinates move in the direction that raises `rise`'s side, by `min(t, room)` under linf and by
    `min(t |slope|, room)` under l2, where `room` is what the box leaves. What is gained is piecewise linear in t
    with a corner where a coordinate reaches the box: the corners are sorted and the root is solved on its segment.
    Under l1 the coordinates are used up in order of their slopes. These are the projections of FAB (Croce and
    Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020, eqs. 4-6).

    Args:
        x: points in the box, `(N, ...)`.
        slope: normals of the hyperplanes, `(N, ...)`.
        rise: how much the linear function has to change, of either sign, `(N,)`.
        norm: "linf", "l2" or "l1".
        box: least and largest valid value.

    Returns:
        The change; where the hyperplane is out of reach, the one to the corner of the box nearest to it. Zero
        where the slope is.
    """
    flat, normal = x.flatten(1).double(), slope.flatten(1).double()
    largest = normal.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    wanted = rise.double()[:, None] / scale
    direction = (normal * torch.where(wanted < 0, -1.0, 1.0)).sign()
    gain = normal.abs() / scale  # scaled: the squares of a confident network's slopes underflow
    room = torch.where(direction > 0, box[1] - flat, flat - box[0]).clamp_min(0.0) * (gain > 0)
    moved = _spend_in_order(gain, room, wanted.abs()) if norm == "l1" else _spend_evenly(gain, room, wanted, norm)
    return (direction * moved).to(x.dtype).view_as(x)


def _spend_in_order(
    gain: Float[Tensor, "n d"], room: Float[Tensor, "n d"], wanted: Float[Tensor, "n 1"]
) -> Float[Tensor, "n d"]:
    """The steepest coordinates go as far as the box lets them, the last one as far as is needed."""
    steepest, order = gain.sort(dim=1, descending=True)
    most = room.gather(1, order)
    gained = steepest * most
    left = (wanted - (gained.cumsum(1) - gained)).clamp_min(0.0)
    spent = torch.minimum(left / torch.where(steepest > 0, steepest, torch.inf), most)
    return torch.zeros_like(gain).scatter(1, order, spent)


def _spend_evenly(
    gain: Float[Tensor, "n d"], room: Float[Tensor, "n d"], wanted: Float[Tensor, "n 1"], norm: str
) -> Float[Tensor, "n d"]:
    """Every coordinate goes `t` (linf) or `t * gain` (l2), or to the box."""
    moving = gain > 0
    pace = moving.double() if norm == "linf" else gain
    corner, order = torch.where(moving, room / torch.where(moving, pace, 1.0), 0.0).sort(dim=1)
    rate = (pace * gain).gather(1, order)
    at_box = (rate * corner).cumsum(1)
    remaining = rate.flip(1).cumsum(1).flip(1)
    gained = at_box + corner * (remaining - rate)  # at each corner
    place = (gained < wanted.abs()).sum(1, keepdim=True).clamp_max(gain.shape[1] - 1)
    before = (at_box - rate * corner).gather(1, place)
    still = remaining.gather(1, place)
    t = (wanted.abs() - before) / torch.where(still > 0, still, 1.0)
    return torch.minimum(t.clamp_min(0.0) * pace, room)


def steepness(slope: Images, norm: str) -> Float[Tensor, " n"]:
    """The norm of gradients that is dual to a threat's: how much a change of length 1 can gain at most."""
    largest = slope.flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest, 1.0)
    length: Tensor = torch.linalg.vector_norm((slope / per_example(scale, slope)).flatten(1), _DUAL[norm], dim=1)
    return length * scale


def unit(slope: Images) -> Images:
    """Gradients at Euclidean length 1, however small they are; zero where they are zero."""
    largest = slope.flatten(1).abs().amax(1)
    scaled = slope / per_example(torch.where(largest > 0, largest, 1.0), slope)
    length = torch.linalg.vector_norm(scaled.flatten(1), dim=1)
    return scaled / per_example(torch.where(largest > 0, length, 1.0), slope)


def lead_of_target(logits: Float[Tensor, "n k"], goal: Goal) -> Float[Tensor, " n"]:
    """How far the target is ahead of every other class: positive exactly where a targeted attack succeeded.

    Raises:
        ValueError: the goal has no target.
    """
    if goal.target is None:
        raise ValueError("only a goal with a target has a lead: give Goal(y, target=classes)")
    return -margin(logits, Goal(goal.target))


def nearest_boundary(
    search: Search, points: Images, rows: Rows, classes: Int64[Tensor, "m c"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m ..."]]:
    """The boundary of z_j - z_y = 0 that is nearest in the linearised model.

    One forward and C backward passes; only the nearest gradient of each point is held in memory, however many
    classes there are.

    Args:
        search: counts the passes and judges the points.
        points: `(M, ...)`, in the box.
        rows: which examples they belong to.
        classes: wrong classes `(M, C)`.

    Returns:
        z_j - z_y of the class of smallest |z_j - z_y| / ||grad (z_j - z_y)||_q, q dual to the threat's norm, and
        its gradient, zero where all are.
    """
    here = points.detach().requires_grad_()
    logits = answer(search.model, here)
    ahead = logits.gather(1, classes) - logits.gather(1, search.goal.y[rows][:, None])
    gap, slope = points.new_zeros(len(points)), torch.zeros_like(points)
    nearest = torch.full_like(gap, torch.inf)
    for column in range(classes.shape[1]):
        normal = slope_of(ahead[:, column].sum(), here, keep_graph=column + 1 < classes.shape[1])
        value, gain = ahead[:, column].detach().to(gap), steepness(normal, search.threat.norm)
        distance = torch.where(gain > 0, value.abs() / gain, torch.inf)
        closer = distance < nearest
        nearest, gap = torch.where(closer, distance, nearest), torch.where(closer, value, gap)
        slope = torch.where(per_example(closer, slope), normal, slope)
    search.forwards[rows] += 1
    search.backwards[rows] += classes.shape[1]
    search.zero_gradients[rows] += nearest == torch.inf
    search.correct_iterates[rows] += ~search.goal.select(rows).reached(logits)
    search.judge(points, rows, logits.detach(), None, exact=True)
    return gap, slope
