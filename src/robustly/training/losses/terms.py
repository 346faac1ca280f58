"""Building blocks of outer losses: cross-entropies, divergences, and checks."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.objectives import kl
from robustly.training.labels.data import SmoothedLabels
from robustly.training.parts import Composition
from robustly.training.step import Labels, Logits


def label_loss(logits: Float[Tensor, "n k"], labels: Labels) -> Float[Tensor, " n"]:
    """Cross-entropy with the labels of a batch and their smoothing."""
    return F.cross_entropy(logits, labels.hard, reduction="none", label_smoothing=labels.smoothing)


def soft_cross_entropy(
    reference: Float[Tensor, "n k"], logits: Float[Tensor, "n k"], temperature: float = 1.0
) -> Float[Tensor, " n"]:
    """-sum_k softmax(reference / T)_k log softmax(logits / T)_k, without gradient to the reference."""
    target = (reference.detach() / temperature).softmax(1)
    return -(target * (logits / temperature).log_softmax(1)).sum(1)


def tempered_kl(
    reference: Logits, logits: Logits, temperature: float = 1.0, element_mean: bool = False
) -> Float[Tensor, " n"]:
    """T^2 KL(softmax(reference / T) || softmax(logits / T)); T^2 keeps the size of its gradient.

    Args:
        reference: logits to reach.
        logits: logits of the trained network.
        temperature: T, positive; softens both.
        element_mean: divide by the number of classes, as the default reduction of `torch.nn.KLDivLoss` does.
    """
    divergence = temperature**2 * kl(reference / temperature, logits / temperature)
    return divergence / logits.shape[1] if element_mean else divergence


def log_rest(logits: Float[Tensor, "n k"], classes: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log(1 - p_class), from the other classes' logits: it stays exact where p_class rounds to 1."""
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return others.logsumexp(1) - logits.logsumexp(1)


def check_at_least_zero(**values: float) -> None:
    """Refuse negative numbers and NaN.

    Args:
        values: numbers by the names of their settings.

    Raises:
        ValueError: one is negative or NaN.
    """
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def check_positive(**values: float) -> None:
    """Refuse numbers that are not positive.

    Args:
        values: numbers by the names of their settings.

    Raises:
        ValueError: one is zero, negative or NaN.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_share(name: str, value: float) -> None:
    """Refuse a share outside [0, 1].

    Raises:
        ValueError: it lies outside.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def useless_smoothing(remedy: str, method: Composition) -> str | None:
    """Error message if a method smooths labels that its loss gives no weight, else None.

    Args:
        remedy: setting that gives the labels weight.
        method: the parts.
    """
    labels = method.labels
    if not isinstance(labels, SmoothedLabels) and labels.smoothing == 0:
        return None
    return f"the loss uses its teachers only, so that smoothed labels have no effect: set {remedy}"
