"""Learning from frozen teachers t: outer losses of adversarial distillation, and AdaAD's attack.

z are clean and z' adversarial logits of the model, p and p' their softmax. The teachers answer in evaluation mode
and never learn; the role "teacher" is a robust network, "standard_teacher" one trained on clean images.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import Images, ModelMode, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.attacks.pgd import Start
from robustly.objectives import ClassificationGoal, kl
from robustly.training.ascent import ascend
from robustly.training.inner import pgd_of
from robustly.training.labels import DataLabels, SmoothedLabels
from robustly.training.losses import Terms, label_loss, soft_cross_entropy
from robustly.training.step import Of, Step

if TYPE_CHECKING:
    from robustly.training.method import Method

Logits = Float[Tensor, "n k"]


def tempered_kl(
    reference: Logits, logits: Logits, temperature: float = 1.0, element_mean: bool = False
) -> Float[Tensor, " n"]:
    """T^2 KL(softmax(reference / T) || softmax(logits / T)); T^2 keeps the size of its gradient.

    Args:
        reference: logits to reach.
        logits: logits that move.
        temperature: T, positive; softens both.
        element_mean: divide by the number of classes, as the default reduction of `torch.nn.KLDivLoss` does.
    """
    divergence = temperature**2 * kl(reference / temperature, logits / temperature)
    return divergence / logits.shape[1] if element_mean else divergence


def check_share(name: str, value: float) -> None:
    """Refuse a share outside [0, 1].

    Raises:
        ValueError: it is.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_temperature(value: float) -> None:
    """Refuse a temperature that is not positive.

    Raises:
        ValueError: it is not.
    """
    if not value > 0:
        raise ValueError(f"temperature must be positive, got {value}")


@dataclass(frozen=True)
class ArdLoss:
    """alpha T^2 KL(t(x) / T || z' / T) + (1 - alpha) CE(z, y): adversarially robust distillation.

    Goldblum et al., "Adversarially robust distillation", AAAI 2020: the teacher sees the clean image, the
    model the adversarial one. A term without weight is left out, with its forward pass.

    Args:
        alpha: share of the distillation, in [0, 1]; 1 in the paper's CIFAR-10 results.
        temperature: T, positive; 30 there.
        element_mean: divide the KL by the number of classes, as the released code does.
    """

    needs_inner: ClassVar[bool] = True
    networks: ClassVar[tuple[str, ...]] = ("teacher",)

    alpha: float = 1.0
    temperature: float = 30.0
    element_mean: bool = False

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)
        check_temperature(self.temperature)

    def check(self, method: "Method") -> str | None:
        """Refuse smoothed labels where the term of the labels is left out."""
        return smoothed_for_nothing("alpha below 1", method) if self.alpha == 1 else None

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" (cross-entropy) and "adversarial" (distillation)."""
        terms: Terms = {}
        if self.alpha < 1:
            terms["clean"] = (1 - self.alpha) * label_loss(step.clean_logits, step.labels)
        if self.alpha > 0:
            target = step.teacher_logits("teacher")
            divergence = tempered_kl(target, step.adversarial_logits, self.temperature, self.element_mean)
            terms["adversarial"] = self.alpha * divergence
        return terms


