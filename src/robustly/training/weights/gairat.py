"""GAIRAT: instance weights by the number of attack steps before misclassification."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from robustly.training.labels.data import DataLabels, SmoothedLabels
from robustly.training.parts import Composition, InstanceWeightsError, Part, begins_too_late
from robustly.training.step import Step

Label = Literal["dynamic", "static"]


@dataclass(frozen=True)
class GairatWeights(Part):
    """GAIRAT: the weight falls with the number of attack steps until an example is misclassified.

    kappa of K attack steps begin at a point that is classified correctly (the start of the attack counts, its
    result does not). Zhang et al., "Geometry-aware instance-reweighted adversarial training", ICLR 2021, eq. 6:
    tanh w = (1 + tanh(lambda + 5 (1 - 2 kappa / K))) / 2; sigmoid w = sigma(lambda + 5 (1 - 2 kappa / K));
    discrete w = (K + 1 - kappa) / (K + 1). The mean over the batch of all processes is 1. K is the number of steps
    that the inner maximisation may take, also for examples that stop early (GAIR-FAT), which count as
    misclassified at all remaining iterates.

    It masks gradients: arXiv 2408.13102 reports 59.5 % under PGD-20 and 40.3 % under AutoAttack. Report the worst
    case of several attacks.

    Args:
        function: "tanh" (the paper's), "sigmoid" or "discrete".
        shift: lambda; -1 in the released code, 0 in the paper's ResNet-18; plus infinity means equal weights.
        burn_in: epochs that count every example once; 59 of 120 (WRN) and 29 of 100 (ResNet-18) in the released
            code.
        term: the term of the loss that is weighted.
        label: with dynamic labels, origin of the label that "correctly" refers to: the label source ("dynamic", the
            label of the loss) or the data set ("static"). The attack counts kappa, and its `against` must agree.

    Raises:
        ValueError: a negative burn-in.
    """

    function: Literal["tanh", "sigmoid", "discrete"] = "tanh"
    shift: float = -1.0
    burn_in: int = 59
    term: str = "adversarial"
    label: Label = "dynamic"

    def __post_init__(self) -> None:
        check_burn_in(self.burn_in)

    def check(self, method: Composition) -> str | None:
        """Refuse an inner maximisation without steps, or one against other labels."""
        inner = method.inner
        if inner is None or inner.steps < 1:
            return "gairat counts the steps of the attack: it needs an inner maximisation with steps, such as pgd"
        wanted = "labels" if self.label == "dynamic" else "data"
        if inner.against != wanted and not isinstance(method.labels, DataLabels | SmoothedLabels):
            return (
                f"gairat with label {self.label!r} needs kappa counted by an attack with against {wanted!r}, "
                f"the inner maximisation has {inner.against!r}"
            )
        return None

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a burn-in that outlasts the run."""
        return begins_too_late("burn_in", self.burn_in, epochs, "the weights would never be used")

    def __call__(self, step: Step) -> Float[Tensor, " n"] | None:
        """Weights by kappa, of mean 1.

        Raises:
            InstanceWeightsError: all of them are zero.
        """
        if step.moment.epoch < self.burn_in:
            return None
        weight = self.of(step.adversarial.correct_iterates.to(step.x.dtype), step.attack_steps)
        mean = step.batch_mean(weight)
        if float(mean) == 0:
            raise InstanceWeightsError(
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


def check_burn_in(burn_in: int) -> None:
    """Refuse a negative burn-in.

    Raises:
        ValueError: it is negative.
    """
    if burn_in < 0:
        raise ValueError(f"burn_in must be at least 0, got {burn_in}")
