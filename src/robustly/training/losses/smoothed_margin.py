"""Outer losses that enlarge the certified radius of a smoothed classifier: MACER and its cost-sensitive form."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.cost_matrix import check_costs, costs_problem, read_costs
from robustly.training.losses.terms import check_at_least_zero, check_positive, label_loss
from robustly.training.noise import noisy_logits
from robustly.training.parts import Part, Terms, begins_too_late
from robustly.training.step import Labels, Step

NOISY = "noisy"
"""Quantity: the model's logits at noisy copies of the images, `(N, m, K)`."""
FLOOR = 1e-6
"""Smoothed probabilities are clamped to [FLOOR, 1 - FLOOR], where their normal quantile is finite."""


def smoothed_cross_entropy(logits: Float[Tensor, "n m k"], labels: Labels) -> Float[Tensor, " n"]:
    """-log of the label's mean probability over the noisy copies, with the labels' smoothing."""
    mean = logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])
    return label_loss(mean, labels)


def smoothed_margin(
    logits: Float[Tensor, "n m k"], labels: Labels, rivals: Bool[Tensor, "n k"], sharpness: float
) -> Float[Tensor, " n"]:
    """Phi^-1(p_y) - Phi^-1(max_j p_j) over the rivals j, with p = mean over copies of softmax(sharpness * logits).

    Times sigma / 2 it is the certified l2 radius of the smoothed classifier (Cohen et al., ICML 2019, theorem 1),
    for soft probabilities in place of votes. It is negative where a rival is more likely than the label.

    Args:
        logits: logits of m noisy copies of each image.
        labels: labels y.
        rivals: classes that the label competes with, at least one for each image, never y itself.
        sharpness: factor of the logits, positive (beta of MACER).

    Returns:
        The margins, in [-9.51, 9.51]: probabilities are clamped to [1e-6, 1 - 1e-6], beyond which no gradient
        flows. MACER's code leaves such examples out where the quantile is infinite.
    """
    p = (sharpness * logits).softmax(2).mean(1)
    own = p.gather(1, labels.hard[:, None])[:, 0]
    rival = p.masked_fill(~rivals, -1.0).amax(1)
    return _quantile(own) - _quantile(rival)


def _quantile(p: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    quantile: Tensor = torch.special.ndtri(p.clamp(FLOOR, 1 - FLOOR))
    return quantile


def right_only(margin: Float[Tensor, " n"], target: float) -> Float[Tensor, " n"]:
    """target - margin where 0 < margin < target, else 0: only right predictions gain (MACER)."""
    return torch.where((margin > 0) & (margin < target), target - margin, 0.0)


def right_or_wrong(margin: Float[Tensor, " n"], target: float) -> Float[Tensor, " n"]:
    """target - margin where |margin| < target, else 0: wrong predictions gain too (Margin-CS)."""
    return torch.where(margin.abs() < target, target - margin, 0.0)


def check_settings(sigma: float, copies: int, weight: float, sharpness: float, begin: float) -> None:
    """Refuse settings out of range; they are those of `MacerLoss`.

    Raises:
        ValueError: noise, sharpness or number of copies that are not positive; a negative weight or begin.
    """
    check_positive(sigma=sigma, sharpness=sharpness)
    check_at_least_zero(weight=weight, begin=begin)
    if copies < 1:
        raise ValueError(f"copies is {copies}: a smoothed prediction is of at least 1 noisy copy")


def _terms(loss: "MacerLoss | MarginCsLoss", step: Step, gain: Callable[[Tensor], Float[Tensor, " n"]]) -> Terms:
    """The terms "noisy" and, once it has weight, "margin": weight sigma/2 times the gain of the noisy logits."""
    logits = step.quantity(NOISY)
    terms: Terms = {"noisy": smoothed_cross_entropy(logits, step.labels)}
    if loss.weight > 0 and step.moment.time >= loss.begin:
        terms["margin"] = loss.weight * loss.sigma / 2 * gain(logits)
    return terms


def _others(labels: Labels, classes: int) -> Bool[Tensor, "n k"]:
    """All classes except the label."""
    return labels.hard[:, None] != torch.arange(classes, device=labels.hard.device)


@dataclass(frozen=True)
class MacerLoss(Part):
    """-log mean_i softmax(z_i)_y + weight sigma/2 [margin - xi] where 0 < xi < margin: MACER.

    Zhai et al., "MACER: attack-free and scalable robust training via maximizing certified radius", ICLR 2020,
    algorithm 1. z_i are the logits of `copies` noisy copies of an image, and xi is `smoothed_margin` of the label
    against all other classes. There is no attack: the trained network is meant to be smoothed with this noise.

    Args:
        sigma: standard deviation of the noise, in the unit of the images, positive.
        copies: noisy copies of each image, in one forward pass; 16 in the paper.
        weight: lambda, at least 0; 12 there for sigma 0.25.
        margin: gamma, margin beyond which an example has no such term, positive; 8 there.
        sharpness: beta, factor of the logits in xi, positive; 16 there.
        begin: epochs before the second term begins (its deferred form), at least 0.

    Raises:
        ValueError: a setting out of range.
    """

    reads = (NOISY,)

    sigma: float = 0.25
    copies: int = 16
    weight: float = 12.0
    margin: float = 8.0
    sharpness: float = 16.0
    begin: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self.sigma, self.copies, self.weight, self.sharpness, self.begin)
        check_positive(margin=self.margin)

    @property
    def own_quantities(self) -> Mapping[str, Callable[[Step], Tensor]]:
        """Logits of the noisy copies."""
        return {NOISY: partial(noisy_logits, sigma=self.sigma, copies=self.copies)}

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a run that ends before the second term begins."""
        return begins_too_late("begin", self.begin, epochs, "no radius would be enlarged")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "noisy" and, once it has weight, "margin"."""

        def gain(logits: Float[Tensor, "n m k"]) -> Float[Tensor, " n"]:
            rivals = _others(step.labels, logits.shape[2])
            return right_only(smoothed_margin(logits, step.labels, rivals, self.sharpness), self.margin)

        return _terms(self, step, gain)


