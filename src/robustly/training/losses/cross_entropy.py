"""Outer losses made of cross-entropies: standard and adversarial training, and their mixture.

z are clean and z' adversarial logits.
"""

from dataclasses import dataclass

from robustly.training.losses.terms import label_loss
from robustly.training.parts import Part, Terms
from robustly.training.step import Step


@dataclass(frozen=True)
class CleanLoss(Part):
    """CE(z, y): standard training."""

    reads = ("clean",)

    def __call__(self, step: Step) -> Terms:
        """Return the term "clean"."""
        return {"clean": label_loss(step.clean_logits, step.labels)}


@dataclass(frozen=True)
class AdversarialLoss(Part):
    """CE(z', y): adversarial training (Madry et al., ICLR 2018, eq. 2.1)."""

    reads = ("adversarial",)

    def __call__(self, step: Step) -> Terms:
        """Return the term "adversarial"."""
        return {"adversarial": label_loss(step.adversarial_logits, step.labels)}


@dataclass(frozen=True)
class MixtureLoss(Part):
    """(1 - ratio) CE(z, y) + ratio CE(z', y), in two forward passes (Goodfellow et al., ICLR 2015, at 1/2).

    Args:
        ratio: share of the adversarial term, in [0, 1].
    """

    needs_inner = True

    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must lie in [0, 1], got {self.ratio}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Logits of the terms that have weight."""
        return (("clean",) if self.ratio < 1 else ()) + (("adversarial",) if self.ratio > 0 else ())

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and "adversarial"; one without weight is left out, with its forward pass."""
        terms: Terms = {}
        if self.ratio < 1:
            terms["clean"] = (1 - self.ratio) * label_loss(step.clean_logits, step.labels)
        if self.ratio > 0:
            terms["adversarial"] = self.ratio * label_loss(step.adversarial_logits, step.labels)
        return terms
