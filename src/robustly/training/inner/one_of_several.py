"""Inner maximisations under one of several threats, chosen for each batch: stochastic, and by robust accuracy."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import ModelMode
from robustly.attacks.pgd import Start
from robustly.training.inner.several import attack_under, note_accuracy, note_shares, search_of
from robustly.training.parts import Part
from robustly.training.step import LabelOrigin, Step


def drawn(step: Step, weights: Float[Tensor, " m"]) -> int:
    """Number of a threat, from 0, drawn for the whole batch with probabilities in proportion to `weights`.

    Args:
        step: the step; all processes draw the same number.
        weights: at least 0 and not all 0, in double precision.
    """
    point = step.batch_generator.fold("threat").uniform(1)[0].to(weights) * weights.sum()
    return min(int((weights.cumsum(0) <= point).sum()), len(weights) - 1)


def _note(step: Step, number: int, correct: Bool[Tensor, " n"] | None) -> None:
    """Note the chosen threat and the accuracy under it, if there are several."""
    if len(step.threats) > 1:
        note_shares(step, [torch.full_like(step.y, number == other) for other in range(len(step.threats))])
        if correct is not None:
            note_accuracy(step, number, correct)


@dataclass(frozen=True)
class StochasticInner(Part):
    """Stochastic training ("SAT" of Madaan et al.): PGD on the cross-entropy under one threat, drawn per batch.

    Every threat has the same probability. A step costs as much as with one threat; with one it is PGD. Madaan, Shin
    and Hwang, "Learning to generate noise for multi-attack robustness", ICML 2021 (arXiv 2006.12135). In recipes
    `sat` is another method, the curriculum of Sitawarin et al.

    The columns `train_robust_accuracy_NAME` are measured at the logits of the outer loss, in the batches of the
    threat; `threat_share_NAME` is its share of the images.

    Args:
        steps: gradient steps.
        relative_step_size: length of a step as a share of the threat's size; without it, each threat's own default
            (2.5 sizes / steps for linf and l2, a fifth of the size for l1).
        start: "random" (uniform in the threat set), "gaussian" (0.001 noise), "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels that the attack works against: the label source or the data set.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int = 10
    relative_step_size: float | None = None
    start: Start = "random"
    mode: ModelMode = "eval"
    against: LabelOrigin = "labels"

    def __post_init__(self) -> None:
        search_of(self)

    def chosen(self, step: Step) -> int:
        """Number of the batch's threat, from 0."""
        return drawn(step, torch.ones(len(step.threats), dtype=torch.float64))

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step under one threat."""
        return attack_under(step, self, self.chosen(step))

    def after_backward(self, step: Step) -> None:
        """Note the chosen threat, and the accuracy where the outer loss has the model's logits."""
        logits = step.quantities.computed("adversarial")
        _note(step, self.chosen(step), None if logits is None else logits.argmax(1) == step.y)


@dataclass(frozen=True)
class EatInner(Part):
    """E-AT: PGD on the cross-entropy under one threat per batch, drawn with weights 1 - robust training accuracy.

    The accuracy a of a threat is the mean over all its batches since the run began, never reset, at the model's
    logits of the adversarial images in train mode. Until every threat has had a batch, and if all a are 1, all
    threats have the same weight. A step costs as much as with one threat; with one it is PGD. The paper trains
    against linf and l1 only, because robustness to both implies some robustness to l2. Croce and Hein, "Adversarial
    robustness against multiple and single l_p-threat models via quick fine-tuning of robust classifiers", ICML 2022
    (arXiv 2105.12508). Its attack is APGD with 10 steps, ours PGD.

    The columns `train_robust_accuracy_NAME` hold the accuracy in the batches of the threat in this epoch;
    `threat_share_NAME` is its share of the images.

    Args:
        steps: gradient steps.
        relative_step_size: length of a step as a share of the threat's size; without it, each threat's own default
            (2.5 sizes / steps for linf and l2, a fifth of the size for l1).
        start: "random" (uniform in the threat set), "gaussian" (0.001 noise), "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels that the attack works against: the label source or the data set.

    Raises:
        ValueError: a setting out of range.
    """

    reads = ("adversarial",)

    steps: int = 10
    relative_step_size: float | None = None
    start: Start = "random"
    mode: ModelMode = "eval"
    against: LabelOrigin = "labels"

    def __post_init__(self) -> None:
        search_of(self)

    def weights(self, step: Step) -> Float[Tensor, " m"]:
        """Probabilities of the threats, not normalised."""
        memory = step.remember(self)
        if not memory:
            none = torch.zeros(len(step.threats), dtype=torch.float64, device=step.x.device)
            memory |= {"accuracies": none, "batches": none.clone()}
        batches = memory["batches"]
        equal = torch.ones_like(batches)
        if not bool((batches > 0).all()):
            return equal
        weights = 1 - memory["accuracies"] / batches
        return weights if bool((weights > 0).any()) else equal

    def chosen(self, step: Step) -> int:
        """Number of the batch's threat, from 0."""
        return drawn(step, self.weights(step))

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step under one threat."""
        return attack_under(step, self, self.chosen(step))

    def after_backward(self, step: Step) -> None:
        """Add the robust accuracy of the batch to that of its threat."""
        number, correct = self.chosen(step), step.adversarial_logits.argmax(1) == step.y
        _note(step, number, correct)
        memory = step.remember(self)
        memory["accuracies"][number] += step.batch_mean(correct.to(memory["accuracies"]))
        memory["batches"][number] += 1
