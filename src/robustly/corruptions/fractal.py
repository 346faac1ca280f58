"""Random clouds: height maps of the diamond-square algorithm."""

import torch
from jaxtyping import Float64
from torch import Tensor

from robustly.randomness import KeyedGenerator

_ROUGHNESS = 100.0


def clouds(height: int, width: int, decay: float, draws: KeyedGenerator) -> Float64[Tensor, "n h w"]:
    """Height maps in [0, 1], one for each example (diamond-square algorithm on a periodic grid).

    The grid has the smallest power of two that holds both sides, 32 for images of 32 pixels; its upper left part is
    returned. The amplitude is squared, as in the code of Hendrycks and Dietterich (ICLR 2019).

    Args:
        height: rows.
        width: columns.
        decay: divisor of the amplitude after each halving of the step; larger gives smoother clouds.
        draws: random numbers.
    """
    side = 1 << (max(height, width) - 1).bit_length()
    heights = torch.zeros(len(draws.ids), side, side, dtype=torch.float64)
    step, amplitude = side, _ROUGHNESS
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = _moved(rows + rows.roll(-1, 2), amplitude, draws.fold("middle", step))
        middles = heights[:, half::step, half::step]
        upper = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = _moved(upper, amplitude, draws.fold("upper", step))
        left = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        heights[:, half::step, ::step] = _moved(left, amplitude, draws.fold("left", step))
        step, amplitude = half, amplitude / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return (heights / heights.amax((1, 2), keepdim=True))[:, :height, :width]


def _moved(total: Tensor, amplitude: float, draws: KeyedGenerator) -> Tensor:
    """The mean of four neighbours plus a random number."""
    shares = draws.uniform(*total.shape[1:]).double() * 2 - 1
    return total / 4 + amplitude * amplitude * shares
