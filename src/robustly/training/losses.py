"""Third part of a method: the outer loss, as named per-example terms.

Every term is `(N,)`, already scaled by its coefficient; instance weights may multiply single terms, and the batch
mean of their sum is what the optimiser sees. z are clean and z' adversarial logits, p and p' their softmax.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.objectives import kl
from robustly.training.step import Labels, Step

if TYPE_CHECKING:
    from robustly.training.method import Method

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


def soft_cross_entropy(
    reference: Float[Tensor, "n k"], logits: Float[Tensor, "n k"], temperature: float = 1.0
) -> Float[Tensor, " n"]:
    """-sum_k softmax(reference / T)_k log softmax(logits / T)_k, without gradient to the reference."""
    target = (reference.detach() / temperature).softmax(1)
    return -(target * (logits / temperature).log_softmax(1)).sum(1)


def log_rest(logits: Float[Tensor, "n k"], classes: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log(1 - p_class), from the other classes' logits: it stays exact where p_class rounds to 1."""
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return others.logsumexp(1) - logits.logsumexp(1)


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
        """Return the terms "clean" and "adversarial"; one without weight is left out, with its forward pass."""
        terms: Terms = {}
        if self.ratio < 1:
            terms["clean"] = (1 - self.ratio) * _clean(step)
        if self.ratio > 0:
            terms["adversarial"] = self.ratio * _adversarial(step)
        return terms


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
        """Return the terms "clean" and, if it counts, "consistency"."""
        terms: Terms = {"clean": _clean(step)}
        if self.beta > 0:
            terms["consistency"] = self.beta * kl(step.clean_logits, step.adversarial_logits)
        return terms


@dataclass(frozen=True)
class AlpLoss:
    """1/2 CE(z, y) + 1/2 CE(z', y) + pairing ||z - z'||^2: adversarial logit pairing.

    Kannan, Kurakin and Goodfellow, arXiv 1803.06373; the squared distance sums over classes and has gradients
    through both. It masks gradients: its robust accuracy falls under stronger attacks (Engstrom et al., arXiv
    1807.10272). Believe only what a worst case of several attacks says.

    Args:
        pairing: weight of the squared distance, at least 0; 0.5 in the authors' ImageNet results.
    """

    needs_inner: ClassVar[bool] = True

    pairing: float = 0.5

    def __post_init__(self) -> None:
        if not self.pairing >= 0:
            raise ValueError(f"pairing must be at least 0, got {self.pairing}")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean", "adversarial" and, if it counts, "pairing"."""
        terms = MixtureLoss()(step)
        if self.pairing > 0:
            terms["pairing"] = self.pairing * (step.clean_logits - step.adversarial_logits).square().sum(1)
        return terms


@dataclass(frozen=True)
class MartLoss:
    """BCE(z', y) + beta KL(p || p') (1 - p_y), BCE = -log p'_y - log(1 - max_{k != y} p'_k).

    Wang et al., "Improving adversarial robustness requires revisiting misclassified examples", ICLR 2020. Gradients
    go through all of it, the factor 1 - p_y included.

    Args:
        beta: weight of the second term, at least 0; 5 in the paper (6 for its WRN-34-10).
        published_constants: whether to add the constants 1e-12, 1.0001 and 1.0000001 with which the released code
            keeps its logarithms finite; without them the formula is exact, and finite, at any confidence.
    """

    needs_inner: ClassVar[bool] = True

    beta: float = 5.0
    published_constants: bool = False

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}")

    def check(self, method: "Method") -> str | None:
        """Refuse smoothed labels: BCE knows one right class."""
        if getattr(method.labels, "smoothing", 0) > 0:
            return "mart knows one right class for each example: it cannot use smoothed labels"
        return None

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" (the BCE) and, if it counts, "consistency" (the weighted KL)."""
        y = step.labels.hard
        z = step.clean_logits if self.beta > 0 else None
        z_adv = step.adversarial_logits
        rival = z_adv.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        if self.published_constants:
            missed = -(1.0001 - z_adv.softmax(1).gather(1, rival[:, None])[:, 0] + 1e-12).log()
        else:
            missed = -log_rest(z_adv, rival)
        terms = {"adversarial": F.cross_entropy(z_adv, y, reduction="none") + missed}
        if z is not None:
            terms["consistency"] = self.beta * self._doubted_divergence(z, z_adv, y)
        return terms

    def _doubted_divergence(
        self, z: Float[Tensor, "n k"], z_adv: Float[Tensor, "n k"], y: Int64[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        if not self.published_constants:
            return kl(z, z_adv) * log_rest(z, y).exp()
        p = z.softmax(1)
        divergence = (p * (z.log_softmax(1) - (z_adv.softmax(1) + 1e-12).log())).sum(1)
        return divergence * (1.0000001 - p.gather(1, y[:, None])[:, 0])
