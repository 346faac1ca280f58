"""Introspective adversarial distillation: self-distillation where the teacher is unreliable.

Zhu et al., "Reliable adversarial distillation with unreliable teachers", ICLR 2022. Notation as in `distillation`.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.training.losses.terms import (
    check_at_least_zero,
    check_positive,
    check_share,
    label_loss,
    tempered_kl,
    useless_smoothing,
)
from robustly.training.parts import Composition, Part, Terms, begins_too_late
from robustly.training.step import Inputs, Moment, Step


def teacher_confidence(step: Step, power: float) -> Float[Tensor, " n"]:
    """(t(x')_y)^power: the teacher's confidence in the label of the adversarial image, without gradient."""
    log_probability = -F.cross_entropy(step.logits("teacher", "adversarial"), step.labels.hard, reduction="none")
    return (power * log_probability).exp()


@dataclass(frozen=True)
class IadLoss(Part):
    """ARD plus self-distillation, weighted by the teacher's lack of confidence in the label: IAD-I.

    alpha T^2 KL(t(x) / T || z' / T) + alpha (1 - a) KL(p || p') + (1 - alpha) CE(z, y) with a = (t(x')_y)^power.
    Zhu et al., "Reliable adversarial distillation with unreliable teachers", ICLR 2022, as released: the
    second term has no temperature, and gradients through p too. Until epoch `begin` it is ARD.

    Args:
        alpha: share of both distillation terms, in [0, 1]; 1 in the paper.
        power: exponent of the teacher's confidence in the label, at least 0; 0.1 there.
        begin: finished epochs before the model learns from itself; 60 there.
        temperature: T, positive; 1 there.
        teacher_term_weighted: whether the teacher's term is multiplied by a, as in the paper (the released code
            does not).
        teacher_on: images of the teacher in the first term: the "clean" ones or, with AdaAD's attack ("AdaIAD"),
            the "adversarial" ones.
        element_mean: divide the KL terms by the number of classes.
    """

    needs_inner = True
    networks = ("teacher",)

    alpha: float = 1.0
    power: float = 0.1
    begin: int = 60
    temperature: float = 1.0
    teacher_term_weighted: bool = False
    teacher_on: Inputs = "clean"
    element_mean: bool = False

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)
        check_positive(temperature=self.temperature)
        _check_power_and_begin(self.power, self.begin)

    @property
    def reads(self) -> tuple[str, ...]:
        """Logits of the terms that have weight, once the model learns from itself."""
        return self._reads(introspective=True)

    def reads_at(self, moment: Moment) -> tuple[str, ...]:
        """Logits of the terms that have weight at this moment."""
        return self._reads(introspective=moment.epoch >= self.begin)

    def _reads(self, introspective: bool) -> tuple[str, ...]:
        if self.alpha == 0:
            return ("clean",)
        clean = ("clean",) if self.alpha < 1 or introspective else ()
        confidence = ("teacher@adversarial",) if introspective else ()
        return (*clean, *dict.fromkeys((f"teacher@{self.teacher_on}", *confidence)), "adversarial")

    def check(self, method: Composition) -> str | None:
        """Refuse smoothed labels if the term of the labels is left out."""
        return useless_smoothing("alpha below 1", method) if self.alpha == 1 else None

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a beginning after the end of the run."""
        return begins_too_late("begin", self.begin, epochs, "the model would never learn from itself")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" (cross-entropy), "adversarial" (the teacher's), "consistency" (its own).

        One without weight is left out, with its passes.
        """
        terms: Terms = {}
        if self.alpha < 1:
            terms["clean"] = (1 - self.alpha) * label_loss(step.clean_logits, step.labels)
        if self.alpha == 0:
            return terms
        confidence = teacher_confidence(step, self.power) if step.moment.epoch >= self.begin else None
        if confidence is not None:
            own = tempered_kl(step.clean_logits, step.adversarial_logits, element_mean=self.element_mean)
            terms["consistency"] = self.alpha * (1 - confidence) * own
        target = step.logits("teacher", self.teacher_on)
        taught = tempered_kl(target, step.adversarial_logits, self.temperature, self.element_mean)
        if self.teacher_term_weighted and confidence is not None:
            taught = confidence * taught
        terms["adversarial"] = self.alpha * taught
        return terms


@dataclass(frozen=True)
class Iad2Loss(Part):
    """IAD-II, with a second teacher s that was trained on clean images.

    (1 - robust - clean) CE(z', y) + robust T^2 [a KL(t(x') / T || z' / T) + (1 - a) KL(p || p')]
    + clean T^2 KL(s(x') / T || z' / T) with a = (t(x')_y)^power (Zhu et al., ICLR 2022, as released).
    Until epoch `begin` a is 1.

    Args:
        robust: share of the robust teacher's term, in [0, 1]; 0.5 in the released code.
        clean: share of the standard-trained teacher's term, in [0, 1]; 0.25 there; both together at most 1.
        power: as in `IadLoss`.
        begin: finished epochs before the model learns from itself; 40 there.
        temperature: T, positive; 1 there.
        element_mean: divide the KL terms by the number of classes.
    """

    networks = ("teacher", "standard_teacher")

    robust: float = 0.5
    clean: float = 0.25
    power: float = 0.1
    begin: int = 40
    temperature: float = 1.0
    element_mean: bool = False

    def __post_init__(self) -> None:
        check_share("robust", self.robust)
        check_share("clean", self.clean)
        check_share("robust + clean", round(self.robust + self.clean, 9))
        check_positive(temperature=self.temperature)
        _check_power_and_begin(self.power, self.begin)

    @property
    def reads(self) -> tuple[str, ...]:
        """Logits of the terms that have weight, once the model learns from itself."""
        return self._reads(introspective=True)

    def reads_at(self, moment: Moment) -> tuple[str, ...]:
        """Logits of the terms that have weight at this moment."""
        return self._reads(introspective=moment.epoch >= self.begin)

    def _reads(self, introspective: bool) -> tuple[str, ...]:
        teachers = (("teacher", self.robust), ("standard_teacher", self.clean))
        weighted = tuple(f"{name}@adversarial" for name, share in teachers if share > 0)
        return (("clean",) if introspective and self.robust > 0 else ()) + ("adversarial", *weighted)

    def check(self, method: Composition) -> str | None:
        """Refuse smoothed labels if the labels have no weight."""
        alone = self._share_of_labels == 0
        return useless_smoothing("robust + clean below 1", method) if alone else None

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a beginning after the end of the run."""
        return begins_too_late("begin", self.begin, epochs, "the model would never learn from itself")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" (cross-entropy), "teacher", "standard_teacher", "consistency" (its own).

        One without weight is left out, with its passes.
        """
        terms: Terms = {}
        t = self.temperature
        if self.robust > 0:
            confidence = teacher_confidence(step, self.power) if step.moment.epoch >= self.begin else None
            if confidence is not None:
                own = tempered_kl(step.clean_logits, step.adversarial_logits, element_mean=self.element_mean)
                terms["consistency"] = self.robust * t**2 * (1 - confidence) * own
            taught = self._taught("teacher", step)
            terms["teacher"] = self.robust * (taught if confidence is None else confidence * taught)
        if self.clean > 0:
            terms["standard_teacher"] = self.clean * self._taught("standard_teacher", step)
        if self._share_of_labels > 0:
            terms["adversarial"] = self._share_of_labels * label_loss(step.adversarial_logits, step.labels)
        return terms

    def _taught(self, role: str, step: Step) -> Float[Tensor, " n"]:
        target = step.logits(role, "adversarial")
        return tempered_kl(target, step.adversarial_logits, self.temperature, self.element_mean)

    @property
    def _share_of_labels(self) -> float:
        return max(0.0, round(1 - self.robust - self.clean, 9))


def _check_power_and_begin(power: float, begin: int) -> None:
    check_at_least_zero(power=power)
    if begin < 0:
        raise ValueError(f"begin must be at least 0 finished epochs, got {begin}")
