"""Allowed inputs of a chain: the parts of its threats, each acting on what the parts before it return."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.balls import L0Ball, LpBall
from robustly.threats.contract import Described, Images, Link, PerExample, Smooth, Unequal, per_example
from robustly.threats.offset_field import OffsetField
from robustly.threats.parameter_box import ParameterBox

Flat = Float[Tensor, "n p"]


@dataclass(frozen=True)
class OffsetBall:
    """An Lp ball described by the perturbation that is added, so that it can act on inputs other than its own.

    Moves are those of the ball around the inputs, cut by their box. A ball around zero would leave the box, where
    the clip has no gradient, and searches would be much weaker than on the ball itself.

    Args:
        x: images `(N, ...)`.
        ball: the allowed perturbations, a ball around zero.
        box: least and largest valid value of an image; sums are clipped to it.
    """

    x: Float[Tensor, "n ..."]
    ball: LpBall
    box: tuple[float, float]

    @property
    def radius(self) -> Float[Tensor, " n"]:  # noqa: D102
        return self.ball.radius

    def apply(self, theta: Tensor) -> Tensor:
        """Images plus the perturbation, clipped to the box."""
        return (self.x + theta).clamp(*self.box)

    def identity(self) -> Tensor:  # noqa: D102
        return self.ball.x

    def random_start(self, generator: KeyedGenerator) -> Tensor:  # noqa: D102
        return self._in_place.random_start(generator) - self.x

    def project(self, theta: Tensor) -> Tensor:  # noqa: D102
        return self._in_place.project(self.x + theta) - self.x

    def step(self, theta: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        """Projected step; under l0 a step of the whole radius has the l1 length of all values together."""
        if isinstance(self.ball, L0Ball):
            step_size = step_size / self.radius.clamp_min(1.0) * self.x[:1].numel()
        return self._in_place.step(self.x + theta, gradient, step_size) - self.x

    def default_step_size(self, steps: int) -> Tensor:  # noqa: D102
        return self.ball.default_step_size(steps)

    def size(self, theta: Tensor) -> Tensor:  # noqa: D102
        return self.ball.size(theta)

    def contains(self, theta: Tensor) -> Tensor:  # noqa: D102
        return self.ball.contains(theta)

    def select(self, index: Tensor) -> "OffsetBall":  # noqa: D102
        return OffsetBall(self.x[index], self.ball.select(index), self.box)

    def describe(self, theta: Tensor) -> list[str]:
        """Each perturbation in words: "changed by 0.031 (linf)"."""
        sizes = self.size(theta).tolist()
        return [f"changed by {size:.3g} ({self.ball.norm})" if size > 0 else "unchanged" for size in sizes]

    def moved_to(self, images: Tensor) -> "OffsetBall":
        """The same perturbations of other inputs."""
        return OffsetBall(images, self.ball, self.box)

    @cached_property
    def _in_place(self) -> LpBall:
        """The ball around the inputs."""
        return type(self.ball)(self.x, self.ball.radius, self.box, self.ball.mask)


@dataclass(frozen=True)
class ChainSet:
    """Allowed inputs of a chain; theta holds the flattened parameters of all parts side by side, `(N, P)`.

    Args:
        x: original inputs.
        radius: largest size, `(N,)`: the share of their limits that the parts may use.
        links: sets of the parts, in their order, each already limited to that share.
    """

    x: Images
    radius: PerExample
    links: tuple[Link, ...]

    def apply(self, theta: Flat) -> Images:
        """Inputs after all perturbations."""
        images = self.x
        for link, part in zip(self.links, self.split(theta), strict=True):
            images = link.moved_to(images).apply(part)
        return images

    def identity(self) -> Flat:
        """Parameters of no perturbation by any part."""
        return self.join([link.identity() for link in self.links])

    def random_start(self, generator: KeyedGenerator) -> Flat:
        """Independent random starts of the parts."""
        return self._in_order(lambda place, link: link.random_start(generator.fold("part", place)))

    def project(self, theta: Flat) -> Flat:
        """Projected parameters of every part."""
        parts = self.split(theta)
        return self._in_order(lambda place, link: link.project(parts[place]))

    def step(self, theta: Flat, gradient: Flat, step_size: PerExample) -> Flat:
        """Step of every part by the same share of its own radius."""
        parts, along = self.split(theta), self.split(gradient)
        share = step_size / torch.where(self.radius > 0, self.radius, 1.0)
        return self._in_order(lambda place, link: link.step(parts[place], along[place], share * link.radius))

    def units(self) -> Flat:
        """Change of each parameter per unit of size, `(N, P)`: each part uses the same share of its own limit."""
        whole = torch.where(self.radius > 0, self.radius, 1.0)
        units = []
        for link, part in zip(self.links, self.split(self.identity()), strict=True):
            own = link.units() if isinstance(link, Unequal) else torch.ones_like(part)
            units.append((own * per_example(link.radius / whole, part)).expand_as(part))
        return self.join(units)

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 radii over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def size(self, theta: Flat) -> PerExample:
        """Largest share that a part uses of its limit, times the radius."""
        shares = [
            link.size(part) / torch.where(link.radius > 0, link.radius, 1.0)
            for link, part in zip(self.links, self.split(theta), strict=True)
        ]
        return torch.stack(shares).amax(0) * self.radius

    def contains(self, theta: Flat) -> Bool[Tensor, " n"]:
        """True where every part allows its perturbation."""
        allowed = [link.contains(part) for link, part in zip(self.links, self.split(theta), strict=True)]
        return torch.stack(allowed).all(0)

    def select(self, index: Tensor) -> "ChainSet":
        """Sets of some of the examples."""
        links = tuple(link.select(index) for link in self.links)
        return replace(self, x=self.x[index], radius=self.radius[index], links=links)

    def describe(self, theta: Flat) -> list[str]:
        """Each perturbation in words: "rotated by 12.3 degrees clockwise, changed by 0.031 (linf)"."""
        told = [described(link, part) for link, part in zip(self.links, self.split(theta), strict=True)]
        listed = [[words for words in parts if words != "unchanged"] for parts in zip(*told, strict=True)]
        return [", ".join(parts) or "unchanged" for parts in listed]

    @cached_property
    def _shapes(self) -> list[torch.Size]:
        return [link.identity().shape[1:] for link in self.links]

    def split(self, theta: Flat) -> list[Tensor]:
        """Parameters of each part, `(N, ...)`."""
        flat = torch.split(theta, [shape.numel() for shape in self._shapes], dim=1)
        return [part.reshape(len(theta), *shape) for part, shape in zip(flat, self._shapes, strict=True)]

    def _in_order(self, move: Callable[[int, Link], Tensor]) -> Flat:
        """Parameters of the parts in turn, each from its place and its set after the parts before it."""
        here = self.links[0]
        parts = [move(0, here)]
        last = max(place for place, link in enumerate(self.links) if place == 0 or not moves_alone(link))
        for place, link in enumerate(self.links[1:], 1):
            here = link if place > last else link.moved_to(here.apply(parts[-1]))
            parts.append(move(place, here))
        return self.join(parts)

    @staticmethod
    def join(parts: Sequence[Tensor]) -> Flat:
        """Parameters that `split` separates."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)


