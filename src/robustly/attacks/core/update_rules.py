"""Update rules of gradient ascent: steepest, normalised, momentum, Adam, and noise before another rule."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.attacks.core.contract import AttackError, Images
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import laid_out_like
from robustly.threats.contract import PerExample, Theta, ThreatSet, Unequal, per_example

Step = Callable[[Theta, Theta, PerExample], Theta]
"""`ThreatSet.step`, or `StepsInPlace.step_in_place`."""
State = tuple[Tensor, ...]
"""State of an update rule between steps: tensors `(M, ...)`, one entry per example."""
SMOOTHING_SIGMA = 3.0  # pixels


@dataclass(frozen=True)
class Iterate:
    """Points of M examples before a step.

    Args:
        step: number of finished steps.
        theta: the threat's parameters `(M, ...)`.
        gradient: of the objective there; a rule may overwrite it.
        threat_set: the allowed parameters.
        step_size: `(M,)`.
        draws: random numbers of the examples.
        gradient_at: gradient of the objective at other points of the same examples, which do not count as iterates.
    """

    step: int
    theta: Theta
    gradient: Theta
    threat_set: ThreatSet
    step_size: PerExample
    draws: KeyedGenerator
    gradient_at: Callable[[Theta], Theta]


@runtime_checkable
class UpdateRule(Protocol):
    """Update rule of an ascent: from the gradient to the next parameters."""

    def init(self, theta: Theta) -> State:
        """State before the first step."""
        ...

    def update(self, state: State, iterate: Iterate) -> tuple[Theta, State]:
        """Next allowed parameters, and the state after the step."""
        ...


def select_state(state: State, index: Tensor) -> State:
    """State of some of the examples."""
    return tuple(values[index] for values in state)


@dataclass(frozen=True)
class Steepest:
    """Step in the steepest direction of the threat's geometry: the sign of the gradient under linf."""

    def init(self, theta: Theta) -> State:
        """No state."""
        return ()

    def update(self, state: State, iterate: Iterate) -> tuple[Theta, State]:
        """One projected step. The gradient of large parameters is overwritten."""
        allowed = iterate.threat_set
        # `isinstance(allowed, StepsInPlace)` takes longer than a step of a small batch
        step: Step = getattr(allowed, "step_in_place", allowed.step)
        return step(iterate.theta, iterate.gradient, iterate.step_size), state


@dataclass(frozen=True)
class Normalised:
    """Step of Euclidean length `step_size` along the gradient, whatever the threat's geometry.

    Where parameters have different units, lengths are measured in shares of their ranges.
    """

    def init(self, theta: Theta) -> State:
        """No state."""
        return ()

    def update(self, state: State, iterate: Iterate) -> tuple[Theta, State]:
        """One projected step."""
        scaled = _scaled_to_largest(_per_share(iterate))
        length = torch.linalg.vector_norm(scaled.flatten(1), dim=1)
        direction = scaled / per_example(torch.where(length > 0, length, 1.0), scaled)
        return _moved(iterate, direction), state


@dataclass(frozen=True)
class Momentum:
    """Steepest step along a decaying sum of l1-normalised gradients: MI-FGSM (Dong et al., CVPR 2018, alg. 1).

    Args:
        decay: mu, at least 0; 0 is `Steepest`.
        smoothing: side in pixels, odd, of the Gaussian kernel that each gradient is convolved with first (TI-FGSM,
            Dong et al., CVPR 2019, eq. 8); None for no smoothing.
    """

    decay: float = 1.0
    smoothing: int | None = None

    def init(self, theta: Theta) -> State:
        """Velocity of zero."""
        return (torch.zeros_like(theta),)

    def update(self, state: State, iterate: Iterate) -> tuple[Theta, State]:
        """One projected step along the velocity."""
        gradient = iterate.gradient
        if self.smoothing is not None:
            gradient = smoothed(gradient, self.smoothing)
        velocity = gradient  # bit for bit as `Steepest` without decay: a step depends on the direction only
        if self.decay > 0:
            length = gradient.flatten(1).abs().sum(1)
            unit = gradient / per_example(torch.where(length > 0, length, 1.0), gradient)
            velocity = self.decay * state[0] + unit
        return iterate.threat_set.step(iterate.theta, velocity, iterate.step_size), (velocity,)


