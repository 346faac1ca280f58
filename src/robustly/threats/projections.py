"""Exact Euclidean projections of a perturbation onto a norm ball and the box of valid images.

All work on flat perturbations `delta (N, D)` and the box relative to the image, `lower <= delta <= upper`,
`lower <= 0 <= upper`. Projecting on the ball and clipping afterwards is feasible but not the projection
(Croce and Hein, "Mind the box", ICML 2021): the result uses only a part of epsilon.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_NEWTON_STEPS = 60  # each fixes at least one more coordinate; five are usual


def _steps_between_reads(device: torch.device) -> int:
    """Newton steps between two checks of convergence, each of which waits for a device other than the CPU."""
    return 1 if device.type == "cpu" else 6


def project_l2(
    delta: Float[Tensor, "n d"],
    lower: Float[Tensor, "n d"],
    upper: Float[Tensor, "n d"],
    epsilon: Float[Tensor, "n 1"],
) -> Float[Tensor, "n d"]:
    """Nearest point with l2 norm at most epsilon inside the box.

    The optimality conditions give `clip(s * delta, lower, upper)` with the largest s <= 1 whose norm is at most
    epsilon. With the clipped coordinates known, s has a closed form; their set only grows from step to step.
    """
    clipped = delta.clamp(lower, upper)
    inside = clipped.norm(dim=1, keepdim=True) <= epsilon
    every = _steps_between_reads(delta.device)
    if every == 1 and bool(inside.all()):
        return clipped
    square = delta.square()
    scale = torch.where(inside, 1.0, epsilon / delta.norm(dim=1, keepdim=True).clamp_min(1e-30))
    for step in range(1, _NEWTON_STEPS + 1):
        point = (scale * delta).clamp(lower, upper)
        free = point == scale * delta
        spent = point.square().masked_fill(free, 0.0).sum(1, keepdim=True)
        moving = (square * free).sum(1, keepdim=True)
        scale_needed = ((epsilon.square() - spent).clamp_min(0.0) / moving.clamp_min(1e-30)).sqrt()
        improved = torch.where(inside | (moving == 0), scale, torch.maximum(scale, scale_needed.clamp_max(1.0)))
        if step % every == 0 and torch.equal(improved, scale):
            break
        scale = improved
    point = (scale * delta).clamp(lower, upper)
    return point * torch.clamp(epsilon / point.norm(dim=1, keepdim=True).clamp_min(1e-30), max=1.0)


def project_l1(
    delta: Float[Tensor, "n d"],
    lower: Float[Tensor, "n d"],
    upper: Float[Tensor, "n d"],
    epsilon: Float[Tensor, "n 1"],
) -> Float[Tensor, "n d"]:
    """Nearest point with l1 norm at most epsilon inside the box.

    The optimality conditions give `sign(delta) * min(max(|delta| - t, 0), cap)`, whose l1 norm is piecewise linear
    and decreasing in t, with a corner where a coordinate leaves its cap (|delta| - cap) and where it reaches zero
    (|delta|). The corners are sorted and the root is solved on its segment (Croce and Hein 2021, section 3).
    """
    size = delta.abs()
    cap = torch.where(delta > 0, upper, -lower)
    full = torch.minimum(size, cap).sum(1, keepdim=True, dtype=torch.float64)
    if bool((full <= epsilon).all()):
        return delta.clamp(lower, upper)
    exact = size.double()
    corners = torch.cat([(exact - cap).clamp_min(0.0), exact], dim=1)
    bend = torch.cat([-torch.ones_like(exact), torch.ones_like(exact)], dim=1)
    corners, order = corners.sort(dim=1)
    slope = bend.gather(1, order).cumsum(1)
    gaps = corners.diff(dim=1)
    norms = torch.cat([full, full + (slope[:, :-1] * gaps).cumsum(1)], dim=1)
    segment = ((norms > epsilon).sum(1, keepdim=True) - 1).clamp_min(0)
    excess = norms.gather(1, segment) - epsilon
    threshold = corners.gather(1, segment) + excess / (-slope.gather(1, segment)).clamp_min(1.0)
    threshold = torch.where(full <= epsilon, torch.zeros_like(threshold), threshold.clamp_min(0.0))
    shrunk = (exact - threshold).clamp_min(0.0).to(delta.dtype) * (epsilon > 0)
    return delta.sign() * torch.minimum(shrunk, cap)


def project_l0(
    delta: Float[Tensor, "n c p"],
    lower: Float[Tensor, "n c p"],
    upper: Float[Tensor, "n c p"],
    epsilon: Float[Tensor, "n 1"],
) -> Float[Tensor, "n c p"]:
    """Nearest point inside the box that changes at most epsilon pixels (a pixel counts once, all channels).

    Keeps the pixels with the largest gain |delta|^2 - |delta - clip(delta)|^2 (Croce and Hein, "Sparse and
    imperceivable adversarial attacks", ICCV 2019).
    """
    clipped = delta.clamp(lower, upper)
    gain = (delta.square() - (delta - clipped).square()).sum(1)
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return clipped * (rank < epsilon).unsqueeze(1)
