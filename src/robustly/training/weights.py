"""Fourth part of a method: instance weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.objectives import ClassificationGoal, probability_margin
from robustly.training.labels import DataLabels, SmoothedLabels
from robustly.training.step import Step, outlasts

if TYPE_CHECKING:
    from robustly.training.method import Method

Label = Literal["dynamic", "static"]


class WeightsError(ValueError):
    """Instance weights that leave nothing to learn from."""


@runtime_checkable
class InstanceWeights(Protocol):
    """Fourth part: how much each example counts, in which term of the loss."""

    @property
    def term(self) -> str:
        """The term of the loss that is weighted, such as "adversarial" or "consistency"."""
        ...

    def __call__(self, step: Step) -> Float[Tensor, " n"] | None:
        """Weights of a batch; they carry no gradient. None counts every example once (a burn-in)."""
        ...


@dataclass(frozen=True)
class GairatWeights:
    """GAIRAT: the fewer steps it takes to have an example misclassified, the more it counts.

    kappa of K attack steps start where the example is classified correctly (the start of the attack counts, its
    result does not). Zhang et al., "Geometry-aware instance-reweighted adversarial training", ICLR 2021, eq. 6:
    tanh w = (1 + tanh(lambda + 5 (1 - 2 kappa / K))) / 2; sigmoid w = sigma(lambda + 5 (1 - 2 kappa / K)); discrete
    w = (K + 1 - kappa) / (K + 1). The mean over the batch of all processes is 1. K is what the inner maximisation
    may take, also for examples that stop early (GAIR-FAT), which are misclassified at all iterates to come.

    It masks gradients: arXiv 2408.13102 reports 59.5 % under PGD-20 and 40.3 % under AutoAttack. Believe only what
    a worst case of several attacks says.

    Args:
        function: "tanh" (the paper's), "sigmoid" or "discrete".
        shift: lambda; -1 in the released code, and 0 in the paper's ResNet-18; plus infinity is no weighting.
        burn_in: epochs that count every example once; 59 of 120 (WRN) and 29 of 100 (ResNet-18) in the released
            code.
        term: the term of the loss that is weighted.
        label: what "correctly" means with dynamic labels: by the label source ("dynamic", the label that the loss
            uses) or by the data ("static"). kappa is counted by the attack, whose `against` has to agree.

    Raises:
        ValueError: a negative burn-in.
    """

    function: Literal["tanh", "sigmoid", "discrete"] = "tanh"
    shift: float = -1.0
    burn_in: int = 59
    term: str = "adversarial"
    label: Label = "dynamic"

    def __post_init__(self) -> None:
        _check_burn_in(self.burn_in)

    def check(self, method: "Method") -> str | None:
        """Refuse an inner maximisation without steps to count, or one that counts against other labels."""
        if getattr(method.inner, "steps", 0) < 1:
            return "gairat counts the steps of the attack: it needs an inner maximisation with steps, such as pgd"
        against = getattr(method.inner, "against", "labels")
        wanted = "labels" if self.label == "dynamic" else "data"
        if against != wanted and not isinstance(method.labels, DataLabels | SmoothedLabels):
            return (
                f"gairat with label {self.label!r} needs kappa counted by an attack with against {wanted!r}, "
                f"the inner maximisation has {against!r}"
            )
        return None

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a burn-in that outlasts the run."""
        return outlasts("burn_in", self.burn_in, epochs, "the weights would never count")

    def __call__(self, step: Step) -> Float[Tensor, " n"] | None:
        """Weights by kappa, of mean 1.

        Raises:
            WeightsError: all of them are zero.
        """
        if step.moment.epoch < self.burn_in:
            return None
        weight = self.of(step.adversarial.correct_iterates.to(step.x.dtype), step.attack_steps)
        mean = step.batch_mean(weight)
        if float(mean) == 0:
            raise WeightsError(
                f"the gairat weights of all examples of the batch are zero at shift {self.shift:g}: raise it"
            )
        return weight / mean

    def of(self, kappa: Float[Tensor, " n"], steps: int) -> Float[Tensor, " n"]:
        """Weights before they are divided by their mean."""
        if self.function == "discrete":
            return (steps + 1 - kappa) / (steps + 1)
        closeness = self.shift + 5 * (1 - 2 * kappa / steps)
        # (1 + tanh a) / 2 = sigma(2 a), which does not round to 0 where tanh rounds to -1
        return torch.sigmoid(2 * closeness if self.function == "tanh" else closeness)


@dataclass(frozen=True)
class MailWeights:
    """MAIL: the smaller the probability margin of the adversarial example, the more it counts.

    w = sigma(slope (PM + bias)) with PM = max_{j != y} p'_j - p'_y of the adversarial logits that the loss sees, in
    [-1, 1], without gradient. Wang et al., "Probabilistic margins for instance reweighting in adversarial
    training", NeurIPS 2021. The released code multiplies by the constant 3; the paper's weights
    have mean 1.

    Args:
        slope: 10 for MAIL-AT, 2 for MAIL-TRADES.
        bias: -0.5 for MAIL-AT, 0 for MAIL-TRADES.
        scale: "constant" (times `constant`) or "mean_one" (over the batch of all processes).
        constant: positive; 3 in the released code.
        burn_in: epochs that count every example once; 76 of 120 in the released code, one more than before the rate
            drops.
        term: the term of the loss that is weighted: "adversarial" (MAIL-AT, MAIL-MART) or "consistency"
            (MAIL-TRADES).
        label: y with dynamic labels: by the label source ("dynamic", the label that the loss uses) or the data
            ("static").

    Raises:
        ValueError: a setting out of range.
    """

    slope: float = 10.0
    bias: float = -0.5
    scale: Literal["constant", "mean_one"] = "constant"
    constant: float = 3.0
    burn_in: int = 76
    term: str = "adversarial"
    label: Label = "dynamic"

    def __post_init__(self) -> None:
        _check_burn_in(self.burn_in)
        if not self.constant > 0:
            raise ValueError(f"constant must be positive, got {self.constant}")

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a burn-in that outlasts the run."""
        return outlasts("burn_in", self.burn_in, epochs, "the weights would never count")

    def __call__(self, step: Step) -> Float[Tensor, " n"] | None:
        """Weights by the probability margin.

        Raises:
            WeightsError: all of them are zero, and their mean shall be 1.
        """
        if step.moment.epoch < self.burn_in:
            return None
        y = step.labels.hard if self.label == "dynamic" else step.y
        weight = self.of(step.adversarial_logits.detach(), y)
        if self.scale == "constant":
            return self.constant * weight
        mean = step.batch_mean(weight)
        if float(mean) == 0:  # NaN goes on: the loss names what diverged
            raise WeightsError(
                f"the mail weights of all examples of the batch are zero at slope {self.slope:g} and bias "
                f"{self.bias:g}: lower the slope"
            )
        return weight / mean

    def of(self, logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Weights before they are scaled."""
        return torch.sigmoid(self.slope * (probability_margin(logits, ClassificationGoal(y)) + self.bias))


def _check_burn_in(burn_in: int) -> None:
    if burn_in < 0:
        raise ValueError(f"burn_in must be at least 0, got {burn_in}")
