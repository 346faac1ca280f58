"""The decoupled Kullback-Leibler loss and its generalisation: DKL, IKL, GKL.

Cui et al., "Decoupled Kullback-Leibler divergence loss", NeurIPS 2024 (arXiv 2305.13948), and "Generalized
Kullback-Leibler divergence loss", arXiv 2503.08038. m are clean logits, n adversarial ones; the pairwise squares
cost O(C) memory for C classes instead of the O(C^2) of the formula.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.training.losses.terms import check_at_least_zero, check_positive, label_loss, soft_cross_entropy
from robustly.training.parts import EpochEnd, Part, Terms
from robustly.training.step import Logits, Step


def pairwise_square(difference: Logits, weight: Logits) -> Float[Tensor, " n"]:
    """1/4 sum_{jk} u_j u_k (d_j - d_k)^2 = 1/2 sum(u) sum_k u_k (d_k - mean_u(d))^2, per example.

    The centred form has no cancellation: it is invariant to a constant added to all d, and d = 0 gives exactly 0.

    Args:
        difference: d, `(N, C)`.
        weight: u, at least 0, not all 0 in a row.
    """
    total = weight.sum(1, keepdim=True)
    centre = (weight * difference).sum(1, keepdim=True) / total
    return 0.5 * total[:, 0] * (weight * (difference - centre).square()).sum(1)


def dkl(reference: Logits, logits: Logits) -> Float[Tensor, " n"]:
    """Sum of a weighted square and a soft cross-entropy, with the gradients of KL(softmax(m) || softmax(n)).

    1/4 sum_{jk} sg(s_j s_k) ((m_j - m_k) - sg(n_j - n_k))^2 - sum_j sg(s_j) log softmax(n)_j with s = softmax(m)
    (arXiv 2305.13948, theorem 1). The first term has gradients to m only, the second to n only. Values differ from
    those of KL.

    Args:
        reference: m, `(N, C)`.
        logits: n, `(N, C)`.
    """
    weight = reference.detach().softmax(1)
    return pairwise_square(reference - logits.detach(), weight) + soft_cross_entropy(reference, logits)


@dataclass(frozen=True)
class DklLoss(Part):
    """CE(z, y) + beta wMSE + alpha H(softmax(z), z'): TRADES with its KL as two terms of separate weights.

    wMSE and H are those of `dkl` with m = z, n = z' (arXiv 2305.13948, theorem 1): the squares move the clean
    logits alone, the soft cross-entropy the adversarial ones alone. With alpha = beta the gradients are those of
    TRADES at that beta; IKL and GKL (`gkl`) let the squares move both sides, and weight them by class.

    Args:
        alpha: weight of the soft cross-entropy, at least 0.
        beta: weight of the squares, at least 0.
    """

    needs_inner = True

    alpha: float = 6.0
    beta: float = 6.0

    def __post_init__(self) -> None:
        check_at_least_zero(alpha=self.alpha, beta=self.beta)

    @property
    def reads(self) -> tuple[str, ...]:
        """Clean logits, and adversarial ones if a divergence has weight."""
        return ("clean", "adversarial") if self.alpha > 0 or self.beta > 0 else ("clean",)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and, with their weights, "consistency" (soft cross-entropy) and "squares"."""
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
    """Mean prediction of the model on the images of each class, over the epoch before.

    Row y of the matrix is the mean of softmax(z / temperature) over the clean training images of class y. In the
    first epoch it is uniform, and a class without images in an epoch keeps its row. Loss and attack of a method
    share it.

    Args:
        temperature: positive; softens the predictions.
    """

    temperature: float = 1.0

    def rows(self, step: Step, classes: int) -> Float[Tensor, "k k"]:
        """The matrix for this epoch."""
        known = step.remember(self).get("prior")
        return torch.full((classes, classes), 1 / classes, device=step.x.device) if known is None else known

    def add(self, step: Step) -> None:
        """Add the clean logits of a step to the sums of this epoch."""
        memory, logits = step.remember(self), step.clean_logits.detach()
        labels = F.one_hot(step.labels.hard, logits.shape[1]).to(logits.dtype)
        sums = labels.T @ (logits / self.temperature).softmax(1)  # a product: unlike index_add, the same every time
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
class GklLoss(Part):
    """CE(z, y) + beta wMSE + alpha H(softmax(z / T), z' / T): generalised KL in the place of TRADES' KL.

    wMSE = 1/4 sum_i sum_{jk} W_i^{jk} ((m_i^j - m_i^k) - (n_i^j - n_i^k))^2 / sum_i sum_{jk} W_i^{jk} with m = z,
    n = z' and W_i = u_i u_i^T, u_i = (row y_i of the class prior)^gamma: weights without gradient, squares with
    gradients to both sides, normalised over the batch of all processes. The target of the soft cross-entropy H is
    detached. arXiv 2503.08038; gamma 1 is IKL (arXiv 2305.13948).

    Args:
        alpha: weight of the soft cross-entropy, at least 0; 4 in both papers.
        beta: weight of the squares, at least 0; 20 there.
        gamma: smooths the prior, at least 0; 1 (IKL), 0.2 (GKL on CIFAR-10) or 0.4 (CIFAR-100).
        prior_temperature: softens the predictions in the prior, positive; 4 with gamma 1, else 1.
        temperature: T, positive; 1 in adversarial training.
    """

    needs_inner = True

    alpha: float = 4.0
    beta: float = 20.0
    gamma: float = 1.0
    prior_temperature: float = 4.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_at_least_zero(alpha=self.alpha, beta=self.beta, gamma=self.gamma)
        check_positive(prior_temperature=self.prior_temperature, temperature=self.temperature)

    @property
    def reads(self) -> tuple[str, ...]:
        """Clean logits, and adversarial ones if a divergence has weight."""
        return ("clean", "adversarial") if self.alpha > 0 or self.beta > 0 else ("clean",)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "clean" and, with their weights, "consistency" (soft cross-entropy) and "squares"."""
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
        """Add the step to the class prior of the next epoch."""
        ClassPrior(self.prior_temperature).add(step)

    def after_epoch(self, end: EpochEnd) -> None:
        """Finish the class prior of the epoch."""
        ClassPrior(self.prior_temperature).close(end)
