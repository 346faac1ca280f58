"""Inner maximisation by projected gradient ascent, and the two searches of all inner maximisations."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from robustly.attacks import PGD, Attack, AttackResult
from robustly.attacks.core.ascent import STEEPEST, Ascent
from robustly.attacks.core.contract import ModelMode
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import PointValue, Search, Settled
from robustly.attacks.core.update_rules import Noisy
from robustly.attacks.pgd import Start
from robustly.objectives import OBJECTIVES, ClassificationGoal, Objective, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats import Threat
from robustly.training.parts import Part
from robustly.training.step import LabelOrigin, Step


def attack_step(
    step: Step,
    attack: Attack,
    *,
    against: LabelOrigin = "labels",
    reference: Float[Tensor, "n k"] | None = None,
    threat: Threat | None = None,
) -> AttackResult:
    """Run any attack on the batch of a step.

    Args:
        step: the step.
        attack: the search with its objective.
        against: origin of the labels that the attack works against: the label source or the data set.
        reference: logits that the objective compares with, if it needs any.
        threat: threat model of the attack; without it the run's first.
    """
    goal = ClassificationGoal(step.labels_from(against), reference=reference)
    if step.graphs is not None and isinstance(attack, PGD) and attack == training_form(attack):
        return ascend(step, attack, goal, threat=threat)
    return attack(step.attacked, step.x, goal, threat=threat or step.threat, generator=step.generator.fold("inner"))


def ascend(
    step: Step,
    settings: PGD,
    goal: ClassificationGoal,
    *,
    threat: Threat | None = None,
    value_at: PointValue | None = None,
    settled: Settled | None = None,
    noise: float = 0.0,
) -> AttackResult:
    """Projected gradient ascent on the batch of a step; the last iterate of every example is returned.

    Args:
        step: the step.
        settings: steps, step size, start, mode and (without `value_at`) objective.
        goal: the attack's goal, for all N examples.
        threat: threat model of the attack; without it the run's first.
        value_at: an objective that depends on the inputs too.
        settled: examples that stay where they are from now on; evaluated once before each step.
        noise: standard deviation of Gaussian noise that is added before each step, at least 0.

    Returns:
        The inputs, with the passes of each example and its number of correctly classified iterates (kappa of
        GAIRAT).
    """
    ascent = Ascent(
        settings.steps,
        settings.objective,
        lambda count, threat_set: settings.step_sizes(threat_set),
        Noisy(STEEPEST, noise) if noise > 0 else STEEPEST,
        early_stop=settled is not None,
        finish="keep",
        value_at=value_at,
        settled=settled,
    )

    def run(search: Search, generator: KeyedGenerator) -> None:
        draws = generator.fold("restart", 0)
        start = settings.started(search.threat_set, draws)
        if settled is not None:
            start = search.threat_set.project(start)  # an example may settle at its start, which no step projects
        ascent.run(search, search.unbroken, start, search.goal, draws)

    return run_search(
        run,
        step.attacked,
        step.x,
        goal,
        threat=threat or step.threat,
        generator=step.generator.fold("inner"),
        mode=settings.mode,
        precision="ambient",
        verdicts=False,
        graphs=step.graphs,
    )


def training_pgd(
    steps: int,
    objective: Objective = cross_entropy,
    *,
    step_size: float | None = None,
    relative_step_size: float | None = None,
    start: Start = "random",
    mode: ModelMode = "eval",
) -> PGD:
    """PGD for training: it returns the last iterate, stops nowhere early, and keeps the precision of the run."""
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


def training_form(attack: PGD) -> PGD:
    """The PGD for training of the same steps, start, objective and mode."""
    return training_pgd(
        attack.steps,
        attack.objective,
        step_size=attack.step_size,
        relative_step_size=attack.relative_step_size,
        start=attack.start,
        mode=attack.mode,
    )


@runtime_checkable
class AscentSettings(Protocol):
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


def pgd_of(part: AscentSettings, objective: Objective = cross_entropy) -> PGD:
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
class PGDInner(Part):
    """Projected gradient ascent; the outer loss trains on its last iterate.

    Args:
        objective: "cross_entropy", "margin", "dlr", "kl" (from the clean logits: TRADES) or "probability_margin".
        steps: gradient steps.
        step_size: in units of the images; or
        relative_step_size: as a share of epsilon; with neither, 2.5 epsilon / steps.
        start: "random" (uniform in the threat set), "gaussian" (0.001 noise, TRADES), "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels that the attack works against: the label source or the data set.
        reference: logits of the clean images that "kl" measures from: the model's own, in the mode of the attack
            ("clean"), or the teacher's ("teacher": RSLAD).

    Raises:
        ValueError: "kl" without a random start, where its gradient is zero; a reference without "kl".
    """

    objective: Literal["cross_entropy", "margin", "dlr", "kl", "probability_margin"] = "cross_entropy"
    steps: int = 10
    step_size: float | None = None
    relative_step_size: float | None = None
    start: Start = "random"
    mode: ModelMode = "eval"
    against: LabelOrigin = "labels"
    reference: Literal["clean", "teacher"] = "clean"

    def __post_init__(self) -> None:
        if self.reference == "teacher" and self.objective != "kl":
            raise ValueError(f"reference 'teacher' is for objective 'kl', {self.objective!r} has no reference")
        if self.objective == "kl" and self.start == "none" and self.reference == "clean":
            raise ValueError(
                "objective 'kl' has zero gradient at the clean image: set start to 'gaussian' or 'random'"
            )
        pgd_of(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """The teacher's logits, if they are the reference."""
        return ("teacher@clean",) if self.reference == "teacher" else ()

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        reference = None
        if self.objective == "kl" and self.reference == "teacher":
            reference = step.logits("teacher")
        elif self.objective == "kl":
            reference = step.reference_in(self.mode)
        return attack_step(
            step, pgd_of(self, OBJECTIVES[self.objective]), against=self.against, reference=reference
        )