@dataclass(frozen=True)
class RsladLoss:
    """ratio KL(t(x) || p') + (1 - ratio) KL(t(x) || p): robust soft label distillation.

    Zi et al., "Revisiting adversarial robustness distillation", ICCV 2021: no hard label, no temperature.

    Args:
        ratio: share of the adversarial term, in [0, 1]; 5/6 in the paper.
        element_mean: divide both terms by the number of classes, as the released code does.
        scale: factor of both terms, positive; the released code has 10 for CIFAR-100, which with `element_mean`
            gives the size that CIFAR-10 has.
    """

    needs_inner: ClassVar[bool] = True
    networks: ClassVar[tuple[str, ...]] = ("teacher",)

    ratio: float = 5 / 6
    element_mean: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio)
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def check(self, method: "Method") -> str | None:
        """Refuse a label source that nothing would use."""
        return _without_labels("rslad", method)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and "adversarial"; one without weight is left out, with its forward pass."""
        target = step.teacher_logits("teacher")
        terms: Terms = {}
        if self.ratio < 1:
            clean = tempered_kl(target, step.clean_logits, element_mean=self.element_mean)
            terms["clean"] = self.scale * (1 - self.ratio) * clean
        if self.ratio > 0:
            adversarial = tempered_kl(target, step.adversarial_logits, element_mean=self.element_mean)
            terms["adversarial"] = self.scale * self.ratio * adversarial
        return terms


@dataclass(frozen=True)
class AdaadLoss:
    """alpha KL(t(x') || p') + (1 - alpha) KL(t(x) || p): the teacher, too, sees the adversarial image.

    Huang et al., "Boosting accuracy and robustness of student models via adaptive adversarial distillation", CVPR
    2023. A term without weight is left out, with its forward passes.

    Args:
        alpha: share of the adversarial term, in [0, 1]; 1 in the paper.
        element_mean: divide both terms by the number of classes, as the released code does on CIFAR-10.
    """

    needs_inner: ClassVar[bool] = True
    networks: ClassVar[tuple[str, ...]] = ("teacher",)

    alpha: float = 1.0
    element_mean: bool = False

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)

    def check(self, method: "Method") -> str | None:
        """Refuse a label source that nothing would use."""
        return _without_labels("adaad", method)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and "adversarial"."""
        terms: Terms = {}
        shares: tuple[tuple[Of, float], ...] = (("clean", 1 - self.alpha), ("adversarial", self.alpha))
        for of, share in shares:
            if share > 0:
                logits = step.clean_logits if of == "clean" else step.adversarial_logits
                target = step.teacher_logits("teacher", of)
                terms[of] = share * tempered_kl(target, logits, element_mean=self.element_mean)
        return terms


@dataclass(frozen=True)
class KdLoss:
    """labels CE(z', y) + clean T^2 H(s(x') / T, z' / T) + robust T^2 H(t(x') / T, z' / T), H the cross-entropy.

    Smoothing by two teachers of the model's own architecture, a standard-trained s and an adversarially trained t,
    both on the adversarial image (Chen et al., "Robust overfitting may be mitigated by properly learned
    smoothening", ICLR 2021; there with SWA).

    Args:
        labels: weight of the labels, at least 0; 0.3 in the released code.
        clean: weight of the clean teacher, at least 0; 0.1 there.
        robust: weight of the robust teacher, at least 0; 0.6 there.
        temperature: T, positive; 2 there.
    """

    needs_inner: ClassVar[bool] = True
    networks: ClassVar[tuple[str, ...]] = ("teacher", "standard_teacher")

    labels: float = 0.3
    clean: float = 0.1
    robust: float = 0.6
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for name in ("labels", "clean", "robust"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.labels == self.clean == self.robust == 0:
            raise ValueError("labels, clean and robust must not all be 0: there would be no loss")
        check_temperature(self.temperature)

    def check(self, method: "Method") -> str | None:
        """Refuse smoothed labels where the labels have no weight."""
        return smoothed_for_nothing("labels above 0", method) if self.labels == 0 else None

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" (labels), "standard_teacher" and "teacher", without those of weight 0."""
        z_adv, t = step.adversarial_logits, self.temperature
        terms: Terms = {}
        if self.labels > 0:
            terms["adversarial"] = self.labels * label_loss(z_adv, step.labels)
        for role, weight in (("standard_teacher", self.clean), ("teacher", self.robust)):
            if weight > 0:
                answers = step.teacher_logits(role, "adversarial")
                terms[role] = weight * t**2 * soft_cross_entropy(answers, z_adv, t)
        return terms


@dataclass(frozen=True)
class AdaadInner:
    """Gradient ascent on KL(t(x') || p'), where the teacher moves with x': its input gradient counts too.

    Huang et al., CVPR 2023, as released. Each step costs a forward and a backward pass of both networks.

    Args:
        steps: gradient steps.
        step_size: in units of the images; or
        relative_step_size: as a share of epsilon; with neither, 2.5 epsilon / steps.
        start: "gaussian" (0.001 noise, as released), "random", "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
    """

    networks: ClassVar[tuple[str, ...]] = ("teacher",)
    against: ClassVar[Literal["data"]] = "data"

    steps: int = 10
    step_size: float | None = None
    relative_step_size: float | None = None
    start: Start = "gaussian"
    mode: ModelMode = "eval"

    def __post_init__(self) -> None:
        pgd_of(self)

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        teacher = step.teacher("teacher")

        def value(points: Images, logits: Logits, goal: ClassificationGoal) -> Float[Tensor, " m"]:
            return kl(logits_of(teacher, points), logits)

        with frozen(teacher, full_precision=False):
            return ascend(step, pgd_of(self), ClassificationGoal(step.y), value=value)


def smoothed_for_nothing(instead: str, method: "Method") -> str | None:
    """Why smoothed labels do not go with a loss whose term of the labels has no weight."""
    labels = method.labels
    if not isinstance(labels, SmoothedLabels) and getattr(labels, "smoothing", 0.0) == 0:
        return None
    return f"the loss learns from its teachers alone, so that smoothed labels change nothing: set {instead}"


def _without_labels(name: Literal["rslad", "adaad"], method: "Method") -> str | None:
    if isinstance(method.labels, DataLabels):
        return None
    return f"{name} learns from its teacher alone: leave 'labels' out"
