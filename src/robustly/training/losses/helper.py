"""Outer loss of helper-based adversarial training: a third example beyond each adversarial one."""

from dataclasses import dataclass

import torch.nn.functional as F

from robustly.objectives import kl
from robustly.training.losses.terms import check_at_least_zero, check_positive, label_loss
from robustly.training.parts import Part, Terms
from robustly.training.step import Step


@dataclass(frozen=True)
class HatLoss(Part):
    """CE(z, y) + beta KL(p || p') + gamma CE(f(x + h (x' - x)), argmax s(x')): HAT.

    Rade and Moosavi-Dezfooli, "Reducing excessive margin to achieve a better accuracy vs. robustness trade-off",
    ICLR 2022, algorithm 1. The helper example x + h (x' - x) lies on the line through the image and its adversarial
    example; it may leave the box. Its label is the prediction of a standard network s at x'. With gamma = 0 the
    loss is TRADES.

    Args:
        beta: weight of the consistency, at least 0; 2.5 in the paper's CIFAR-10 results.
        gamma: weight of the helper examples, at least 0; 0.5 there.
        reach: h, distance of the helper example in units of the perturbation, positive; 2 there.
    """

    needs_inner = True

    beta: float = 2.5
    gamma: float = 0.5
    reach: float = 2.0

    def __post_init__(self) -> None:
        check_at_least_zero(beta=self.beta, gamma=self.gamma)
        check_positive(reach=self.reach)

    @property
    def reads(self) -> tuple[str, ...]:
        """Clean logits, adversarial ones and the standard network's in terms that have weight."""
        adversarial = ("adversarial",) if self.beta > 0 else ()
        return ("clean", *adversarial, *(("standard_teacher@adversarial",) if self.gamma > 0 else ()))

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean", and those that have weight of "consistency" and "helper"."""
        terms: Terms = {"clean": label_loss(step.clean_logits, step.labels)}
        if self.beta > 0:
            terms["consistency"] = self.beta * kl(step.clean_logits, step.adversarial_logits)
        if self.gamma > 0:
            helper = step.x + self.reach * (step.adversarial.x_adv - step.x)
            label = step.logits("standard_teacher", "adversarial").argmax(1)
            logits = step.logits_at("model", helper)
            terms["helper"] = self.gamma * F.cross_entropy(logits, label, reduction="none")
        return terms
