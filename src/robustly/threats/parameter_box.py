"""Inputs described by a few bounded numbers per example: rotations, shifts, colour changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Images, PerExample, per_example
from robustly.threats.known_slopes import in_planes

Parameters = Float[Tensor, "n p"]
Transform = Callable[[Images, Parameters], Images]


@dataclass(frozen=True)
class ParameterBox:
    """Inputs `transform(x, theta)` with every parameter within its share of the radius around its neutral value.

    Parameter p may take values in `neutral[p] +- radius * scale[p]`. Steps move every parameter by the same share
    of its range, along the sign of its gradient.

    Args:
        x: original inputs `(N, ...)`.
        radius: `(N,)`, in the threat's unit.
        neutral: values `(P,)` of no change.
        scale: range of each parameter per unit of the radius, `(P,)`, at least 0.
        transform: from inputs and parameters `(N, P)` to inputs in the box; differentiable, and exactly the
            identity at the neutral values.
        words: description of one change, from its P parameters; None lists the numbers.
        prepare: what is computed of the inputs alone, once for all parameters; `transform` then takes its result in
            place of the inputs, and need not be exact at the neutral values.
    """

    x: Images
    radius: PerExample
    neutral: Float[Tensor, " p"]
    scale: Float[Tensor, " p"]
    transform: Transform
    words: Callable[[Sequence[float]], str] | None = None
    prepare: Callable[[Images], Images] | None = None

    def apply(self, theta: Parameters) -> Images:
        """Transformed inputs."""
        if self.prepare is None:
            return self.transform(self.x, theta)
        given = self.prepare(self.x) if self.x.requires_grad else self._prepared
        return exact_at_neutral(self.transform(given, theta), self.x, (theta == self._centre).all(1))

    @cached_property
    def _prepared(self) -> Images:
        """The prepared inputs, which every step of an ascent needs."""
        assert self.prepare is not None
        return self.prepare(self.x)

    def moved_to(self, images: Images) -> "ParameterBox":
        """The same transformations of other inputs."""
        return replace(self, x=images)

    def identity(self) -> Parameters:
        """Neutral values, `(N, P)`."""
        return self.neutral.to(self.x).expand(len(self.x), -1).clone()

    def random_start(self, generator: KeyedGenerator) -> Parameters:
        """Uniform in the range of each parameter."""
        share = generator.uniform(len(self.neutral)).to(self.x) * 2 - 1
        return self.project(self._centre + share * self._reach)

    def project(self, theta: Parameters) -> Parameters:
        """Parameters clipped to their ranges."""
        return theta.clamp(self._centre - self._reach, self._centre + self._reach)

    def step(self, theta: Parameters, gradient: Parameters, step_size: PerExample) -> Parameters:
        """Step of every parameter by `step_size * scale` along the sign of its gradient."""
        moved = theta + gradient.sign() * self.scale.to(theta) * per_example(step_size, theta)
        return self.project(moved)

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 radii over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def units(self) -> Parameters:
        """Range of each parameter per unit of the radius, `(1, P)`."""
        return self.scale.to(self.x)[None]

    def bounds(self) -> tuple[Parameters, Parameters]:
        """Least and largest allowed value of each parameter, `(N, P)` each."""
        return self._centre - self._reach, self._centre + self._reach

    def size(self, theta: Parameters) -> PerExample:
        """Largest deviation of a parameter from its neutral value, in the threat's unit."""
        deviation = theta - self._centre
        shares = deviation / self.scale.to(theta)
        return torch.where(deviation == 0, 0.0, shares).abs().amax(1)  # 0 / 0 where a range is empty

    def contains(self, theta: Parameters) -> Bool[Tensor, " n"]:
        """True where each parameter is in its range, up to float32 rounding."""
        return self.size(theta) <= self.radius * (1 + 1e-6) + 1e-6

    def select(self, index: Tensor) -> "ParameterBox":
        """Sets of some of the examples."""
        return replace(self, x=self.x[index], radius=self.radius[index])

    def describe(self, theta: Parameters) -> list[str]:
        """Each change in words: "rotated by 12.3 degrees clockwise"."""
        words = self.words or listed
        still = (theta == self._centre).all(1).tolist()
        return ["unchanged" if same else words(values) for same, values in zip(still, theta.tolist(), strict=True)]

    @property
    def _centre(self) -> Parameters:
        return self.neutral.to(self.x)[None]

    @property
    def _reach(self) -> Parameters:
        return self.radius[:, None] * self.scale.to(self.x)


def listed(values: Sequence[float]) -> str:
    """Parameters as numbers."""
    return f"parameters {', '.join(f'{value:.3g}' for value in values)}"


def exact_at_neutral(changed: Images, images: Images, is_neutral: Bool[Tensor, " n"]) -> Images:
    """Changed images, with the originals bit for bit where nothing changes; gradients are those of the change.

    Interpolation at the identity differs from the identity by rounding.
    """
    if is_neutral.device.type == "cpu":
        if changed.is_contiguous():
            changed = in_planes(changed)
        if not bool(is_neutral.any()):
            return changed
    correction = (images - changed).detach()
    return changed + torch.where(per_example(is_neutral, images), correction, 0.0)


_SAMPLED = (67, 1021)  # values of an example that are compared with 0 first, and then


def all_zero(values: Float[Tensor, "n ..."]) -> Bool[Tensor, " n"]:
    """True for each example whose values are all 0; NaN is not.

    The least and the largest value are found in a tenth of the time of a comparison of all values. Of many values
    on a CPU some are compared first, because one that is not 0 suffices.
    """
    flat = values.flatten(1)
    if flat.shape[1] == 0:
        return torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    if flat.device.type == "cpu":
        for sampled in _SAMPLED:
            if flat.shape[1] > 8 * sampled:
                # an odd distance: an even one could meet the same column of a grid in every row
                open_rows = (flat[:, :: flat.shape[1] // sampled | 1] == 0).all(1)
                if not bool(open_rows.any()):
                    return open_rows
    return (flat.amin(1) == 0) & (flat.amax(1) == 0)
