"""Inner maximisation between the attacks of PGD-AT and TRADES: cross-entropy and KL divergence, mixed."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import ModelMode
from robustly.attacks.pgd import Start
from robustly.objectives import ClassificationGoal
from robustly.training.inner.pgd import attack_step, pgd_of
from robustly.training.losses.terms import check_share, soft_cross_entropy
from robustly.training.parts import Part
from robustly.training.step import LabelOrigin, Logits, Moment, Step


@dataclass(frozen=True)
class MixedInner(Part):
    """Projected gradient ascent on (1 - w) CE(z', y) + w KL(p || p'), with a weight w for each example.

    In x' it is, up to a constant, the cross-entropy from the distribution (1 - w) e_y + w p, where p is the
    prediction on the clean image in the mode of the attack. Weight 0 is the attack of PGD-AT, weight 1 that of
    TRADES (Zhang et al., ICML 2019, eq. 5) and DYNAT (arXiv 2408.13102, eq. 3). The two differ most on clean images
    that the model gets wrong: there KL moves the prediction away from a wrong class, possibly towards the label.
    No paper reports this attack.

    Args:
        kl: weight or share of KL, in [0, 1].
        kl_end: the same at the end of the run, which it approaches linearly; `kl` throughout without it.
        by: "value" gives every example the weight `kl`; "draw" gives it the weight 1 with probability `kl`, and
            else 0, anew at every step of training.
        kl_on: clean images that KL is for: "all", those that the model gets "wrong" or "right"; otherwise w is 0.
        steps: gradient steps.
        step_size: in units of the images; or
        relative_step_size: as a share of epsilon; with neither, 2.5 epsilon / steps.
        start: "random" (uniform in the threat set), "gaussian" (0.001 noise, TRADES), "halfway", or "none", where
            the gradient of KL is zero.
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels y: the label source or the data set.

    Raises:
        ValueError: a share outside [0, 1]; KL for all examples from start "none".
    """

    kl: float = 0.5
    kl_end: float | None = None
    by: Literal["value", "draw"] = "value"
    kl_on: Literal["all", "wrong", "right"] = "all"
    steps: int = 10
    step_size: float | None = None
    relative_step_size: float | None = None
    start: Start = "random"
    mode: ModelMode = "eval"
    against: LabelOrigin = "labels"

    def __post_init__(self) -> None:
        check_share("kl", self.kl)
        if self.kl_end is not None:
            check_share("kl_end", self.kl_end)
        if self.start == "none" and max(self.kl, self.kl_end or 0.0) > 0:
            raise ValueError("KL has zero gradient at the clean image: set start to 'gaussian' or 'random'")
        pgd_of(self)

    def kl_at(self, moment: Moment) -> float:
        """Weight or share of KL at a moment of the run."""
        end = self.kl if self.kl_end is None else self.kl_end
        return self.kl + (end - self.kl) * moment.time / moment.epochs

    def weights(self, step: Step, reference: Logits) -> Float[Tensor, " n"]:
        """w of each example.

        Args:
            step: the step.
            reference: logits of the clean images in the mode of the attack.
        """
        share = self.kl_at(step.moment)
        weight = reference.new_full((len(reference),), share)
        if self.by == "draw":
            drawn = step.generator.fold("attack by kl").uniform(1)[:, 0] < share
            weight = drawn.to(reference.dtype)
        if self.kl_on != "all":
            right = reference.argmax(1) == step.labels_from(self.against)
            weight = weight * (right if self.kl_on == "right" else ~right)
        return weight

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        reference = step.reference_in(self.mode)
        weight = self.weights(step, reference)[:, None]
        label = F.one_hot(step.labels_from(self.against), reference.shape[1]).to(reference.dtype)
        target = (1 - weight) * label + weight * reference.softmax(1)
        return attack_step(step, pgd_of(self, _from_target), against=self.against, reference=target.log())


def _from_target(logits: Logits, goal: ClassificationGoal) -> Float[Tensor, " n"]:
    """Cross-entropy from the goal's reference, which may hold minus infinity for classes of no weight."""
    assert goal.reference is not None
    return soft_cross_entropy(goal.reference, logits)