@dataclass(frozen=True)
class MarginCsLoss(Part):
    """MACER with a cost matrix: examples whose class has costs gain where they are wrong, too.

    Xin et al., "Provably cost-sensitive adversarial defense via randomized smoothing", ICML 2025 (arXiv
    2310.08732), whose method Margin-CS this is. With Omega_y = {j: C_yj > 0}, an example with costs has the term
    weight sigma/2 [costly_margin - xi] where |xi| < costly_margin, and xi is `smoothed_margin` of its label against
    the classes of Omega_y alone: all others for a class whose errors all cost (seed-wise), some of them for pairs
    (pair-wise). The other examples have the term of `MacerLoss` with `margin`; if no class had costs, the loss
    would be MACER. As in the paper, only C_yj > 0 counts, and not how large it is. Where the paper's code takes the
    margin of the top class, which has no gradient if that class is costly, this takes the margin of the label.

    Args:
        costs: cost matrix C; see `robustly.cost_matrix.read_costs`. A file is read in the first step of a run, and
            its numbers are kept in every checkpoint.
        sigma: standard deviation of the noise, in the unit of the images, positive; 0.5 in the paper's code.
        copies: noisy copies of each image, in one forward pass; 16 there.
        weight: lambda, at least 0; 3 there.
        costly_margin: gamma_1, positive; 16 there, which no clamped margin reaches.
        margin: gamma_2, positive; 4 there.
        sharpness: beta, factor of the logits in xi, positive; 16 there.
        begin: epochs before the margins begin, at least 0.

    Raises:
        ValueError: a setting out of range, or costs of another form.
    """

    reads = (NOISY,)

    costs: str = "all"
    sigma: float = 0.5
    copies: int = 16
    weight: float = 3.0
    costly_margin: float = 16.0
    margin: float = 4.0
    sharpness: float = 16.0
    begin: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self.sigma, self.copies, self.weight, self.sharpness, self.begin)
        check_positive(costly_margin=self.costly_margin, margin=self.margin)
        check_costs(self.costs)

    @property
    def classes(self) -> int:
        """Least number of classes of the cost matrix."""
        return check_costs(self.costs)

    def check_classes(self, classes: int) -> str | None:
        """Refuse costs of other classes."""
        return costs_problem(self.costs, classes)

    @property
    def own_quantities(self) -> Mapping[str, Callable[[Step], Tensor]]:
        """Logits of the noisy copies."""
        return {NOISY: partial(noisy_logits, sigma=self.sigma, copies=self.copies)}

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a run that ends before the margins begin."""
        return begins_too_late("begin", self.begin, epochs, "no radius would be enlarged")

    def __call__(self, step: Step) -> Terms:
        """Return the terms "noisy" and, once it has weight, "margin"."""

        def gain(logits: Float[Tensor, "n m k"]) -> Float[Tensor, " n"]:
            kept = step.remember(self)
            if "costs" not in kept:
                kept["costs"] = torch.from_numpy(read_costs(self.costs, logits.shape[2]).array)
            costly = kept["costs"].to(logits.device)[step.labels.hard] > 0
            sensitive = costly.any(1)
            rivals = torch.where(sensitive[:, None], costly, _others(step.labels, logits.shape[2]))
            xi = smoothed_margin(logits, step.labels, rivals, self.sharpness)
            return torch.where(sensitive, right_or_wrong(xi, self.costly_margin), right_only(xi, self.margin))

        return _terms(self, step, gain)
