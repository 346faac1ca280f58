"""The decoupled Kullback-Leibler loss and its generalisation: DKL, IKL, GKL.

Cui et al., "Decoupled Kullback-Leibler divergence loss", NeurIPS 2024 (arXiv 2305.13948), and "Generalized
Kullback-Leibler divergence loss", arXiv 2503.08038. m are clean logits, n adversarial ones; the pairwise squares
cost O(C) memory for C classes instead of the O(C^2) of the formula.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import ModelMode
from robustly.attacks.pgd import Start
from robustly.objectives import ClassificationGoal
from robustly.training.inner import attack_step, pgd_of
from robustly.training.losses import Terms, label_loss, soft_cross_entropy
from robustly.training.parameters import EpochEnd
from robustly.training.step import Step

if TYPE_CHECKING:
    from robustly.training.method import Method

Logits = Float[Tensor, "n k"]


def pairwise_square(difference: Logits, weight: Logits) -> Float[Tensor, " n"]:
    """1/4 sum_{jk} u_j u_k (d_j - d_k)^2 = 1/2 sum(u) sum_k u_k (d_k - mean_u(d))^2, per example.

    The centred form cancels nothing: adding a constant to all d changes nothing, and d = 0 gives exactly 0.

    Args:
        difference: d, `(N, C)`.
        weight: u, at least 0, not all 0 in a row.
    """
    total = weight.sum(1, keepdim=True)
    centre = (weight * difference).sum(1, keepdim=True) / total
    return 0.5 * total[:, 0] * (weight * (difference - centre).square()).sum(1)


def dkl(reference: Logits, logits: Logits) -> Float[Tensor, " n"]:
    """A sum of a weighted square and a soft cross-entropy with the very gradients of KL(softmax(m) || softmax(n)).

    1/4 sum_{jk} sg(s_j s_k) ((m_j - m_k) - sg(n_j - n_k))^2 - sum_j sg(s_j) log softmax(n)_j with s = softmax(m)
    (arXiv 2305.13948, theorem 1). The first term moves m alone, the second n alone; the values are not KL's.

    Args:
        reference: m, `(N, C)`.
        logits: n, `(N, C)`.
    """
    weight = reference.detach().softmax(1)
    return pairwise_square(reference - logits.detach(), weight) + soft_cross_entropy(reference, logits)


@dataclass(frozen=True)
class DklLoss:
    """CE(z, y) + beta wMSE + alpha H(softmax(z), z'): TRADES, its KL as two terms that can be weighted apart.

    wMSE and H are those of `dkl` with m = z, n = z' (arXiv 2305.13948, theorem 1): the squares move the clean
    logits alone, the soft cross-entropy the adversarial ones alone. With alpha = beta the gradients are those of
    TRADES at that beta; IKL and GKL (`gkl`) let the squares move both sides, and weight them by class.

    Args:
        alpha: weight of the soft cross-entropy, at least 0.
        beta: weight of the squares, at least 0.
    """

    needs_inner: ClassVar[bool] = True

    alpha: float = 6.0
    beta: float = 6.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and, if they count, "consistency" (the soft cross-entropy) and "squares"."""
        z = step.clean_logits
        terms = {"clean": label_loss(z, step.labels)}
        if self.alpha > 0:
            terms["consistency"] = self.alpha * soft_cross_entropy(z, step.adversarial_logits)
        if self.beta > 0:
            moved = z - step.adversarial_logits.detach()
            terms["squares"] = self.beta * pairwise_square(moved, z.detach().softmax(1))
        return terms


@dataclass(frozen=True)
class ClassPrior:
    """What the model answered on average to the images of each class, over the epoch before.

    Row y of the matrix is the mean of softmax(z / temperature) over the clean training images of class y; in the
    first epoch it is uniform, and a class that an epoch did not show keeps its row. Loss and attack of a method
    share it.

    Args:
        temperature: positive; softens the answers.
    """

    temperature: float = 1.0

    def rows(self, step: Step, classes: int) -> Float[Tensor, "k k"]:
        """The matrix for this epoch."""
        known = step.remember(self).get("prior")
        return torch.full((classes, classes), 1 / classes, device=step.x.device) if known is None else known

    def add(self, step: Step) -> None:
        """Count in the clean logits of a step."""
        memory, logits = step.remember(self), step.clean_logits.detach()
        shown = F.one_hot(step.labels.hard, logits.shape[1]).to(logits.dtype)
        sums = shown.T @ (logits / self.temperature).softmax(1)  # a product: unlike index_add, the same every time
        memory["sums"] = memory["sums"] + sums if "sums" in memory else sums

    def close(self, end: EpochEnd) -> None:
        """Turn the sums of all processes into the matrix for the next epoch."""
        memory = end.remember(self)
        if "sums" not in memory:  # an epoch without a step
            return
        sums = end.global_mean(memory.pop("sums"))
        counts = sums.sum(1, keepdim=True)
        before = memory.get("prior", torch.full_like(sums, 1 / len(sums)))
        memory["prior"] = torch.where(counts > 0, sums / counts.clamp_min(torch.finfo(sums.dtype).tiny), before)


@dataclass(frozen=True)
class GklLoss:
    """CE(z, y) + beta wMSE + alpha H(softmax(z / T), z' / T): generalised KL in the place of TRADES' KL.

    wMSE = 1/4 sum_i sum_{jk} W_i^{jk} ((m_i^j - m_i^k) - (n_i^j - n_i^k))^2 / sum_i sum_{jk} W_i^{jk} with m = z,
    n = z' and W_i = u_i u_i^T, u_i = (row y_i of the class prior)^gamma: weights without gradient, squares with
    gradients to both sides, normalised over the batch of all processes. The target of the soft cross-entropy H is
    detached. arXiv 2503.08038; gamma 1 is IKL (arXiv 2305.13948).

    Args:
        alpha: weight of the soft cross-entropy, at least 0; 4 in both papers.
        beta: weight of the squares, at least 0; 20 there.
        gamma: smooths the prior, at least 0; 1 (IKL), 0.2 (GKL on CIFAR-10) or 0.4 (CIFAR-100).
        prior_temperature: softens the answers that make up the prior, positive; 4 with gamma 1, else 1.
        temperature: T, positive; 1 in adversarial training.
    """

    needs_inner: ClassVar[bool] = True

    alpha: float = 4.0
    beta: float = 20.0
    gamma: float = 1.0
    prior_temperature: float = 4.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("prior_temperature", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and, if they count, "consistency" (the soft cross-entropy) and "squares"."""
        z = step.clean_logits
        terms = {"clean": label_loss(z, step.labels)}
        if self.alpha > 0:
            terms["consistency"] = self.alpha * soft_cross_entropy(z, step.adversarial_logits, self.temperature)
        if self.beta > 0:
            prior = ClassPrior(self.prior_temperature).rows(step, z.shape[1])
            weight = prior[step.labels.hard].to(z.dtype).pow(self.gamma)
            squares = pairwise_square(z - step.adversarial_logits, weight)
            terms["squares"] = self.beta * squares / step.batch_mean(weight.sum(1).square())
        return terms

    def after_step(self, step: Step) -> None:
        """Let the step count in the class prior of the next epoch."""
        ClassPrior(self.prior_temperature).add(step)

    def after_epoch(self, end: EpochEnd) -> None:
        """Take up the class prior of the epoch."""
        ClassPrior(self.prior_temperature).close(end)


@dataclass(frozen=True)
class GklInner:
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

    def check(self, method: "Method") -> str | None:
        """Refuse another loss than `gkl`, which makes the class prior, where the prior counts."""
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
