"""What the adversary maximises: per-example functions of the logits, larger is better for the adversary."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Logits = Float[Tensor, "n k"]
PerExample = Float[Tensor, " n"]


@dataclass(frozen=True)
class Goal:
    """What the adversary wants of each example.

    Args:
        y: true labels `(N,)`.
        target: classes to reach `(N,)`; without it any wrong class will do.
        reference: logits `(N, K)` that a divergence is measured from: those of the clean image, or a teacher's.
    """

    y: Int64[Tensor, " n"]
    target: Int64[Tensor, " n"] | None = None
    reference: Float[Tensor, "n k"] | None = None

    def select(self, index: Tensor) -> "Goal":
        """The goals of some of the examples: a mask or positions."""
        target = None if self.target is None else self.target[index]
        reference = None if self.reference is None else self.reference[index]
        return Goal(self.y[index], target, reference)

    def reached(self, logits: Logits) -> Bool[Tensor, " n"]:
        """Whether the prediction is what the adversary wants; ties go to the lowest class."""
        prediction = logits.argmax(1)
        return prediction != self.y if self.target is None else prediction == self.target


Objective = Callable[[Logits, Goal], PerExample]


def cross_entropy(logits: Logits, goal: Goal) -> PerExample:
    """-log p_y; targeted: log p_t."""
    if goal.target is None:
        return F.cross_entropy(logits, goal.y, reduction="none")
    return -F.cross_entropy(logits, goal.target, reduction="none")


def margin(logits: Logits, goal: Goal) -> PerExample:
    """max_{j != y} z_j - z_y, positive once the example is misclassified; targeted: z_t - z_y.

    The "CW" objective of the adversarial-training literature (Carlini and Wagner 2017, f_6).
    """
    at_y = _pick(logits, goal.y)
    if goal.target is None:
        return _largest_but(logits, goal.y) - at_y
    return _pick(logits, goal.target) - at_y


def difference_of_logits_ratio(logits: Logits, goal: Goal) -> PerExample:
    """DLR: the margin over the spread of the largest logits, so that scaling the logits changes nothing.

    Untargeted -(z_y - max_{j != y} z_j) / (z_1st - z_3rd), targeted
    -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2) (Croce and Hein, "Reliable evaluation of adversarial robustness",
    ICML 2020, eqs. 6 and 7).

    Raises:
        ValueError: fewer than 3 classes (targeted: 4).
    """
    needed = 3 if goal.target is None else 4
    if logits.shape[1] < needed:
        raise ValueError(
            f"the DLR objective needs {needed} classes, the model has {logits.shape[1]}: use 'margin' instead"
        )
    ordered = logits.topk(needed, dim=1).values
    floor = ordered[:, 2] if goal.target is None else (ordered[:, 2] + ordered[:, 3]) / 2
    return margin(logits, goal) / (ordered[:, 0] - floor + 1e-12)


def kl_divergence(logits: Logits, goal: Goal) -> PerExample:
    """KL(p || p') from the reference's distribution p to the prediction's p'.

    TRADES' inner objective (Zhang et al., ICML 2019, eq. 5). Its gradient is zero where the two agree: start from
    noise.

    Raises:
        ValueError: the goal has no reference logits.
    """
    if goal.reference is None:
        raise ValueError("the KL objective measures from reference logits: give Goal(y, reference=logits)")
    divergence = kl(goal.reference, logits)
    return divergence if goal.target is None else -divergence


def kl(reference: Logits, logits: Logits) -> PerExample:
    """KL(softmax(reference) || softmax(logits)), with gradient through both."""
    log_p = reference.log_softmax(1)
    return (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1)


def probability_margin(logits: Logits, goal: Goal) -> PerExample:
    """max_{j != y} p_j - p_y, in (-1, 1); targeted: p_t - p_y (Xie et al., arXiv 2411.15210)."""
    return margin(logits.softmax(1), goal)


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": difference_of_logits_ratio,
    "kl": kl_divergence,
    "probability_margin": probability_margin,
}


def _pick(values: Logits, classes: Int64[Tensor, " n"]) -> PerExample:
    return values.gather(1, classes[:, None])[:, 0]


def _largest_but(values: Logits, classes: Int64[Tensor, " n"]) -> PerExample:
    """The largest entry of each row beside that of the given class."""
    others = values.scatter(1, classes[:, None], torch.finfo(values.dtype).min)
    return others.amax(1)
