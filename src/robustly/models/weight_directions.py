"""Filter-normalised random directions of weights (Li et al., NeurIPS 2018)."""

import torch
from torch import Tensor

from robustly.randomness import KeyedGenerator, derive_seed


def filter_normalised(name: str, value: Tensor, seed: int, first: int = 0) -> Tensor | None:
    """Random direction for a weight of a convolution or a linear layer, each filter scaled to the model's own.

    Random numbers are keyed by the filter, so that a share of the filters has its share of the direction.

    Args:
        name: name of the parameter.
        value: its values, or some of their rows.
        seed: the seed.
        first: number of the first row.

    Returns:
        A tensor like `value`; None for biases, and the scales and shifts of normalisations.
    """
    if value.ndim < 2 or not value.is_floating_point():
        return None
    filters = torch.arange(first, first + len(value), device=value.device)
    draw = KeyedGenerator(derive_seed(seed, name), filters).normal(*value.shape[1:]).to(value)
    rows = (-1,) + (1,) * (value.ndim - 1)
    lengths = value.flatten(1).norm(dim=1) / draw.flatten(1).norm(dim=1)
    found: Tensor = draw * lengths.view(rows)
    return found
