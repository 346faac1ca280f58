"""MAIL: instance weights by the probability margin of the adversarial example."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.objectives import ClassificationGoal, probability_margin
from robustly.training.parts import InstanceWeightsError, Part, begins_too_late
from robustly.training.step import Moment, Step
from robustly.training.weights.gairat import Label, check_burn_in


@dataclass(frozen=True)
class MailWeights(Part):
    """MAIL: the weight grows with the probability margin of the adversarial example.

    w = sigma(slope (PM + bias)) with PM = max_{j != y} p'_j - p'_y of the adversarial logits of the loss, in
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
        label: with dynamic labels, origin of y: the label source ("dynamic", the label of the loss) or the data set
            ("static").

    Raises:
        ValueError: a setting out of range.
    """

    reads = ("adversarial",)

    slope: float = 10.0
    bias: float = -0.5
    scale: Literal["constant", "mean_one"] = "constant"
    constant: float = 3.0
    burn_in: int = 76
    term: str = "adversarial"
    label: Label = "dynamic"

    def __post_init__(self) -> None:
        check_burn_in(self.burn_in)
        if not self.constant > 0:
            raise ValueError(f"constant must be positive, got {self.constant}")

    def reads_at(self, moment: Moment) -> tuple[str, ...]:
        """Nothing before the end of the burn-in."""
        return self.reads if moment.epoch >= self.burn_in else ()

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a burn-in that outlasts the run."""
        return begins_too_late("burn_in", self.burn_in, epochs, "the weights would never be used")

    def __call__(self, step: Step) -> Float[Tensor, " n"] | None:
        """Weights by the probability margin.

        Raises:
            InstanceWeightsError: all of them are zero, so that their mean cannot be 1.
        """
        if step.moment.epoch < self.burn_in:
            return None
        y = step.labels.hard if self.label == "dynamic" else step.y
        weight = self.of(step.adversarial_logits.detach(), y)
        if self.scale == "constant":
            return self.constant * weight
        mean = step.batch_mean(weight)
        if float(mean) == 0:  # NaN passes: the check of the loss names the term that diverged
            raise InstanceWeightsError(
                f"the mail weights of all examples of the batch are zero at slope {self.slope:g} and bias "
                f"{self.bias:g}: lower the slope"
            )
        return weight / mean

    def of(self, logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Weights before they are scaled."""
        return torch.sigmoid(self.slope * (probability_margin(logits, ClassificationGoal(y)) + self.bias))
