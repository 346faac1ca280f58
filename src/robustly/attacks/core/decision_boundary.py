"""Shared code of attacks on predicted classes alone: batched evaluation, starts, and bisection."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.attacks.core.contract import Images
from robustly.attacks.core.model_access import logits_of
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import LinfBall, LpBall
from robustly.threats.contract import per_example

AT_ONCE = 1024  # images per forward pass
MOST_BISECTIONS = 20  # closer points are equal in float32


def decide(search: Search, rows: Rows, points: Float[Tensor, "m b ..."]) -> Bool[Tensor, "m b"]:
    """True where the goal is reached, at B points of each example.

    The passes are counted here because `Search.evaluate` takes one point per example. The points only serve
    estimates and are not recorded.
    """
    goal, several = search.goal.select(rows.repeat_interleave(points.shape[1])), points.flatten(0, 1)
    parts = []
    with torch.no_grad():
        for place in range(0, len(several), AT_ONCE):
            logits = logits_of(search.model, several[place : place + AT_ONCE])
            goals = goal.select(torch.arange(place, place + len(logits), device=rows.device))
            parts.append(goals.reached(logits) & logits.isfinite().all(1))
    search.forwards[rows] += points.shape[1]
    return torch.cat(parts).view(points.shape[:2]) if parts else points.new_zeros(points.shape[:2]).bool()


def evaluate_decisions(search: Search, points: Images, rows: Rows) -> Bool[Tensor, " m"]:
    """True where the goal is reached, at one point of each example; the nearest such point is recorded."""
    logits = search.evaluate(points, rows)
    return search.goal.select(rows).reached(logits) & logits.isfinite().all(1)


def random_adversarials(
    search: Search, rows: Rows, draws: KeyedGenerator, tries: int
) -> tuple[Int64[Tensor, " k"], Float[Tensor, "k ..."]]:
    """Random images of the box that reach the goal.

    Uniform noise, vertical and horizontal stripes in turn: many models assign all noise to the same class.

    Args:
        search: evaluates and records the points.
        rows: examples `(M,)`.
        draws: their random numbers.
        tries: largest number of images per example.

    Returns:
        The examples for which an image was found, in their order, and the images.
    """
    low, high = search.ball.box
    start, found = search.x[rows].clone(), torch.zeros_like(rows).bool()
    for attempt in range(tries):
        left = (~found & ~search.invalid[rows]).nonzero()[:, 0]
        if len(left) == 0:
            break
        shape = list(start.shape[1:])
        if len(shape) > 1 and attempt % 3:
            shape[-(attempt % 3)] = 1
        noise = draws.select(left).fold("attempt", attempt).uniform(*shape).expand(-1, *start.shape[1:])
        points = search.ball.select(rows[left]).clamp(low + (high - low) * noise.to(start))
        reached = evaluate_decisions(search, points, rows[left])
        start[left[reached]], found[left[reached]] = points[reached], True
    return rows[found], start[found]


def bisect(search: Search, rows: Rows, points: Images, halvings: int) -> Images:
    """Approach the decision boundary between the originals and points that reach the goal.

    Under l2 along the line between them, under linf through the points clipped to smaller and smaller balls around
    the originals (Chen, Jordan and Wainwright 2020, algorithm 1).

    Args:
        search: evaluates and records the points.
        rows: examples `(M,)`.
        points: points that reach the goal.
        halvings: number of bisections, one forward pass each.

    Returns:
        Points that reach the goal.
    """
    ball = search.ball.select(rows)
    low, high = torch.zeros_like(ball.radius), torch.ones_like(ball.radius)
    if isinstance(ball, LinfBall):
        high = ball.size(points)
    nearest = points
    for _ in range(halvings):
        middle = (low + high) / 2
        between = towards(ball, points, middle)
        reached = evaluate_decisions(search, between, rows)
        nearest = torch.where(per_example(reached, nearest), between, nearest)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return nearest


def towards(ball: LpBall, points: Images, share: Float[Tensor, " m"]) -> Images:
    """Points between the originals (share 0) and others (share 1); under linf, others clipped to radius `share`."""
    wide = per_example(share, points).to(points)
    if isinstance(ball, LinfBall):
        return points.clamp(ball.x - wide, ball.x + wide)
    return ball.x + wide * (points - ball.x)
