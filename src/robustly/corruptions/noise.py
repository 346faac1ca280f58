"""Corruptions by noise: Gaussian, shot, impulse and speckle noise, drawn for every value."""

import torch
from jaxtyping import Float64
from torch import Tensor

from robustly.corruptions.constants import Constants
from robustly.randomness import KeyedGenerator

Values = Float64[Tensor, "n c h w"]
_LEVELS = 256


def gaussian_noise(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Add normal noise of a given standard deviation."""
    (deviation,) = constants
    return images + deviation * draws.normal(*images.shape[1:]).double()


def speckle_noise(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Add normal noise whose standard deviation is a given share of each value."""
    (share,) = constants
    return images + images * share * draws.normal(*images.shape[1:]).double()


def shot_noise(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Replace each value v by a Poisson number of mean v * photons, over photons."""
    (photons,) = constants
    levels = (images * (_LEVELS - 1)).round()
    table = _poisson_table(photons)
    uniform = draws.uniform(*images.shape[1:]).double()
    # one sorted row for all levels: the distribution function of level l lies in [l, l + 1]
    below = torch.searchsorted(table.flatten(), levels + uniform, right=True)
    return (below - levels.long() * table.shape[1]).double() / photons


def _poisson_table(photons: float) -> Float64[Tensor, "levels counts"]:
    """Distribution functions of Poisson numbers of mean photons * level / 255, each plus its level."""
    means = torch.arange(_LEVELS, dtype=torch.float64)[:, None] * (photons / (_LEVELS - 1))
    counts = torch.arange(int(photons + 12 * photons**0.5 + 12), dtype=torch.float64)[None]
    logs = torch.xlogy(counts, means) - means - torch.lgamma(counts + 1)
    shares = logs.exp().cumsum(1).clamp(max=1.0)
    shares[:, -1] = 1.0  # a uniform number is below 1, so every search ends in its row
    return shares + torch.arange(_LEVELS, dtype=torch.float64)[:, None]


def impulse_noise(images: Values, constants: Constants, draws: KeyedGenerator) -> Values:
    """Set a given share of the values to 0 or 1, each with probability 1/2."""
    (share,) = constants
    hit = draws.fold("hit").uniform(*images.shape[1:]) < share
    salt = draws.fold("salt").uniform(*images.shape[1:]) < 0.5
    return torch.where(hit, salt.double(), images)
