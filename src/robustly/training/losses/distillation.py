"""Outer losses of adversarial distillation from frozen teachers: ARD, RSLAD, AdaAD, KD.

z are clean and z' adversarial logits of the model, p and p' their softmax, t and s the teachers' logits. Teachers
are frozen and in evaluation mode; "teacher" is a robust network, "standard_teacher" one trained on clean images.
"""

from dataclasses import dataclass
from typing import Literal

from robustly.training.labels.data import DataLabels
from robustly.training.losses.terms import (
    check_at_least_zero,
    check_positive,
    check_share,
    label_loss,
    soft_cross_entropy,
    tempered_kl,
    useless_smoothing,
)
from robustly.training.parts import Composition, Part, Terms
from robustly.training.step import Inputs, Step


@dataclass(frozen=True)
class ArdLoss(Part):
    """alpha T^2 KL(t(x) / T || z' / T) + (1 - alpha) CE(z, y): adversarially robust distillation.

    Goldblum et al., "Adversarially robust distillation", AAAI 2020: the teacher gets the clean image, the
    model the adversarial one. A term without weight is left out, with its forward pass.

    Args:
        alpha: share of the distillation, in [0, 1]; 1 in the paper's CIFAR-10 results.
        temperature: T, positive; 30 there.
        element_mean: divide the KL by the number of classes, as the released code does.
    """

    needs_inner = True
    networks = ("teacher",)

    alpha: float = 1.0
    temperature: float = 30.0
    element_mean: bool = False

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)
        check_positive(temperature=self.temperature)

    @property
    def reads(self) -> tuple[str, ...]:
        """Logits of the terms that have weight."""
        distilled = ("teacher@clean", "adversarial") if self.alpha > 0 else ()
        return (("clean",) if self.alpha < 1 else ()) + distilled

    def check(self, method: Composition) -> str | None:
        """Refuse smoothed labels if the term of the labels is left out."""
        return useless_smoothing("alpha below 1", method) if self.alpha == 1 else None

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" (cross-entropy) and "adversarial" (distillation)."""
        terms: Terms = {}
        if self.alpha < 1:
            terms["clean"] = (1 - self.alpha) * label_loss(step.clean_logits, step.labels)
        if self.alpha > 0:
            target = step.logits("teacher")
            divergence = tempered_kl(target, step.adversarial_logits, self.temperature, self.element_mean)
            terms["adversarial"] = self.alpha * divergence
        return terms