@dataclass(frozen=True)
class SmoothChainSet(ChainSet):
    """Allowed inputs of a chain with a part that has a roughness, such as a flow."""

    def roughness(self, theta: Flat) -> PerExample:
        """Roughness of the parts as shares of their limits, summed, times the radius; parts without one add 0."""
        total = torch.zeros_like(self.radius)
        for link, part in zip(self.links, self.split(theta), strict=True):
            if isinstance(link, Smooth):
                total = total + link.roughness(part) / torch.where(link.radius > 0, link.radius, 1.0)
        return total * self.radius


@dataclass(frozen=True)
class BoxChainSet(ChainSet):
    """Allowed inputs of a chain whose parts all have a few bounded numbers, such as a rotation and a shift."""

    def bounds(self) -> tuple[Flat, Flat]:
        """Least and largest allowed value of each parameter, `(N, P)` each."""
        low, high = zip(*(link.bounds() for link in self.links if isinstance(link, ParameterBox)), strict=True)
        return self.join(low), self.join(high)


def moves_alone(link: Link) -> bool:
    """Return True if starts, steps and projections of a part are the same for all inputs of a shape."""
    return isinstance(link, ParameterBox | OffsetField)


def described(link: Link, theta: Tensor) -> list[str]:
    """Perturbations of one part in words; "changed" where it cannot describe them."""
    return link.describe(theta) if isinstance(link, Described) else ["changed"] * len(theta)
