"""MART: adversarial training that emphasises examples of low clean confidence."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.objectives import kl
from robustly.training.losses.terms import check_at_least_zero, log_rest
from robustly.training.parts import Composition, Part, Terms
from robustly.training.step import Step


@dataclass(frozen=True)
class MartLoss(Part):
    """BCE(z', y) + beta KL(p || p') (1 - p_y), BCE = -log p'_y - log(1 - max_{k != y} p'_k).

    Wang et al., "Improving adversarial robustness requires revisiting misclassified examples", ICLR 2020. z are
    clean and z' adversarial logits, p and p' their softmax. Gradients go through all of it, the factor 1 - p_y
    included.

    Args:
        beta: weight of the second term, at least 0; 5 in the paper (6 for its WRN-34-10).
        published_constants: whether to add the constants 1e-12, 1.0001 and 1.0000001 with which the released code
            keeps its logarithms finite; without them the formula is exact, and finite, at any confidence.
    """

    beta: float = 5.0
    published_constants: bool = False

    def __post_init__(self) -> None:
        check_at_least_zero(beta=self.beta)

    @property
    def reads(self) -> tuple[str, ...]:
        """Adversarial logits, and clean ones if the second term has weight."""
        return ("clean", "adversarial") if self.beta > 0 else ("adversarial",)

    def check(self, method: Composition) -> str | None:
        """Refuse smoothed labels, because the BCE has a single true class."""
        if method.labels.smoothing > 0:
            return "mart needs a single true class for each example: it cannot use smoothed labels"
        return None

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" (the BCE) and, if it has weight, "consistency" (the weighted KL)."""
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
            terms["consistency"] = self.beta * self._weighted_divergence(z, z_adv, y)
        return terms

    def _weighted_divergence(
        self, z: Float[Tensor, "n k"], z_adv: Float[Tensor, "n k"], y: Int64[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """KL(p || p') (1 - p_y)."""
        if not self.published_constants:
            return kl(z, z_adv) * log_rest(z, y).exp()
        p = z.softmax(1)
        divergence = (p * (z.log_softmax(1) - (z_adv.softmax(1) + 1e-12).log())).sum(1)
        return divergence * (1.0000001 - p.gather(1, y[:, None])[:, 0])
