"""Inner maximisation of the generalised Kullback-Leibler loss (GKL)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import ModelMode
from robustly.attacks.pgd import Start
from robustly.objectives import ClassificationGoal
from robustly.training.inner.pgd import attack_step, pgd_of
from robustly.training.losses.gkl import ClassPrior, GklLoss, pairwise_square
from robustly.training.losses.terms import soft_cross_entropy
from robustly.training.parts import Composition, Part
from robustly.training.step import Logits, Step


@dataclass(frozen=True)
class GklInner(Part):
    """Projected gradient ascent on alpha H(softmax(m), n) + beta 1/4 sum_{jk} W^{jk} ((m_j - m_k) - (n_j - n_k))^2.

    m are the clean logits in the mode of the attack, W = u u^T with u the row y of the loss's class prior. The
    released code has beta 1 on CIFAR-100 and beta 0, the attack of TRADES, on CIFAR-10.

    Args:
        alpha: weight of the soft cross-entropy, at least 0.
        beta: weight of the squares, at least 0.
        steps: gradient steps.
        step_size: in units of the images; or
        relative_step_size: as a share of epsilon; with neither, 2.5 epsilon / steps.
        start: "gaussian" (0.001 noise, as released), "random" or "halfway".
        mode: the model's mode under attack: "eval", "train" or "train_nostat".

    Raises:
        ValueError: start "none", where the gradient is zero; both weights 0.
    """

    alpha: float = 1.0
    beta: float = 1.0
    steps: int = 5
    step_size: float | None = None
    relative_step_size: float | None = None
    start: Start = "gaussian"
    mode: ModelMode = "eval"

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.beta >= 0 and self.alpha + self.beta > 0):
            raise ValueError(f"alpha and beta must be at least 0 and not both 0, got {self.alpha} and {self.beta}")
        if self.start == "none":
            raise ValueError("the gradient is zero at the clean image: set start to 'gaussian' or 'random'")
        pgd_of(self)

    def check(self, method: Composition) -> str | None:
        """Refuse a loss other than `gkl`, which computes the class prior, if the prior has weight."""
        if self.beta > 0 and not isinstance(method.loss, GklLoss):
            return "the attack needs the class prior of the gkl loss: set loss to gkl, or the attack's beta to 0"
        return None

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        reference = step.reference_in(self.mode)
        prior = ClassPrior().rows(step, reference.shape[1]).to(reference.dtype)

        def objective(logits: Logits, goal: ClassificationGoal) -> Float[Tensor, " n"]:
            assert goal.reference is not None
            value = self.alpha * soft_cross_entropy(goal.reference, logits)
            if self.beta > 0:
                value = value + self.beta * pairwise_square(goal.reference - logits, prior[goal.y])
            return value

        return attack_step(step, pgd_of(self, objective), reference=reference)