@dataclass(frozen=True)
class Adam:
    """Step by Adam (Kingma and Ba, ICLR 2015), then the projection.

    Each gradient is first divided by its largest entry. The gradients of a confident network are far below `tiny`.

    Args:
        betas: decay of the first and the second moment, in [0, 1).
        tiny: added to the root of the second moment.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    tiny: float = 1e-8

    def init(self, theta: Theta) -> State:
        """Moments of zero."""
        return torch.zeros_like(theta), torch.zeros_like(theta)

    def update(self, state: State, iterate: Iterate) -> tuple[Theta, State]:
        """One projected step."""
        gradient = _scaled_to_largest(_per_share(iterate))
        first = self.betas[0] * state[0] + (1 - self.betas[0]) * gradient
        second = self.betas[1] * state[1] + (1 - self.betas[1]) * gradient.square()
        ahead = first / (1 - self.betas[0] ** (iterate.step + 1))
        spread = (second / (1 - self.betas[1] ** (iterate.step + 1))).sqrt()
        # in float16 `tiny` is zero, and zero gradients would become NaN
        below = (spread + self.tiny).clamp_min(torch.finfo(spread.dtype).tiny)
        return _moved(iterate, ahead / below), (first, second)


@dataclass(frozen=True)
class Noisy:
    """Another rule, applied after Gaussian noise is added to the point (FAT, Zhang et al., ICML 2020).

    Args:
        rule: the rule.
        deviation: standard deviation of the noise, positive.
    """

    rule: UpdateRule
    deviation: float

    def init(self, theta: Theta) -> State:
        """State of the rule."""
        return self.rule.init(theta)

    def update(self, state: State, iterate: Iterate) -> tuple[Theta, State]:
        """Add noise, then step."""
        noise = iterate.draws.fold("noise", iterate.step).normal(*iterate.theta.shape[1:]).to(iterate.theta)
        return self.rule.update(state, replace(iterate, theta=iterate.theta + self.deviation * noise))


def smoothed(gradient: Images, side: int) -> Images:
    """Gradient with each channel convolved with a Gaussian kernel of sum 1; values beyond the edge are zero.

    Args:
        gradient: `(N, C, H, W)`.
        side: of the kernel, odd.

    Raises:
        AttackError: inputs without height and width.
    """
    if gradient.ndim != 4:
        raise AttackError(f"smoothing is for images (N, C, H, W), got {tuple(gradient.shape)}")
    place = torch.arange(side, device=gradient.device, dtype=gradient.dtype) - side // 2
    profile = (-0.5 * (place / SMOOTHING_SIGMA) ** 2).exp()
    profile = profile / profile.sum()
    planes = gradient.flatten(0, 1)[:, None]
    planes = F.conv2d(planes, profile.view(1, 1, -1, 1), padding=(side // 2, 0))
    planes = F.conv2d(planes, profile.view(1, 1, 1, -1), padding=(0, side // 2))
    return laid_out_like(gradient, planes.view(gradient.shape))


def _scaled_to_largest(gradient: Float[Tensor, "m ..."]) -> Float[Tensor, "m ..."]:
    largest = gradient.flatten(1).abs().amax(1)
    return gradient / per_example(torch.where(largest > 0, largest, 1.0), gradient)


def _per_share(iterate: Iterate) -> Theta:
    """Gradient with respect to the parameters as shares of their ranges."""
    allowed = iterate.threat_set
    return iterate.gradient * allowed.units() if isinstance(allowed, Unequal) else iterate.gradient


def _moved(iterate: Iterate, direction: Theta) -> Theta:
    """Allowed parameters after a step along a direction, in shares of their ranges."""
    allowed = iterate.threat_set
    if isinstance(allowed, Unequal):
        direction = direction * allowed.units()
    return allowed.project(iterate.theta + per_example(iterate.step_size, direction) * direction)
