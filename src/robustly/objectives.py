"""Objectives and goals: per-example functions to maximise, and the outputs that count as success."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Output = Float[Tensor, "n ..."]
Logits = Float[Tensor, "n k"]
PerExample = Float[Tensor, " n"]


@runtime_checkable
class Goal(Protocol):
    """Success of an adversary, defined for the outputs of N examples.

    Classification is one kind (`ClassificationGoal`). Searches and evidence use only these methods.
    """

    def check(self, output: Output) -> None:
        """Reject the model's first output if it does not fit the goal.

        Raises:
            ValueError: an unsuitable shape; the message names it and the required one.
        """
        ...

    def reached(self, output: Output) -> Bool[Tensor, " n"]:
        """True where the model's output is a success."""
        ...

    def margin(self, output: Output) -> PerExample:
        """Margin of the adversary: positive where the model fails, larger closer to a failure."""
        ...

    def select(self, index: Tensor) -> "Goal":
        """Goals of some of the examples: a mask or positions."""
        ...


@dataclass(frozen=True)
class ClassificationGoal:
    """Misclassification: any wrong class, or one target class per example.

    Args:
        y: true labels `(N,)`.
        target: classes to reach `(N,)`; None accepts any wrong class.
        reference: logits `(N, K)` that a divergence is measured from: those of the clean input, or of a teacher.
    """

    y: Int64[Tensor, " n"]
    target: Int64[Tensor, " n"] | None = None
    reference: Float[Tensor, "n k"] | None = None

    def check(self, output: Output) -> None:
        """Reject outputs other than logits `(N, K)`, K >= 2, and labels outside 0..K-1.

        Raises:
            ValueError: such outputs or labels.
        """
        if output.ndim != 2 or len(output) != len(self.y) or output.shape[1] < 2:
            raise ValueError(
                f"the model must return logits ({len(self.y)}, classes >= 2), got {tuple(output.shape)}"
            )
        for name, classes in (("labels", self.y), ("target classes", self.target)):
            if classes is None or len(classes) == 0:
                continue
            least, largest = int(classes.min()), int(classes.max())
            if least < 0 or largest >= output.shape[1]:
                raise ValueError(f"{name} span {least}..{largest}, the model has classes 0..{output.shape[1] - 1}")

    def reached(self, output: Logits) -> Bool[Tensor, " n"]:
        """True where the prediction is a wrong class (the target, if there is one); ties go to the lowest class."""
        prediction = output.argmax(1)
        return prediction != self.y if self.target is None else prediction == self.target

    def margin(self, output: Logits) -> PerExample:
        """max_{j != y} z_j - z_y, with or without target: closeness to misclassification."""
        return margin(output, ClassificationGoal(self.y))

    def select(self, index: Tensor) -> "ClassificationGoal":
        """Goals of some of the examples: a mask or positions."""
        target = None if self.target is None else self.target[index]
        reference = None if self.reference is None else self.reference[index]
        return type(self)(self.y[index], target, reference)


@dataclass(frozen=True)
class CostGoal:
    """Misclassification with a cost: a predicted class j with C_yj > 0 (Zhang and Evans, ICLR 2019).

    Other wrong classes are failures of the adversary. Objectives without a target class work on this goal as on
    `ClassificationGoal`; `cost_weighted` is its own.

    Args:
        y: true labels `(N,)`.
        costs: rows C_y of the cost matrix `(N, K)`, at least 0, 0 at the label.
    """

    y: Int64[Tensor, " n"]
    costs: Float[Tensor, "n k"]

    target: ClassVar[None] = None

    def check(self, output: Output) -> None:
        """Reject outputs that are not logits of the cost matrix's classes, and examples without a costly class.

        Raises:
            ValueError: such outputs or examples.
        """
        ClassificationGoal(self.y).check(output)
        if self.costs.shape != output.shape:
            raise ValueError(
                f"the costs have the shape {tuple(self.costs.shape)}, the logits {tuple(output.shape)}"
            )
        if not bool((self.costs > 0).any(1).all()):
            raise ValueError("no confusion of some examples has a cost: leave these examples out")

    def reached(self, output: Logits) -> Bool[Tensor, " n"]:
        """True where the predicted class has a cost; ties go to the lowest class."""
        return _pick(self.costs, output.argmax(1)) > 0

    def margin(self, output: Logits) -> PerExample:
        """max z_j - z_y over the costly classes j; not negative where the goal is reached."""
        costly = output.masked_fill(self.costs <= 0, torch.finfo(output.dtype).min)
        return costly.amax(1) - _pick(output, self.y)

    def select(self, index: Tensor) -> "CostGoal":
        """Goals of some of the examples: a mask or positions."""
        return CostGoal(self.y[index], self.costs[index])


Objective = Callable[[Output, Any], PerExample]
"""From the model's outputs and the goals of N examples to a value `(N,)`; larger is better for the adversary."""


@runtime_checkable
class Scheduled(Protocol):
    """Objective that changes from step to step of a search."""

    def at(self, step: int, steps: int) -> Objective:
        """Objective of step `step`, from 0, of a search of `steps` steps."""
        ...


