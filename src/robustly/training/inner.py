"""Second part of a method: the inner maximisation, an attack on an objective."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from robustly.attacks import PGD, Attack, AttackResult
from robustly.attacks.core.contract import ModelMode
from robustly.attacks.pgd import Start
from robustly.objectives import OBJECTIVES, ClassificationGoal, Objective, cross_entropy
from robustly.threats.lp import ThreatModel
from robustly.training.step import Step, Whose


def attack_step(
    step: Step,
    attack: Attack,
    *,
    against: Whose = "labels",
    reference: Float[Tensor, "n k"] | None = None,
    threat: ThreatModel | None = None,
) -> AttackResult:
    """Run any attack on the batch of a step.

    Args:
        step: the step.
        attack: the search with its objective.
        against: whose labels the attack works against: the label source's or the data set's.
        reference: logits that the objective compares with, if it does.
        threat: another threat than the run's, for parts that train against several.
    """
    goal = ClassificationGoal(step.labels_by(against), reference=reference)
    return attack(step.model, step.x, goal, threat=threat or step.threat, generator=step.generator.fold("inner"))


def training_pgd(
    steps: int,
    objective: Objective = cross_entropy,
    *,
    step_size: float | None = None,
    relative_step_size: float | None = None,
    start: Start = "random",
    mode: ModelMode = "eval",
) -> PGD:
    """PGD as training uses it: the last iterate, no early stop, the precision of the run."""
    return PGD(
        steps=steps,
        objective=objective,
        step_size=step_size,
        relative_step_size=relative_step_size,
        start=start,
        mode=mode,
        early_stop=False,
        keep="last",
        precision="ambient",
    )


@runtime_checkable
class Ascent(Protocol):
    """The settings of gradient ascent that inner maximisations share."""

    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def step_size(self) -> float | None: ...  # noqa: D102
    @property
    def relative_step_size(self) -> float | None: ...  # noqa: D102
    @property
    def start(self) -> Start: ...  # noqa: D102
    @property
    def mode(self) -> ModelMode: ...  # noqa: D102


def pgd_of(part: Ascent, objective: Objective = cross_entropy) -> PGD:
    """The search that an inner maximisation's settings describe.

    Raises:
        ValueError: a setting out of range.
    """
    return training_pgd(
        part.steps,
        objective,
        step_size=part.step_size,
        relative_step_size=part.relative_step_size,
        start=part.start,
        mode=part.mode,
    )


@dataclass(frozen=True)
class PGDInner:
    """Projected gradient ascent; the outer loss trains on its last iterate.

    Args:
        objective: "cross_entropy", "margin", "dlr", "kl" (from the clean logits: TRADES) or "probability_margin".
        steps: gradient steps.
        step_size: in units of the images; or
        relative_step_size: as a share of epsilon; with neither, 2.5 epsilon / steps.
        start: "random" (uniform in the threat set), "gaussian" (0.001 noise, TRADES), "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: whose labels the attack works against: those of the label source or of the data set.
        reference: whose logits on the clean images "kl" starts from: the model's own, in the mode of the attack
            ("clean"), or the teacher's ("teacher": RSLAD).

    Raises:
        ValueError: "kl" without a random start, where its gradient is zero; a reference that nothing would use.
    """

    objective: Literal["cross_entropy", "margin", "dlr", "kl", "probability_margin"] = "cross_entropy"
    steps: int = 10
    step_size: float | None = None
    relative_step_size: float | None = None
    start: Start = "random"
    mode: ModelMode = "eval"
    against: Whose = "labels"
    reference: Literal["clean", "teacher"] = "clean"

    def __post_init__(self) -> None:
        if self.reference == "teacher" and self.objective != "kl":
            raise ValueError(f"reference 'teacher' is for objective 'kl', {self.objective!r} compares with nothing")
        if self.objective == "kl" and self.start == "none" and self.reference == "clean":
            raise ValueError(
                "objective 'kl' has zero gradient at the clean image: set start to 'gaussian' or 'random'"
            )
        pgd_of(self)

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        reference = None
        if self.objective == "kl" and self.reference == "teacher":
            reference = step.teacher_logits("teacher")
        elif self.objective == "kl":
            reference = step.reference_in(self.mode)
        return attack_step(
            step, pgd_of(self, OBJECTIVES[self.objective]), against=self.against, reference=reference
        )

    @property
    def networks(self) -> tuple[str, ...]:
        """Roles of further networks."""
        return ("teacher",) if self.reference == "teacher" else ()
