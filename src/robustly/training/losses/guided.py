"""Outer losses of methods that train a guide network g beside the model: DYNAT and LBGAT.

z are clean and z' adversarial logits of the model, p and p' their softmax.
"""

from dataclasses import dataclass

from robustly.objectives import kl
from robustly.training.labels.guide import GuideLabels
from robustly.training.losses.terms import check_at_least_zero, label_loss
from robustly.training.parts import Composition, Part, Terms
from robustly.training.step import Step


@dataclass(frozen=True)
class DynatLoss(Part):
    """beta CE(z', label) + consistency KL(p || p'); the label source adds CE(g(x), y) for the guide.

    With dynamic labels this is eq. 6 of DYNAT (Liu et al., arXiv 2408.13102), and with `consistency` 1 its
    TRADES-extended form.

    Args:
        beta: weight of the adversarial term, at least 0; 1 in the paper's CIFAR-10 results.
        consistency: weight of the KL term, at least 0; 0 leaves its clean forward pass out.
    """

    beta: float = 1.0
    consistency: float = 0.0

    def __post_init__(self) -> None:
        if not (self.beta >= 0 and self.consistency >= 0):
            raise ValueError(f"beta and consistency must be at least 0, got {self.beta} and {self.consistency}")
        if self.beta == self.consistency == 0:
            raise ValueError("beta and consistency must not both be 0: the model would not be trained")

    @property
    def reads(self) -> tuple[str, ...]:
        """Adversarial logits, and clean ones if the consistency has weight."""
        return ("clean", "adversarial") if self.consistency > 0 else ("adversarial",)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" and "consistency", without one of weight 0."""
        terms: Terms = {}
        if self.consistency > 0:
            terms["consistency"] = self.consistency * kl(step.clean_logits, step.adversarial_logits)
        if self.beta > 0:
            terms["adversarial"] = self.beta * label_loss(step.adversarial_logits, step.labels)
        return terms


@dataclass(frozen=True)
class LbgatLoss(Part):
    """CE(g(x), y) + MSE(z', g(x)) + beta KL(p || p'): learnable boundary guided adversarial training.

    Cui et al., "Learnable boundary guided adversarial training", ICCV 2021. The squared error is the mean
    over classes, and it pulls the guide towards the model too, as in the released code.

    Args:
        beta: weight of the KL term, at least 0: 0 (the paper's "LBGAT0", which leaves its clean forward pass out)
            or 6 ("LBGAT6").
        detach_guide: whether the guide is trained by its cross-entropy only.
    """

    beta: float = 0.0
    detach_guide: bool = False

    def __post_init__(self) -> None:
        check_at_least_zero(beta=self.beta)

    @property
    def reads(self) -> tuple[str, ...]:
        """Logits of the guide, adversarial ones, and clean ones if the KL term has weight."""
        return ("guide", "clean", "adversarial") if self.beta > 0 else ("guide", "adversarial")

    def check(self, method: Composition) -> str | None:
        """Refuse dynamic labels, because LBGAT trains its guide on the labels of the data."""
        if isinstance(method.labels, GuideLabels):
            return "lbgat trains its guide itself, on the labels of the data: remove 'labels'"
        return None

    def __call__(self, step: Step) -> Terms:
        """Return the terms "guide", "mse" and, if it has weight, "consistency"."""
        guide = step.guide_logits
        terms: Terms = {"guide": label_loss(guide, step.labels)}
        if self.beta > 0:
            terms["consistency"] = self.beta * kl(step.clean_logits, step.adversarial_logits)
        boundary = guide.detach() if self.detach_guide else guide
        terms["mse"] = (step.adversarial_logits - boundary).square().mean(1)
        return terms
