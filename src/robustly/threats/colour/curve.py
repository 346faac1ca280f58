"""Rising piecewise-linear curves of [0, 1] onto itself, as in "Adversarial Color Enhancement" (BMVC 2020)."""

from jaxtyping import Float
from torch import Tensor

PIECES = 64
"""Pieces of a curve in the paper."""


def curved(values: Float[Tensor, "n c h w"], theta: Float[Tensor, "n c s"]) -> Float[Tensor, "n c h w"]:
    """Values after one curve per example and channel.

    F(v) = S / sum(theta) * sum_i theta_i * clip(v - i/S, 0, 1/S): piece i has the slope S * theta_i / sum(theta),
    F(0) = 0 and F(1) = 1. Equal theta are the identity up to rounding.

    Args:
        values: in [0, 1].
        theta: positive relative slopes of the S pieces.
    """
    count = theta.shape[-1]
    slopes = theta * (count / theta.sum(-1, keepdim=True))
    rises = slopes / count
    places = rises.new_tensor(range(count)) / count
    intercepts = rises.cumsum(-1) - rises - slopes * places
    flat = values.flatten(2)
    piece = (flat.detach() * count).long().clamp_(0, count - 1)
    return (intercepts.gather(2, piece) + slopes.gather(2, piece) * flat).view_as(values)
