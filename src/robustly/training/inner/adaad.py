"""Inner maximisation of AdaAD: the divergence between a teacher and the model."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import Images, ModelMode, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.attacks.pgd import Start
from robustly.objectives import ClassificationGoal, Goal, kl
from robustly.training.inner.pgd import ascend, pgd_of
from robustly.training.parts import Part
from robustly.training.step import LabelOrigin, Logits, Step


@dataclass(frozen=True)
class AdaadInner(Part):
    """Gradient ascent on KL(t(x') || p'), where the teacher's logits depend on x' as well and have a gradient.

    Huang et al., CVPR 2023, as released. Each step costs a forward and a backward pass of both networks.

    Args:
        steps: gradient steps.
        step_size: in units of the images; or
        relative_step_size: as a share of epsilon; with neither, 2.5 epsilon / steps.
        start: "gaussian" (0.001 noise, as released), "random", "halfway" or "none".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
    """

    networks = ("teacher",)

    steps: int = 10
    step_size: float | None = None
    relative_step_size: float | None = None
    start: Start = "gaussian"
    mode: ModelMode = "eval"

    def __post_init__(self) -> None:
        pgd_of(self)

    @property
    def against(self) -> LabelOrigin:
        """The data's labels, by which the attack counts correct iterates."""
        return "data"

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        teacher = step.network("teacher")

        def value_at(points: Images, logits: Logits, goal: Goal) -> Float[Tensor, " m"]:
            return kl(logits_of(teacher, points), logits)

        with frozen(teacher, full_precision=False):
            return ascend(step, pgd_of(self), ClassificationGoal(step.y), value_at=value_at)
