"""Allowed inputs of a chain whose order the adversary chooses, for each input."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.chain_set import ChainSet, Flat, SmoothChainSet, described, moves_alone
from robustly.threats.contract import Images, Link, PerExample

Order = Int64[Tensor, "n k"]
Moved = Callable[[int, Tensor, Link], Tensor]
"""New parameters of a part from its number, the rows of the examples, and its set around their current inputs."""


@dataclass(frozen=True)
class AnyOrderSet:
    """Allowed inputs of a chain in any order, as of Hsiung et al. (CVPR 2023).

    theta `(N, P + K)` holds the parameters of the K parts as in `ChainSet`, then the order: entry k is the number
    of the part that acts k-th. Gradients of the order are zero, and steps keep it: ascent from several random
    starts searches several orders.

    Args:
        chain: the parts in the order of the text, and the inputs.
    """

    chain: ChainSet

    @property
    def x(self) -> Images:
        """Original inputs."""
        return self.chain.x

    @property
    def radius(self) -> PerExample:
        """Largest size, `(N,)`: the share of their limits that the parts may use."""
        return self.chain.radius

    @property
    def count(self) -> int:
        """Number of parts."""
        return len(self.chain.links)

    def apply(self, theta: Flat) -> Images:
        """Inputs after all perturbations, in the order of each example."""
        parts, order = self.parted(theta)
        images, _ = self._walk(order, lambda number, rows, here: parts[number][rows], last=True)
        return images

    def identity(self) -> Flat:
        """No perturbation by any part, in the order of the text."""
        order = torch.arange(self.count, device=self.x.device).expand(len(self.x), -1)
        return self.joined(self.chain.split(self.chain.identity()), order)

    def random_start(self, generator: KeyedGenerator) -> Flat:
        """A random order, and independent random starts of the parts."""
        order = generator.fold("order").uniform(self.count).argsort(1).to(self.x.device)

        def start(number: int, rows: Tensor, here: Link) -> Tensor:
            return here.random_start(generator.select(rows).fold("part", number))

        return self.joined(self._walk(order, start)[1], order)

    def project(self, theta: Flat) -> Flat:
        """Projected parameters of every part; numbers other than an order become their ranks."""
        parts, order = self.parted(theta)
        moved = self._walk(order, lambda number, rows, here: here.project(parts[number][rows]))[1]
        return self.joined(moved, order)

    def step(self, theta: Flat, gradient: Flat, step_size: PerExample) -> Flat:
        """Step of every part by the same share of its own radius; the order stays."""
        parts, order = self.parted(theta)
        along = self.chain.split(gradient[:, : -self.count])
        share = step_size / torch.where(self.radius > 0, self.radius, 1.0)

        def move(number: int, rows: Tensor, here: Link) -> Tensor:
            return here.step(parts[number][rows], along[number][rows], share[rows] * here.radius)

        return self.joined(self._walk(order, move)[1], order)

    def units(self) -> Flat:
        """Change of each parameter per unit of size, as in `ChainSet`; 0 for the order."""
        units = self.chain.units()
        return torch.cat([units, units.new_zeros(len(units), self.count)], dim=1)

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 radii over the number of steps."""
        return self.chain.default_step_size(steps)

    def size(self, theta: Flat) -> PerExample:
        """Largest share that a part uses of its limit, times the radius."""
        return self.chain.size(theta[:, : -self.count])

    def contains(self, theta: Flat) -> Bool[Tensor, " n"]:
        """True where every part allows its perturbation and the order is a permutation."""
        numbers = torch.arange(self.count, device=theta.device).to(theta)
        is_order = (theta[:, -self.count :].sort(1).values == numbers).all(1)
        return self.chain.contains(theta[:, : -self.count]) & is_order

    def select(self, index: Tensor) -> "AnyOrderSet":
        """Sets of some of the examples."""
        return replace(self, chain=self.chain.select(index))

    def describe(self, theta: Flat) -> list[str]:
        """Each perturbation in words, in the order in which the parts act."""
        parts, order = self.parted(theta)
        told = [described(link, part) for link, part in zip(self.chain.links, parts, strict=True)]
        listed = [
            [told[number][row] for number in numbers if told[number][row] != "unchanged"]
            for row, numbers in enumerate(order.tolist())
        ]
        return [", then ".join(words) or "unchanged" for words in listed]

    # parameters and order

    def parted(self, theta: Flat) -> tuple[list[Tensor], Order]:
        """Parameters of the parts, and the order."""
        return self.chain.split(theta[:, : -self.count]), theta[:, -self.count :].detach().argsort(1).argsort(1)

    def joined(self, parts: list[Tensor], order: Order) -> Flat:
        """Parameters that `parted` separates."""
        return torch.cat([self.chain.join(parts), order.to(self.x)], dim=1)

    def _needed(self, order: Order, last: bool) -> Bool[Tensor, "n k"]:
        """True for each slot whose inputs are returned, or moved by a later part in a way that depends on them."""
        if last:
            return torch.ones_like(order, dtype=torch.bool)
        depends = torch.tensor([not moves_alone(link) for link in self.chain.links], device=order.device)[order]
        later = depends.flip(1).cumsum(1).flip(1) - depends.long()
        return later > 0

    def _walk(self, order: Order, moved: Moved, *, last: bool = False) -> tuple[Images, list[Tensor]]:
        """Apply the parts slot after slot; all examples whose part is the same in a slot are moved together.

        Args:
            order: part of each slot, `(N, K)`.
            moved: parameters with which a part acts.
            last: whether the last slot is applied, too.

        Returns:
            The inputs, and the parameters of all parts.
        """
        images, needed = self.x, self._needed(order, last)
        places: list[list[Tensor]] = [[] for _ in range(self.count)]
        values: list[list[Tensor]] = [[] for _ in range(self.count)]
        for slot in range(self.count):
            outputs, moved_rows = [], []
            for number, link in enumerate(self.chain.links):
                rows = (order[:, slot] == number).nonzero()[:, 0]
                if len(rows) == 0:
                    continue
                here = link.select(rows).moved_to(images[rows])
                part = moved(number, rows, here)
                places[number].append(rows)
                values[number].append(part)
                seen = needed[rows, slot].nonzero()[:, 0]
                if len(seen) < len(rows):
                    here, part, rows = here.select(seen), part[seen], rows[seen]
                if len(rows):
                    outputs.append(here.apply(part))
                    moved_rows.append(rows)
            if outputs:
                images = _replaced(images, torch.cat(moved_rows), torch.cat(outputs))
        if len(self.x) == 0:
            return images, self.chain.split(self.chain.identity())
        parts = [torch.cat(own)[torch.cat(rows).argsort()] for own, rows in zip(values, places, strict=True)]
        return images, parts


def _replaced(images: Images, rows: Tensor, values: Images) -> Images:
    """Images with some of them, or all, replaced by others."""
    if len(rows) == len(images):
        return values[rows.argsort()]
    return images.index_copy(0, rows, values)


@dataclass(frozen=True)
class SmoothAnyOrderSet(AnyOrderSet):
    """Allowed inputs of a chain in any order with a part that has a roughness, such as a flow."""

    chain: SmoothChainSet

    def roughness(self, theta: Flat) -> PerExample:
        """Roughness of the parts, whatever their order."""
        return self.chain.roughness(theta[:, : -self.count])
