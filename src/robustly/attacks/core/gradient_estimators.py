"""Gradient estimators: finite differences, averages over random draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustly.attacks.core.contract import AttackError
from robustly.attacks.core.model_access import input_gradient
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import laid_out_like

AT_ONCE = 1024  # images per forward pass of a finite difference, unless there are more examples than that


@runtime_checkable
class GradientEstimator(Protocol):
    """Gradient of an objective by other means than one backward pass."""

    def __call__(
        self,
        outputs_of: Callable[[Tensor], Tensor],
        points: Tensor,
        value: Callable[[Tensor], Tensor],
        draws: KeyedGenerator,
    ) -> tuple[Tensor, int, int]:
        """Estimate the gradient of `value(outputs_of(points)).sum()`, `(M, ...)`.

        Args:
            outputs_of: from points `(M, ...)` to outputs. It accepts a multiple of M rows if the repetitions of one
                example follow each other.
            points: `(M, ...)`.
            value: from outputs of as many rows as points to the objective `(M,)`.
            draws: random numbers of the M examples.

        Returns:
            The gradient, which may be overwritten, and the number of forward and backward passes per example.
        """
        ...


@dataclass(frozen=True)
class NES:
    """Antithetic finite differences along Gaussian directions (Ilyas et al., ICML 2018, algorithm 1).

    The mean of (L(x + sigma u) - L(x - sigma u)) u / (2 sigma) over u ~ N(0, I): unbiased for a linear objective,
    with relative squared error (d + 1) / samples. Costs 2 * samples forward passes and no backward pass. The model
    is evaluated at points that can lie outside the box by multiples of sigma.

    Args:
        samples: antithetic pairs, at least 1.
        sigma: length of a difference per coordinate, positive, in units of the images.

    Raises:
        AttackError: a setting that is out of range.
    """

    samples: int = 50
    sigma: float = 0.001

    def __post_init__(self) -> None:
        _check(self.samples, self.sigma)

    def __call__(
        self,
        outputs_of: Callable[[Tensor], Tensor],
        points: Tensor,
        value: Callable[[Tensor], Tensor],
        draws: KeyedGenerator,
    ) -> tuple[Tensor, int, int]:
        """Mean difference; see `GradientEstimator`."""

        def direction(sample: int) -> Tensor:
            return draws.fold("sample", sample).normal(*points.shape[1:])

        return _differences(outputs_of, points, value, direction, self.samples, self.sigma), 2 * self.samples, 0


@dataclass(frozen=True)
class SPSA:
    """Antithetic finite differences along random signs (Spall 1992; Uesato et al., ICML 2018, algorithm 1).

    As `NES`, with u uniform in {-1, 1}^d: unbiased for a linear objective, with relative squared error
    (d - 1) / samples. Uesato et al. use 2,048 to 8,192 images per step and Adam steps of 0.01; here the attack
    sets the step.

    Args:
        samples: antithetic pairs, at least 1.
        sigma: length of a difference per coordinate, positive, in units of the images.

    Raises:
        AttackError: a setting that is out of range.
    """

    samples: int = 1024
    sigma: float = 0.01

    def __post_init__(self) -> None:
        _check(self.samples, self.sigma)

    def __call__(
        self,
        outputs_of: Callable[[Tensor], Tensor],
        points: Tensor,
        value: Callable[[Tensor], Tensor],
        draws: KeyedGenerator,
    ) -> tuple[Tensor, int, int]:
        """Mean difference; see `GradientEstimator`."""

        def direction(sample: int) -> Tensor:
            return torch.where(draws.fold("sample", sample).uniform(*points.shape[1:]) < 0.5, -1.0, 1.0)

        return _differences(outputs_of, points, value, direction, self.samples, self.sigma), 2 * self.samples, 0


@dataclass(frozen=True)
class Averaged:
    """Gradient averaged over forward passes of a randomised model (Athalye et al., ICML 2018, EOT).

    As in AutoAttack's version for randomised defences, the objective of each draw is differentiated, not that of
    the mean logits. Costs `draws` forward and backward passes.

    Args:
        draws: passes to average over, at least 1. The randomness is the model's own.

    Raises:
        AttackError: fewer than 1 draw.
    """

    draws: int = 20

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise AttackError(f"draws must be at least 1, got {self.draws}")

    def __call__(
        self,
        outputs_of: Callable[[Tensor], Tensor],
        points: Tensor,
        value: Callable[[Tensor], Tensor],
        draws: KeyedGenerator,
    ) -> tuple[Tensor, int, int]:
        """Mean gradient; see `GradientEstimator`."""
        total = torch.zeros_like(points)
        for _ in range(self.draws):
            with torch.enable_grad():
                here = points.detach().requires_grad_()
                total += input_gradient(value(outputs_of(here)).sum(), here)
        return total / self.draws, self.draws, self.draws


def _check(samples: int, sigma: float) -> None:
    if samples < 1:
        raise AttackError(f"samples must be at least 1, got {samples}")
    if not 0 < sigma < float("inf"):
        raise AttackError(f"sigma must be a positive number, got {sigma}")


def _differences(
    outputs_of: Callable[[Tensor], Tensor],
    points: Tensor,
    value: Callable[[Tensor], Tensor],
    direction: Callable[[int], Tensor],
    samples: int,
    sigma: float,
) -> Tensor:
    """Mean of central differences; a difference that is not finite counts as zero."""
    count = max(len(points), 1)
    together = max(AT_ONCE // (2 * count), 1)
    total = torch.zeros_like(points)
    with torch.no_grad():
        for first in range(0, samples, together):
            part = [laid_out_like(points, direction(i)) for i in range(first, min(first + together, samples))]
            steps = sigma * torch.stack(part, dim=1)
            around = torch.cat([points[:, None] + steps, points[:, None] - steps], dim=1)
            logits = outputs_of(around.flatten(0, 1))
            logits = logits.view(len(points), 2 * len(part), logits.shape[-1])
            for i, along in enumerate(part):
                rise = value(logits[:, i]) - value(logits[:, len(part) + i])
                gradient = (rise / (2 * sigma)).nan_to_num(0.0, 0.0, 0.0).to(points)
                total += gradient.view(-1, *[1] * (points.ndim - 1)) * along
    return total / samples
