"""Rising piecewise-linear curves of [0, 1] onto itself, as in "Adversarial Color Enhancement" (BMVC 2020)."""

from jaxtyping import Float, Int64
from torch import Tensor

PIECES = 64
"""Pieces of a curve in the paper."""


def piece_of(values: Float[Tensor, "n c h w"], count: int = PIECES) -> Int64[Tensor, "n c p"]:
    """Piece of a curve in which each value in [0, 1] lies, from 0, with the places of an image in one dimension."""
    return (values.detach().flatten(2) * count).long().clamp_(0, count - 1)


def curved(
    values: Float[Tensor, "n c h w"], theta: Float[Tensor, "n c s"], piece: Int64[Tensor, "n c p"] | None = None
) -> Float[Tensor, "n c h w"]:
    """Values after one curve per example and channel.

    F(v) = S / sum(theta) * sum_i theta_i * clip(v - i/S, 0, 1/S): piece i has the slope S * theta_i / sum(theta),
    F(0) = 0 and F(1) = 1. Equal theta are the identity up to rounding.

    Args:
        values: in [0, 1].
        theta: positive relative slopes of the S pieces.
        piece: the result of `piece_of`, for values whose pieces are known already.
    """
    count = theta.shape[-1]
    slopes = theta * (count / theta.sum(-1, keepdim=True))
    rises = slopes / count
    places = rises.new_tensor(range(count)) / count
    intercepts = rises.cumsum(-1) - rises - slopes * places
    flat = values.flatten(2)
    piece = piece_of(values, count) if piece is None else piece
    return (intercepts.gather(2, piece) + slopes.gather(2, piece) * flat).view_as(values)
