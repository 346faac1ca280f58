"""Inner maximisations under several threats: the worst of them for each image (MAX), and all of them (AVG).

Both are of Tramer and Boneh, "Adversarial training and robustness for multiple perturbations", NeurIPS 2019 (arXiv
1904.13000, section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from robustly.attacks import PGD, AttackResult
from robustly.attacks.core.contract import ModelMode
from robustly.attacks.pgd import Start
from robustly.objectives import ClassificationGoal, cross_entropy
from robustly.threats import short_names
from robustly.threats.balls import laid_out_like
from robustly.training.inner.pgd import attack_step, training_pgd
from robustly.training.parts import Part
from robustly.training.step import LabelOrigin, Step


@runtime_checkable
class ThreatPGD(Protocol):
    """Settings of the PGD that runs under each threat."""

    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def relative_step_size(self) -> float | None: ...  # noqa: D102
    @property
    def start(self) -> Start: ...  # noqa: D102
    @property
    def mode(self) -> ModelMode: ...  # noqa: D102
    @property
    def against(self) -> LabelOrigin: ...  # noqa: D102


def search_of(part: ThreatPGD) -> PGD:
    """PGD on the cross-entropy with the settings of a part.

    Raises:
        ValueError: a setting out of range.
    """
    return training_pgd(part.steps, relative_step_size=part.relative_step_size, start=part.start, mode=part.mode)


def attack_under(step: Step, part: ThreatPGD, number: int) -> AttackResult:
    """Attack the batch of a step under one threat of the run, by its number from 0."""
    return attack_step(step, search_of(part), against=part.against, threat=step.threats[number])


def note_accuracy(step: Step, number: int, correct: Bool[Tensor, " n"]) -> None:
    """Add to the column `train_robust_accuracy_NAME` of one threat, by its number from 0."""
    step.note(f"train_robust_accuracy_{short_names(step.threats)[number]}", correct)


def note_shares(step: Step, shares: Sequence[Tensor]) -> None:
    """Add to the columns `threat_share_NAME`: for each threat the share `(N,)` of an example's attack."""
    for name, share in zip(short_names(step.threats), shares, strict=True):
        step.note(f"threat_share_{name}", share)


@dataclass(frozen=True)
class MaxInner(Part):
    """MAX: PGD on the cross-entropy under every threat; each image gets the result of the highest cross-entropy.

    With m threats it costs m times the passes of PGD, and m forward passes to compare the results. With one threat
    it is PGD. The columns `train_robust_accuracy_NAME` are measured at these results, in the mode of the attack;
    `threat_share_NAME` is the share of images for which a threat is the worst.

    Args:
        steps: gradient steps under each threat.
        relative_step_size: length of a step as a share of each threat's size; without it, each threat's own default
            (2.5 sizes / steps for linf and l2, a fifth of the size for l1).
        start: "random" (uniform in each threat set), "gaussian" (0.001 noise), "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels that the attacks work against: the label source or the data set.

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

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step under every threat, and choose the worst result for each image."""
        found = [attack_under(step, self, number) for number in range(len(step.threats))]
        if len(found) == 1:
            return found[0]
        logits = [step.attacked_logits(one.x_adv, self.mode) for one in found]
        goal = ClassificationGoal(step.labels_from(self.against))
        worst = torch.stack([cross_entropy(one, goal) for one in logits]).argmax(0)
        for number, one in enumerate(logits):
            note_accuracy(step, number, one.argmax(1) == step.y)
        note_shares(step, [worst == number for number in range(len(found))])
        return _chosen(step, found, worst)


def _chosen(step: Step, found: Sequence[AttackResult], chosen: Int64[Tensor, " n"]) -> AttackResult:
    """One of several results for each example, after a forward pass at each of them."""
    rows = torch.arange(len(chosen), device=chosen.device)

    def pick(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values))[chosen, rows]

    return AttackResult(
        laid_out_like(step.x, pick([one.x_adv for one in found])),
        pick([one.broken for one in found]),
        pick([one.distance for one in found]),
        torch.stack([one.forwards + 1 for one in found]).sum(0),
        torch.stack([one.backwards for one in found]).sum(0),
        pick([one.correct_iterates for one in found]),
        torch.stack([one.invalid for one in found]).any(0),
    )


@dataclass(frozen=True)
class AvgInner(Part):
    """AVG: PGD on the cross-entropy under every threat; the outer loss is averaged over all results.

    The outer loss, of whatever kind, is evaluated with the result of each threat, and every term is the mean over
    the threats. Clean logits are computed once. With m threats it costs m times the passes of PGD and m times the
    passes of the outer loss at adversarial images. With one threat it is PGD. The columns
    `train_robust_accuracy_NAME` are measured at the logits of the outer loss.

    Args:
        steps: gradient steps under each threat.
        relative_step_size: length of a step as a share of each threat's size; without it, each threat's own default
            (2.5 sizes / steps for linf and l2, a fifth of the size for l1).
        start: "random" (uniform in each threat set), "gaussian" (0.001 noise), "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels that the attacks work against: the label source or the data set.

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

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step under the first threat."""
        return attack_under(step, self, 0)

    def further_attacks(self, step: Step) -> tuple[AttackResult, ...]:
        """Attack the batch of a step under each other threat."""
        return tuple(attack_under(step, self, number) for number in range(1, len(step.threats)))

    def after_backward(self, step: Step) -> None:
        """Note the accuracy under each threat, where the outer loss has the model's logits."""
        if len(step.threats) == 1:
            return
        for number, one in enumerate((step, *step.others)):
            logits = one.quantities.computed("adversarial")
            if logits is not None:
                note_accuracy(step, number, logits.argmax(1) == step.y)
