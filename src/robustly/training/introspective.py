"""Introspective adversarial distillation: students that know when to trust themselves more than their teacher.

Zhu et al., "Reliable adversarial distillation with unreliable teachers", ICLR 2022. Notation as in `distillation`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.training.distillation import check_share, check_temperature, smoothed_for_nothing, tempered_kl
from robustly.training.losses import Terms, label_loss
from robustly.training.step import Of, Step, outlasts

if TYPE_CHECKING:
    from robustly.training.method import Method


def teacher_trust(step: Step, power: float) -> Float[Tensor, " n"]:
    """(t(x')_y)^power: how sure the teacher is of the label of the adversarial image, without gradient."""
    log_probability = -F.cross_entropy(
        step.teacher_logits("teacher", "adversarial"), step.labels.hard, reduction="none"
    )
    return (power * log_probability).exp()


@dataclass(frozen=True)
class IadLoss:
    """ARD that trusts the teacher as far as the teacher is right: IAD-I.

    alpha T^2 KL(t(x) / T || z' / T) + alpha (1 - a) KL(p || p') + (1 - alpha) CE(z, y) with a = (t(x')_y)^power.
    Zhu et al., "Reliable adversarial distillation with unreliable teachers", ICLR 2022, as released: the
    second term has no temperature, and gradients through p too. Until epoch `begin` it is ARD.

    Args:
        alpha: share of both distillation terms, in [0, 1]; 1 in the paper.
        power: how sharply trust falls with the teacher's own confidence in the label, at least 0; 0.1 there.
        begin: finished epochs before the model starts to trust itself; 60 there.
        temperature: T, positive; 1 there.
        teacher_term_weighted: whether the teacher's term is multiplied by a, as the paper writes (the released code
            leaves it whole).
        teacher_on: what the teacher sees in the first term: the "clean" images or, with AdaAD's attack ("AdaIAD"),
            the "adversarial" ones.
        element_mean: divide the KL terms by the number of classes.
    """

    needs_inner: ClassVar[bool] = True
    networks: ClassVar[tuple[str, ...]] = ("teacher",)

    alpha: float = 1.0
    power: float = 0.1
    begin: int = 60
    temperature: float = 1.0
    teacher_term_weighted: bool = False
    teacher_on: Of = "clean"
    element_mean: bool = False

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)
        check_temperature(self.temperature)
        _check_trust(self.power, self.begin)

    def check(self, method: "Method") -> str | None:
        """Refuse smoothed labels where the term of the labels is left out."""
        return smoothed_for_nothing("alpha below 1", method) if self.alpha == 1 else None

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a beginning after the end of the run."""
        return outlasts("begin", self.begin, epochs, "the model would never trust itself")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" (cross-entropy), "adversarial" (the teacher's), "consistency" (its own).

        One without weight is left out, with its passes.
        """
        terms: Terms = {}
        if self.alpha < 1:
            terms["clean"] = (1 - self.alpha) * label_loss(step.clean_logits, step.labels)
        if self.alpha == 0:
            return terms
        trust = teacher_trust(step, self.power) if step.moment.epoch >= self.begin else None
        if trust is not None:
            own = tempered_kl(step.clean_logits, step.adversarial_logits, element_mean=self.element_mean)
            terms["consistency"] = self.alpha * (1 - trust) * own
        target = step.teacher_logits("teacher", self.teacher_on)
        taught = tempered_kl(target, step.adversarial_logits, self.temperature, self.element_mean)
        if self.teacher_term_weighted and trust is not None:
            taught = trust * taught
        terms["adversarial"] = self.alpha * taught
        return terms


@dataclass(frozen=True)
class Iad2Loss:
    """IAD-II, with a second teacher s that was trained on clean images.

    (1 - robust - clean) CE(z', y) + robust T^2 [a KL(t(x') / T || z' / T) + (1 - a) KL(p || p')]
    + clean T^2 KL(s(x') / T || z' / T) with a = (t(x')_y)^power (Zhu et al., ICLR 2022, as released).
    Until epoch `begin` a is 1.

    Args:
        robust: share of the robust teacher's term, in [0, 1]; 0.5 in the released code.
        clean: share of the clean teacher's term, in [0, 1]; 0.25 there; both together at most 1.
        power: as in `IadLoss`.
        begin: finished epochs before the model starts to trust itself; 40 there.
        temperature: T, positive; 1 there.
        element_mean: divide the KL terms by the number of classes.
    """

    needs_inner: ClassVar[bool] = True
    networks: ClassVar[tuple[str, ...]] = ("teacher", "standard_teacher")

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
        check_temperature(self.temperature)
        _check_trust(self.power, self.begin)

    def check(self, method: "Method") -> str | None:
        """Refuse smoothed labels where the labels have no weight."""
        alone = self._share_of_labels == 0
        return smoothed_for_nothing("robust + clean below 1", method) if alone else None

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a beginning after the end of the run."""
        return outlasts("begin", self.begin, epochs, "the model would never trust itself")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" (cross-entropy), "teacher", "standard_teacher", "consistency" (its own).

        One without weight is left out, with its passes.
        """
        terms: Terms = {}
        t = self.temperature
        if self.robust > 0:
            trust = teacher_trust(step, self.power) if step.moment.epoch >= self.begin else None
            if trust is not None:
                own = tempered_kl(step.clean_logits, step.adversarial_logits, element_mean=self.element_mean)
                terms["consistency"] = self.robust * t**2 * (1 - trust) * own
            taught = self._taught("teacher", step)
            terms["teacher"] = self.robust * (taught if trust is None else trust * taught)
        if self.clean > 0:
            terms["standard_teacher"] = self.clean * self._taught("standard_teacher", step)
        if self._share_of_labels > 0:
            terms["adversarial"] = self._share_of_labels * label_loss(step.adversarial_logits, step.labels)
        return terms

    def _taught(self, role: str, step: Step) -> Float[Tensor, " n"]:
        answers = step.teacher_logits(role, "adversarial")
        return tempered_kl(answers, step.adversarial_logits, self.temperature, self.element_mean)

    @property
    def _share_of_labels(self) -> float:
        return max(0.0, round(1 - self.robust - self.clean, 9))


def _check_trust(power: float, begin: int) -> None:
    if not power >= 0:
        raise ValueError(f"power must be at least 0, got {power}")
    if begin < 0:
        raise ValueError(f"begin must be at least 0 finished epochs, got {begin}")