@dataclass(frozen=True)
class RsladLoss(Part):
    """ratio KL(t(x) || p') + (1 - ratio) KL(t(x) || p): robust soft label distillation.

    Zi et al., "Revisiting adversarial robustness distillation", ICCV 2021: no hard label, no temperature.

    Args:
        ratio: share of the adversarial term, in [0, 1]; 5/6 in the paper.
        element_mean: divide both terms by the number of classes, as the released code does.
        scale: factor of both terms, positive; the released code has 10 for CIFAR-100, which with `element_mean`
            gives the size that CIFAR-10 has.
    """

    needs_inner = True

    ratio: float = 5 / 6
    element_mean: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio)
        check_positive(scale=self.scale)

    @property
    def reads(self) -> tuple[str, ...]:
        """Logits of the teacher, and those of the model in terms that have weight."""
        clean, adversarial = self.ratio < 1, self.ratio > 0
        return ("teacher@clean",) + (("clean",) if clean else ()) + (("adversarial",) if adversarial else ())

    def check(self, method: Composition) -> str | None:
        """Refuse a label source that the loss would not use."""
        return _unused_labels("rslad", method)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and "adversarial"; one without weight is left out, with its forward pass."""
        target = step.logits("teacher")
        terms: Terms = {}
        if self.ratio < 1:
            clean = tempered_kl(target, step.clean_logits, element_mean=self.element_mean)
            terms["clean"] = self.scale * (1 - self.ratio) * clean
        if self.ratio > 0:
            adversarial = tempered_kl(target, step.adversarial_logits, element_mean=self.element_mean)
            terms["adversarial"] = self.scale * self.ratio * adversarial
        return terms


@dataclass(frozen=True)
class AdaadLoss(Part):
    """alpha KL(t(x') || p') + (1 - alpha) KL(t(x) || p): the teacher's input is the adversarial image too.

    Huang et al., "Boosting accuracy and robustness of student models via adaptive adversarial distillation", CVPR
    2023. A term without weight is left out, with its forward passes.

    Args:
        alpha: share of the adversarial term, in [0, 1]; 1 in the paper.
        element_mean: divide both terms by the number of classes, as the released code does on CIFAR-10.
    """

    needs_inner = True

    alpha: float = 1.0
    element_mean: bool = False

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)

    @property
    def reads(self) -> tuple[str, ...]:
        """Logits of both networks in the terms that have weight."""
        clean = ("teacher@clean", "clean") if self.alpha < 1 else ()
        return clean + (("teacher@adversarial", "adversarial") if self.alpha > 0 else ())

    def check(self, method: Composition) -> str | None:
        """Refuse a label source that the loss would not use."""
        return _unused_labels("adaad", method)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and "adversarial"."""
        terms: Terms = {}
        shares: tuple[tuple[Inputs, float], ...] = (("clean", 1 - self.alpha), ("adversarial", self.alpha))
        for inputs, share in shares:
            if share > 0:
                logits = step.clean_logits if inputs == "clean" else step.adversarial_logits
                target = step.logits("teacher", inputs)
                terms[inputs] = share * tempered_kl(target, logits, element_mean=self.element_mean)
        return terms


@dataclass(frozen=True)
class KdLoss(Part):
    """labels CE(z', y) + clean T^2 H(s(x') / T, z' / T) + robust T^2 H(t(x') / T, z' / T), H the cross-entropy.

    Smoothing by two teachers of the model's own architecture, a standard-trained s and an adversarially trained t,
    both on the adversarial image (Chen et al., "Robust overfitting may be mitigated by properly learned
    smoothening", ICLR 2021; there with SWA).

    Args:
        labels: weight of the labels, at least 0; 0.3 in the released code.
        clean: weight of the standard-trained teacher, at least 0; 0.1 there.
        robust: weight of the robust teacher, at least 0; 0.6 there.
        temperature: T, positive; 2 there.
    """

    networks = ("teacher", "standard_teacher")

    labels: float = 0.3
    clean: float = 0.1
    robust: float = 0.6
    temperature: float = 2.0

    def __post_init__(self) -> None:
        check_at_least_zero(labels=self.labels, clean=self.clean, robust=self.robust)
        if self.labels == self.clean == self.robust == 0:
            raise ValueError("labels, clean and robust must not all be 0: the loss would be empty")
        check_positive(temperature=self.temperature)

    @property
    def reads(self) -> tuple[str, ...]:
        """Adversarial logits of the model, and of the teachers that have weight."""
        weighted = (("teacher", self.robust), ("standard_teacher", self.clean))
        return ("adversarial", *(f"{name}@adversarial" for name, weight in weighted if weight > 0))

    def check(self, method: Composition) -> str | None:
        """Refuse smoothed labels if the labels have no weight."""
        return useless_smoothing("labels above 0", method) if self.labels == 0 else None

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" (labels), "standard_teacher" and "teacher", without those of weight 0."""
        z_adv, t = step.adversarial_logits, self.temperature
        terms: Terms = {}
        if self.labels > 0:
            terms["adversarial"] = self.labels * label_loss(z_adv, step.labels)
        for name, weight in (("standard_teacher", self.clean), ("teacher", self.robust)):
            if weight > 0:
                target = step.logits(name, "adversarial")
                terms[name] = weight * t**2 * soft_cross_entropy(target, z_adv, t)
        return terms


def _unused_labels(name: Literal["rslad", "adaad"], method: Composition) -> str | None:
    if isinstance(method.labels, DataLabels):
        return None
    return f"{name} does not use labels: remove 'labels'"
