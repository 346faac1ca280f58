"""Chains: several threats applied one after the other, each within its own limits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.balls import L0Ball, LpBall
from robustly.threats.contract import Described, Images, Link, PerExample, Threat, ThreatError, ThreatSet
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.lp import ThreatModel
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
class Chain:
    """Threats applied in their order to one input: "rotation:30+linf:8/255" rotates, then perturbs.

    The size of a perturbation is the largest share that a part uses of its own limit; the extent is therefore 1.

    Args:
        parts: at least two threats of one box, Lp threats or threats whose perturbations can act on any input.
        share: share of its extent that each part may use, at least 0 (security curves, epsilon ramps).

    Raises:
        ThreatError: fewer than two parts; parts of different boxes; a chain inside a chain; one epsilon per
            example.
    """

    parts: tuple[Threat, ...]
    share: Fraction

    def __init__(self, parts: Sequence[Threat], share: float | str | Fraction = Fraction(1)) -> None:
        if len(parts) < 2:
            raise ThreatError(f"a chain must have at least two parts, got {len(parts)}")
        for one, other in pairwise(parts):
            if one.box != other.box:
                raise ThreatError(
                    f"the parts of a chain must share one box, {one} has {one.box} and {other} {other.box}"
                )
        for part in parts:
            if isinstance(part, Chain) or isinstance(part.extent, Tensor):
                raise ThreatError(
                    f"a part of a chain must be a single threat with one extent for all examples, got {part}"
                )
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "share", parse_epsilon(share))
        if self.share < 0:
            raise ThreatError(f"the share of the parts' extents must be at least 0, got {share}")

    def __str__(self) -> str:
        return "+".join(str(part) for part in self._limited)

    @property
    def kind(self) -> str:  # noqa: D102
        return "chain"

    @property
    def box(self) -> tuple[float, float]:  # noqa: D102
        return self.parts[0].box

    @property
    def extent(self) -> Fraction:
        """Share of its own extent that each part may use."""
        return self.share

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.share)

    @property
    def unit(self) -> str:  # noqa: D102
        return "times each part's limit"

    @property
    def arrays(self) -> Mapping[str, Tensor]:
        """Those of the parts."""
        return {name: values for part in self.parts for name, values in part.arrays.items()}

    @property
    def set_type(self) -> type["ChainSet"]:
        """`BoxChainSet` where all parts have ranges of parameters, else `ChainSet`."""
        return BoxChainSet if all(issubclass(part.set_type, ParameterBox) for part in self.parts) else ChainSet

    def words(self) -> str:
        """Description of the threat in sentences."""
        first, *rest = (part.words() for part in self._limited)
        return " ".join([first, *(f"Then {words[0].lower()}{words[1:]}" for words in rest)])

    def scaled(self, factor: float) -> "Chain":
        """The same parts, each within `factor` times its share."""
        return self.with_extent(float(self.share) * factor)

    def with_extent(self, extent: float | str | Fraction) -> "Chain":
        """The same parts, each within another share of its extent."""
        return Chain(self.parts, extent)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Multiples of this share that are possible for every part."""
        shares = sorted({self.share * Fraction(factor).limit_denominator(1000) for factor in factors})
        return [share for share in shares if share > 0 and self._exists(share)]

    def whole(self) -> "Chain":
        """The same limits as a chain of share 1, to which its text form parses."""
        return Chain(self._limited)

    def select(self, index: Tensor) -> "Chain":
        """The same threat: its extents do not differ between examples."""
        return self

    def around(self, x: Images) -> "ChainSet":
        """Allowed inputs around each input of a batch.

        Raises:
            ThreatError: a part that is not defined for such inputs, or whose perturbations cannot act on others.
        """
        links = []
        for part in self._limited:
            link: ThreatSet = (
                OffsetBall(x, part.offsets_around(x), part.box) if isinstance(part, ThreatModel) else part.around(x)
            )
            if not isinstance(link, Link):
                raise ThreatError(f"{part} cannot be a part of a chain: its perturbations apply to one input only")
            links.append(link)
        whole = torch.full((len(x),), float(self.share), device=x.device, dtype=x.dtype)
        return self.set_type(x, whole, tuple(links))

    @cached_property
    def _limited(self) -> tuple[Threat, ...]:
        if self.share == 1:
            return self.parts
        return tuple(part.scaled(float(self.share)) for part in self.parts)

    def _exists(self, share: Fraction) -> bool:
        return all(part.extents_at([float(share)]) for part in self.parts if part.extent != 0)


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
        for link, part in zip(self.links, self._split(theta), strict=True):
            images = link.moved_to(images).apply(part)
        return images

    def identity(self) -> Flat:
        """Parameters of no perturbation by any part."""
        return self._join([link.identity() for link in self.links])

    def random_start(self, generator: KeyedGenerator) -> Flat:
        """Independent random starts of the parts."""
        return self._in_order(lambda place, link: link.random_start(generator.fold("part", place)))

    def project(self, theta: Flat) -> Flat:
        """Projected parameters of every part."""
        parts = self._split(theta)
        return self._in_order(lambda place, link: link.project(parts[place]))

    def step(self, theta: Flat, gradient: Flat, step_size: PerExample) -> Flat:
        """Step of every part by the same share of its own radius."""
        parts, along = self._split(theta), self._split(gradient)
        share = step_size / torch.where(self.radius > 0, self.radius, 1.0)
        return self._in_order(lambda place, link: link.step(parts[place], along[place], share * link.radius))

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 radii over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def size(self, theta: Flat) -> PerExample:
        """Largest share that a part uses of its limit, times the radius."""
        shares = [
            link.size(part) / torch.where(link.radius > 0, link.radius, 1.0)
            for link, part in zip(self.links, self._split(theta), strict=True)
        ]
        return torch.stack(shares).amax(0) * self.radius

    def contains(self, theta: Flat) -> Bool[Tensor, " n"]:
        """True where every part allows its perturbation."""
        allowed = [link.contains(part) for link, part in zip(self.links, self._split(theta), strict=True)]
        return torch.stack(allowed).all(0)

    def select(self, index: Tensor) -> "ChainSet":
        """Sets of some of the examples."""
        links = tuple(link.select(index) for link in self.links)
        return replace(self, x=self.x[index], radius=self.radius[index], links=links)

    def describe(self, theta: Flat) -> list[str]:
        """Each perturbation in words: "rotated by 12.3 degrees clockwise, changed by 0.031 (linf)"."""
        told = [
            link.describe(part) if isinstance(link, Described) else ["changed"] * len(theta)
            for link, part in zip(self.links, self._split(theta), strict=True)
        ]
        listed = [[words for words in parts if words != "unchanged"] for parts in zip(*told, strict=True)]
        return [", ".join(parts) or "unchanged" for parts in listed]

    @cached_property
    def _shapes(self) -> list[torch.Size]:
        return [link.identity().shape[1:] for link in self.links]

    def _split(self, theta: Flat) -> list[Tensor]:
        flat = torch.split(theta, [shape.numel() for shape in self._shapes], dim=1)
        return [part.reshape(len(theta), *shape) for part, shape in zip(flat, self._shapes, strict=True)]

    def _in_order(self, move: Callable[[int, Link], Tensor]) -> Flat:
        """Parameters of the parts in turn, each from its place and its set after the parts before it."""
        here = self.links[0]
        parts = [move(0, here)]
        for place, link in enumerate(self.links[1:], 1):
            here = link.moved_to(here.apply(parts[-1]))
            parts.append(move(place, here))
        return self._join(parts)

    @staticmethod
    def _join(parts: Sequence[Tensor]) -> Flat:
        return torch.cat([part.flatten(1) for part in parts], dim=1)


@dataclass(frozen=True)
class BoxChainSet(ChainSet):
    """Allowed inputs of a chain whose parts all have a few bounded numbers, such as a rotation and a shift."""

    def bounds(self) -> tuple[Flat, Flat]:
        """Least and largest allowed value of each parameter, `(N, P)` each."""
        low, high = zip(*(link.bounds() for link in self.links if isinstance(link, ParameterBox)), strict=True)
        return self._join(low), self._join(high)
