"""Outer losses that penalise different outputs on clean and adversarial images: TRADES and logit pairing.

z are clean and z' adversarial logits, p and p' their softmax.
"""

from dataclasses import dataclass

from robustly.objectives import kl
from robustly.training.losses.cross_entropy import MixtureLoss
from robustly.training.losses.terms import check_at_least_zero, label_loss
from robustly.training.parts import Part, Terms
from robustly.training.step import Step


@dataclass(frozen=True)
class TradesLoss(Part):
    """CE(z, y) + beta KL(p || p'), gradients through p as well (Zhang et al., ICML 2019, eq. 5).

    Args:
        beta: weight of the KL term, at least 0; 6 in the paper's CIFAR-10 results (1 / lambda there).
    """

    needs_inner = True

    beta: float = 6.0

    def __post_init__(self) -> None:
        check_at_least_zero(beta=self.beta)

    @property
    def reads(self) -> tuple[str, ...]:
        """Clean logits, and adversarial logits if the second term has weight."""
        return ("clean", "adversarial") if self.beta > 0 else ("clean",)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and, if it has weight, "consistency"."""
        terms: Terms = {"clean": label_loss(step.clean_logits, step.labels)}
        if self.beta > 0:
            terms["consistency"] = self.beta * kl(step.clean_logits, step.adversarial_logits)
        return terms


@dataclass(frozen=True)
class AlpLoss(Part):
    """1/2 CE(z, y) + 1/2 CE(z', y) + pairing ||z - z'||^2: adversarial logit pairing.

    Kannan, Kurakin and Goodfellow, arXiv 1803.06373. The squared distance sums over classes and has gradients
    through both. It masks gradients: its robust accuracy falls under stronger attacks (Engstrom et al., arXiv
    1807.10272). Report the worst case of several attacks.

    Args:
        pairing: weight of the squared distance, at least 0; 0.5 in the authors' ImageNet results.
    """

    reads = ("clean", "adversarial")

    pairing: float = 0.5

    def __post_init__(self) -> None:
        check_at_least_zero(pairing=self.pairing)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean", "adversarial" and, if it has weight, "pairing"."""
        terms = MixtureLoss()(step)
        if self.pairing > 0:
            terms["pairing"] = self.pairing * (step.clean_logits - step.adversarial_logits).square().sum(1)
        return terms
