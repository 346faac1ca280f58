"""Third part of a method: the outer loss, as named per-example terms.

Every term is `(N,)`, already scaled by its coefficient; instance weights may multiply single terms, and the batch
mean of their sum is what the optimiser sees. z are clean and z' adversarial logits, p and p' their softmax.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.objectives import kl
from robustly.training.step import Labels, Step

Terms = dict[str, Float[Tensor, " n"]]


@runtime_checkable
class OuterLoss(Protocol):
    """Third part of a method."""

    @property
    def needs_inner(self) -> bool:
        """Whether it asks for adversarial examples."""
        ...

    def __call__(self, step: Step) -> Terms:
        """The loss terms of a batch, by name."""
        ...


def label_loss(logits: Float[Tensor, "n k"], labels: Labels) -> Float[Tensor, " n"]:
    """Cross-entropy with what the label source says, smoothed where it says so."""
    return F.cross_entropy(logits, labels.hard, reduction="none", label_smoothing=labels.smoothing)


def _clean(step: Step) -> Tensor:
    return label_loss(step.clean_logits, step.labels)


def _adversarial(step: Step) -> Tensor:
    return label_loss(step.adversarial_logits, step.labels)


@dataclass(frozen=True)
class CleanLoss:
    """CE(z, y): standard training."""

    needs_inner: ClassVar[bool] = False

    def __call__(self, step: Step) -> Terms:
        """Return the term "clean"."""
        return {"clean": _clean(step)}


@dataclass(frozen=True)
class AdversarialLoss:
    """CE(z', y): adversarial training (Madry et al., ICLR 2018, eq. 2.1)."""

    needs_inner: ClassVar[bool] = True

    def __call__(self, step: Step) -> Terms:
        """Return the term "adversarial"."""
        return {"adversarial": _adversarial(step)}


@dataclass(frozen=True)
class MixtureLoss:
    """(1 - ratio) CE(z, y) + ratio CE(z', y), in two forward passes (Goodfellow et al., ICLR 2015, at 1/2).

    Args:
        ratio: share of the adversarial term, in [0, 1].
    """

    needs_inner: ClassVar[bool] = True

    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must lie in [0, 1], got {self.ratio}")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and "adversarial"."""
        clean = (1 - self.ratio) * _clean(step)
        return {"clean": clean, "adversarial": self.ratio * _adversarial(step)}


@dataclass(frozen=True)
class TradesLoss:
    """CE(z, y) + beta KL(p || p'), gradients through p as well (Zhang et al., ICML 2019, eq. 5).

    Args:
        beta: price of inconsistency, at least 0; 6 in the paper's CIFAR-10 results (1 / lambda there).
    """

    needs_inner: ClassVar[bool] = True

    beta: float = 6.0

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and "consistency"."""
        clean = _clean(step)
        return {"clean": clean, "consistency": self.beta * kl(step.clean_logits, step.adversarial_logits)}


@dataclass(frozen=True)
class DynatLoss:
    """beta CE(z', label) + consistency KL(p || p'), to which the guide adds its own CE(g(x), y).

    With dynamic labels this is eq. 6 of DYNAT (Liu et al., arXiv 2408.13102), and with `consistency` 1 its
    TRADES-extended form.

    Args:
        beta: weight of the adversarial term, at least 0; 1 in the paper's CIFAR-10 results.
        consistency: weight of the KL term, at least 0; 0 leaves its clean forward pass out.
    """

    needs_inner: ClassVar[bool] = True

    beta: float = 1.0
    consistency: float = 0.0

    def __post_init__(self) -> None:
        if not (self.beta >= 0 and self.consistency >= 0):
            raise ValueError(f"beta and consistency must be at least 0, got {self.beta} and {self.consistency}")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" and, if it counts, "consistency"."""
        terms: Terms = {}
        if self.consistency > 0:
            terms["consistency"] = self.consistency * kl(step.clean_logits, step.adversarial_logits)
        terms["adversarial"] = self.beta * _adversarial(step)
        return terms