@dataclass(frozen=True)
class Alternating:
    """Several objectives in turn, each for an equal share of the steps (Xie et al., arXiv 2411.15210, "alt").

    Outside of a search with steps it is the last of them.

    Args:
        objectives: in the order of their turns.
    """

    objectives: tuple[Objective, ...]

    def __call__(self, logits: Logits, goal: ClassificationGoal) -> PerExample:
        """Value of the last objective."""
        return self.objectives[-1](logits, goal)

    def at(self, step: int, steps: int) -> Objective:
        """Objective of a step of a search."""
        return self.objectives[min(max(step, 0) * len(self.objectives) // max(steps, 1), len(self.objectives) - 1)]


def at_step(objective: Objective, step: int, steps: int) -> Objective:
    """Objective to maximise at a step of a search: the same at every step unless it is `Scheduled`."""
    # `isinstance(objective, Scheduled)` takes longer than the arithmetic of a step of a small batch
    at: Callable[[int, int], Objective] | None = getattr(objective, "at", None)
    return objective if at is None else at(step, steps)


def cross_entropy(logits: Logits, goal: ClassificationGoal) -> PerExample:
    """-log p_y; targeted: log p_t."""
    if goal.target is None:
        return F.cross_entropy(logits, goal.y, reduction="none")
    return -F.cross_entropy(logits, goal.target, reduction="none")


def margin(logits: Logits, goal: ClassificationGoal) -> PerExample:
    """max_{j != y} z_j - z_y, positive where the example is misclassified; targeted: z_t - z_y.

    The "CW" objective of the adversarial-training literature (Carlini and Wagner 2017, f_6).
    """
    at_y = _pick(logits, goal.y)
    if goal.target is None:
        return _largest_but(logits, goal.y) - at_y
    return _pick(logits, goal.target) - at_y


def difference_of_logits_ratio(logits: Logits, goal: ClassificationGoal) -> PerExample:
    """DLR: the margin divided by the spread of the largest logits, and so invariant to their scale.

    Untargeted -(z_y - max_{j != y} z_j) / (z_1st - z_3rd), targeted
    -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2) (Croce and Hein, "Reliable evaluation of adversarial robustness",
    ICML 2020, eqs. 6 and 7). With fewer than 3 classes (targeted: 4) there is no such spread: it equals the margin.
    """
    needed = 3 if goal.target is None else 4
    if logits.shape[1] < needed:
        return margin(logits, goal)
    ordered = logits.topk(needed, dim=1).values
    floor = ordered[:, 2] if goal.target is None else (ordered[:, 2] + ordered[:, 3]) / 2
    return margin(logits, goal) / (ordered[:, 0] - floor + 1e-12)


def kl_divergence(logits: Logits, goal: ClassificationGoal) -> PerExample:
    """KL(p || p') from the reference's distribution p to the prediction's p'.

    TRADES' inner objective (Zhang et al., ICML 2019, eq. 5). Its gradient is zero where the two agree: use a random
    start.

    Raises:
        ValueError: the goal has no reference logits.
    """
    if goal.reference is None:
        raise ValueError("the KL objective requires reference logits: give ClassificationGoal(y, reference=logits)")
    divergence = kl(goal.reference, logits)
    return divergence if goal.target is None else -divergence


def kl(reference: Logits, logits: Logits) -> PerExample:
    """KL(softmax(reference) || softmax(logits)), with gradient through both."""
    log_p = reference.log_softmax(1)
    return (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1)


def probability_margin(logits: Logits, goal: ClassificationGoal) -> PerExample:
    """max_{j != y} p_j - p_y, in (-1, 1); targeted: p_t - p_y (Xie et al., arXiv 2411.15210)."""
    return margin(logits.softmax(1), goal)


def scaled_cross_entropy(logits: Logits, goal: ClassificationGoal) -> PerExample:
    """Cross-entropy of the logits divided by their spread z_1st - z_2nd (MIFPE, Yu and Xu, CVPR 2023).

    The spread is a constant to the gradient. Without it, the gradient of a confident network rounds to zero in
    float32.
    """
    ordered = logits.detach().topk(2, dim=1).values
    spread = (ordered[:, 0] - ordered[:, 1]).clamp_min(1e-6)
    return cross_entropy(logits / spread[:, None], goal)


def cost_weighted(logits: Logits, goal: CostGoal) -> PerExample:
    """log sum_j C_yj exp(z_j - z_y): a soft maximum of the margins that prefers costly classes.

    The logarithm of the outer loss's cost term (Zhang and Evans, ICLR 2019), at a point.
    A factor of all costs adds a constant.
    """
    gaps = logits - _pick(logits, goal.y)[:, None]
    return (gaps + goal.costs.to(logits).log()).logsumexp(1)


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": difference_of_logits_ratio,
    "kl": kl_divergence,
    "probability_margin": probability_margin,
    "scaled_cross_entropy": scaled_cross_entropy,
    "alternating": Alternating((cross_entropy, difference_of_logits_ratio, margin)),
}


def _pick(values: Logits, classes: Int64[Tensor, " n"]) -> PerExample:
    return values.gather(1, classes[:, None])[:, 0]


def _largest_but(values: Logits, classes: Int64[Tensor, " n"]) -> PerExample:
    """Largest entry of each row, except that of the given class."""
    others = values.scatter(1, classes[:, None], torch.finfo(values.dtype).min)
    return others.amax(1)
