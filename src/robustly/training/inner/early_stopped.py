"""Inner maximisations with per-example early stopping: FAT, and the curricula of SAT."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import Images, ModelMode
from robustly.attacks.core.model_access import logits_of
from robustly.attacks.core.search_state import Rows
from robustly.attacks.pgd import Start
from robustly.objectives import OBJECTIVES, ClassificationGoal, Goal, cross_entropy, probability_margin
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import per_example
from robustly.training.inner.pgd import ascend, pgd_of
from robustly.training.parts import Part
from robustly.training.step import LabelOrigin, Logits, Step


@dataclass(frozen=True)
class FriendlyInner(Part):
    """Friendly adversarial training: an example stops tau steps after it was first misclassified.

    An example starts with patience tau. Before every step a misclassified example loses one unit of patience, and
    one without patience stops for good. Every step adds noise omega N(0, 1) before it projects. Zhang et al.,
    "Attacks which do not kill training make adversarial learning stronger", ICML 2020, algorithm 1. With tau =
    steps and no noise it is PGD.

    Args:
        taus: tau before, between and after the boundaries: one more than those; each at most `steps`. The paper's
            FAT has 0, 1, 2.
        boundaries: finished epochs at which tau changes, ascending; 50 and 90 of 120 in the paper.
        noise: omega, at least 0; 0.001 for FAT, 0 for FAT-TRADES and FAT-MART.
        objective: "cross_entropy" (FAT, FAT-MART) or "kl" from the clean logits (FAT-TRADES).
        steps: gradient steps at most.
        step_size: in units of the images; or
        relative_step_size: as a share of epsilon; with neither, 2.5 epsilon / steps.
        start: "random" (FAT), "gaussian" (FAT-TRADES, FAT-MART), "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels that the attack works against, and that decide about "misclassified": the
            label source or the data set.

    Raises:
        ValueError: a tau beyond the steps; taus and boundaries that do not fit together; "kl" from the clean image.
    """

    stops_early = True

    taus: tuple[int, ...] = (0, 1, 2)
    boundaries: tuple[float, ...] = (50.0, 90.0)
    noise: float = 0.001
    objective: Literal["cross_entropy", "kl"] = "cross_entropy"
    steps: int = 10
    step_size: float | None = None
    relative_step_size: float | None = None
    start: Start = "random"
    mode: ModelMode = "eval"
    against: LabelOrigin = "labels"

    def __post_init__(self) -> None:
        if len(self.taus) != len(self.boundaries) + 1:
            raise ValueError(
                f"taus must be one more than boundaries, got {len(self.taus)} and {len(self.boundaries)}"
            )
        if any(later <= earlier for earlier, later in pairwise(self.boundaries)):
            raise ValueError(f"boundaries must ascend, got {list(self.boundaries)}")
        if any(not 0 <= tau <= self.steps for tau in self.taus):
            raise ValueError(f"every tau must lie between 0 and steps ({self.steps}), got {list(self.taus)}")
        if not self.noise >= 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")
        if self.objective == "kl" and self.start == "none":
            raise ValueError(
                "objective 'kl' has zero gradient at the clean image: set start to 'gaussian' or 'random'"
            )
        pgd_of(self)

    def tau_at(self, time: float) -> int:
        """The patience after `time` epochs."""
        return self.taus[sum(time >= boundary for boundary in self.boundaries)]

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        patience = torch.full_like(step.y, self.tau_at(step.moment.time))

        def settled(rows: Rows, points: Images, logits: Logits, goal: Goal) -> Bool[Tensor, " m"]:
            wrong = goal.reached(logits)
            left = patience[rows]
            patience[rows] = left - wrong.long()
            return wrong & (left == 0)

        reference = None
        if self.objective == "kl":
            reference = step.reference_in(self.mode)
        pgd = pgd_of(self, OBJECTIVES[self.objective])
        goal = ClassificationGoal(step.labels_from(self.against), reference=reference)
        return ascend(step, pgd, goal, settled=settled, noise=self.noise)


@dataclass(frozen=True)
class CurriculumInner(Part):
    """SAT: an example stops at its first iterate whose difficulty psi exceeds lambda_t, which grows to 1.

    Sitawarin, Chakraborty and Wagner, "SAT: improving adversarial training via curriculum-based loss smoothing",
    AISec 2021 (arXiv 2003.09347). P-SAT: psi = max_{j != y} p'_j - p'_y. H-SAT: psi from the largest eigenvalue of
    the Hessian of the loss in the input. No training code is public. Three things are therefore ours: lambda_t =
    first + (1 - first) min(1, time / (ramp epochs)), keeping the first iterate beyond the limit, and the estimate
    of H-SAT. At lambda_t = 1 there is no limit: it is PGD on the cross-entropy.

    H-SAT here: e = |v^T H v| after `power_steps` steps of power iteration from a random direction v, with
    H v = (grad(x' + h v) - grad(x' - h v)) / (2 h), h = 0.01, and psi = e / (e + curvature), in [0, 1). Every step
    of the iteration costs two more forward and two more backward passes at every iterate.

    Args:
        criterion: "margin" (P-SAT) or "hessian" (H-SAT).
        first: lambda at the start, in [-1, 1]; 0 stops at the decision boundary.
        ramp: share of the run during which lambda grows, in [0, 1]; with 0 it is 1 from the start.
        curvature: for "hessian": the eigenvalue at which psi is 1/2, in loss per squared (Euclidean) distance.
        power_steps: for "hessian": steps of power iteration.
        steps: gradient steps at most.
        step_size: in units of the images; or
        relative_step_size: as a share of epsilon; with neither, 2.5 epsilon / steps.
        start: "random", "gaussian", "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels that the attack works against: the label source or the data set.

    Raises:
        ValueError: a setting out of range; "hessian" in mode "train", where its passes would change running
            statistics.
    """

    stops_early = True

    criterion: Literal["margin", "hessian"] = "margin"
    first: float = 0.0
    ramp: float = 0.5
    curvature: float = 1.0
    power_steps: int = 3
    steps: int = 10
    step_size: float | None = None
    relative_step_size: float | None = None
    start: Start = "random"
    mode: ModelMode = "eval"
    against: LabelOrigin = "labels"

    def __post_init__(self) -> None:
        if not (-1 <= self.first <= 1 and 0 <= self.ramp <= 1):
            raise ValueError(f"first must lie in [-1, 1] and ramp in [0, 1], got {self.first} and {self.ramp}")
        if not (self.curvature > 0 and self.power_steps >= 1):
            raise ValueError(
                f"curvature must be positive and power_steps at least 1, got {self.curvature}, {self.power_steps}"
            )
        if self.criterion == "hessian" and self.mode == "train":
            raise ValueError(
                "criterion 'hessian' needs mode 'eval' or 'train_nostat': its passes must not "
                "change running statistics"
            )
        pgd_of(self)

    def limit_at(self, share: float) -> float:
        """lambda after a share of the run."""
        return 1.0 if share >= self.ramp else self.first + (1 - self.first) * share / self.ramp

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        limit = self.limit_at(step.moment.time / step.moment.epochs)
        pgd, goal = pgd_of(self), ClassificationGoal(step.labels_from(self.against))
        if limit >= 1:
            return ascend(step, pgd, goal)
        correct_at_rest = torch.zeros_like(step.y)

        def settled(rows: Rows, points: Images, logits: Logits, _: Goal) -> Bool[Tensor, " m"]:
            here = goal.select(rows)
            if self.criterion == "margin":
                hard = probability_margin(logits, here) > limit
            else:
                e = curvature_at(step, points, here, step.generator.select(rows).fold("power"), self.power_steps)
                hard = e / (e + self.curvature) > limit
            correct_at_rest[rows] = (hard & ~here.reached(logits)).long()
            return hard

        found = ascend(step, pgd, goal, settled=settled)
        # an example that stops at a correctly classified point counts as correct from then on (kappa of GAIRAT)
        correct = found.correct_iterates + correct_at_rest * (self.steps - found.forwards)
        extra = 2 * self.power_steps * found.forwards if self.criterion == "hessian" else 0
        return replace(
            found,
            correct_iterates=correct,
            forwards=found.forwards + extra,
            backwards=found.backwards + extra,
        )


def curvature_at(
    step: Step,
    points: Images,
    goal: ClassificationGoal,
    draws: KeyedGenerator,
    power_steps: int,
    distance: float = 0.01,
) -> Float[Tensor, " m"]:
    """|v^T H v| of the Hessian H of the cross-entropy in the input, after some steps of power iteration.

    Args:
        step: the step, whose model is evaluated in its current mode.
        points: images `(M, ...)`.
        goal: the labels, `(M,)`.
        draws: random numbers of these examples, for the first direction.
        power_steps: steps of power iteration, at least 1.
        distance: h of the finite differences.
    """

    def gradient(at: Images) -> Images:
        at = at.detach().requires_grad_()
        logits = logits_of(step.model, at)
        return torch.autograd.grad(cross_entropy(logits, goal).sum(), at)[0]

    def unit(values: Images) -> Images:
        length = values.flatten(1).norm(dim=1)
        return values / per_example(torch.where(length > 0, length, 1.0), values)

    direction = unit(draws.normal(*points.shape[1:]).to(points))
    curvature = torch.zeros(len(points), device=points.device, dtype=points.dtype)
    for _ in range(power_steps):
        bent = (gradient(points + distance * direction) - gradient(points - distance * direction)) / (2 * distance)
        curvature = (direction * bent).flatten(1).sum(1).abs()
        direction = unit(bent)
    return curvature
