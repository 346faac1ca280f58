"""Inner maximisation by the composite attack (GAT): the parts of a chain in turn, in a fixed or any order."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from robustly.attacks import PGD, AttackResult
from robustly.attacks.composite import MOST_PARTS, Composite, Order
from robustly.attacks.core.contract import ModelMode
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.objectives import ClassificationGoal, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats import Chain, Threat
from robustly.threats.any_order import AnyOrderSet
from robustly.threats.contract import Images, Link, Theta
from robustly.training.inner.pgd import attack_step, training_pgd
from robustly.training.parts import Composition, Part
from robustly.training.step import LabelOrigin, Step
from robustly.training.weights.gairat import GairatWeights

LARGEST_CHAIN = 12
"""Most parts of a chain to train on."""
Acting = list[tuple[int, Tensor, Link]]
"""Parts that act in a slot: number, rows of their examples, and set around these examples' current inputs."""


@dataclass(frozen=True)
class CompositeInner(Part):
    """Composite adversarial training (GAT): the composite attack on a chain in any order, "rotation:10&linf:8/255".

    The parts act in turn. Each moves its own parameters by steps along the sign of the gradient of the
    cross-entropy, on what the part before it returns; its last result is the input of the next part. Nothing stops
    early. For K parts it costs K steps rounds forward and backward passes, and with scheduled orders
    (rounds - 1) (K^2 schedule_steps + 1) more. Under another threat than a chain it is PGD. Hsiung, Tsai, Chen and
    Ho, "Towards compositional adversarial robustness: generalizing adversarial training to composite semantic
    perturbations", CVPR 2023 (arXiv 2202.04235). Their code first adds noise of standard deviation 0.001 to the
    images, which leaves the threat; ours does not.

    Args:
        steps: gradient steps of each part; 0 trains on random changes in random order.
        relative_step_size: length of a step as a share of each part's size; without it 2.5 / steps.
        order: order of the parts: "random" (drawn for each batch, as in the paper), "fixed" (that of the text) or
            "scheduled" (for each image, see the attack; the paper schedules in evaluations only).
        rounds: orders that are tried one after the other, each from the parameters of the one before; with a fixed
            order there is one.
        schedule_steps: steps of each part in each slot of the relaxed chain, for scheduled orders.
        start: "random" (uniform in the ranges of all parts) or "none" (no change).
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels that the attack works against: the label source or the data set.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int = 10
    relative_step_size: float | None = None
    order: Literal["random", "fixed", "scheduled"] = "random"
    rounds: int = 1
    schedule_steps: int = 3
    start: Literal["random", "none"] = "random"
    mode: ModelMode = "eval"
    against: LabelOrigin = "labels"

    def __post_init__(self) -> None:
        _ = self._pgd, self._attack

    @cached_property
    def _pgd(self) -> PGD:
        """The search under a threat of one kind."""
        return training_pgd(
            self.steps, relative_step_size=self.relative_step_size, start=self.start, mode=self.mode
        )

    @cached_property
    def _attack(self) -> Composite:
        """Composite attack that chooses the orders."""
        return Composite(max(self.steps, 1), self.order, self.rounds, self.schedule_steps)

    def check(self, method: Composition) -> str | None:
        """Refuse instance weights that count the steps of one ascent."""
        if isinstance(method.weights, GairatWeights):
            return "composite has an ascent for each part of a chain, gairat counts the steps of one: use pgd"
        return None

    def check_threats(self, threats: tuple[Threat, ...]) -> str | None:
        """Refuse chains of a given order, and too many parts."""
        chains = [one for one in threats if isinstance(one, Chain)]
        most = MOST_PARTS if self.order == "scheduled" else LARGEST_CHAIN
        for chain in chains:
            if not chain.any_order:
                return (
                    f"composite is for chains in any order, {chain} has a given one: write & in place of +, and "
                    "set order to fixed to keep it"
                )
            if len(chain.parts) > most:
                return (
                    f"the order {self.order!r} is for chains of at most {most} parts, {len(chain.parts)} are given"
                )
        return None

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        if not isinstance(step.threat, Chain):
            return attack_step(step, self._pgd, against=self.against)

        def run(search: Search, generator: KeyedGenerator) -> None:
            search.theta = self._rounds(search, generator, step.batch_generator)

        return run_search(
            run,
            step.attacked,
            step.x,
            ClassificationGoal(step.labels_from(self.against)),
            threat=step.threat,
            generator=step.generator.fold("inner"),
            needs=Composite.needs,
            mode=self.mode,
            precision="ambient",
            verdicts=False,
        )

    def _rounds(self, search: Search, generator: KeyedGenerator, of_batch: KeyedGenerator) -> Theta:
        """Try the orders in turn on all examples; returns the last parameters."""
        allowed, rows = search.threat_set, torch.arange(len(search.x), device=search.x.device)
        assert isinstance(allowed, AnyOrderSet)  # `check_needs` rejects other threats before
        theta, same = allowed.identity(), of_batch.select(torch.zeros_like(rows))  # the same numbers for all
        schedule, order = self._attack.first_order(allowed, generator)
        for number in range(1 if self.order == "fixed" else self.rounds):
            draws = (same if self.order == "random" else generator).fold("round", number)
            schedule, order = self._attack.next_order(
                search, rows, theta, schedule, order, draws, first=number == 0
            )
            start = generator.fold("start") if number == 0 and self.start == "random" else None
            theta = self._parts_in_turn(search, allowed, theta, order, start)
        return theta

    def _parts_in_turn(
        self, search: Search, allowed: AnyOrderSet, theta: Theta, order: Order, start: KeyedGenerator | None
    ) -> Theta:
        """Move the part of each slot in turn, on what the parts of earlier slots return.

        Args:
            search: the attack on the batch.
            allowed: its threat set.
            theta: parameters of all parts, `(N, P + K)`.
            order: part of each slot.
            start: random numbers with which the parts start anew; None starts them where they are.
        """
        parts, images = allowed.parted(theta)[0], search.x
        for slot in range(allowed.count):
            acting = _acting(allowed, order[:, slot], images)
            if start is not None:
                for number, rows, link in acting:
                    begun = link.random_start(start.select(rows).fold("part", number))
                    parts[number] = parts[number].index_copy(0, rows, begun)
            for _ in range(self.steps):
                parts = self._moved(search, acting, parts)
            if slot + 1 < allowed.count:
                with torch.no_grad():
                    images = _rendered(acting, parts)
        return allowed.joined(parts, order)

    def _moved(self, search: Search, acting: Acting, parts: list[Tensor]) -> list[Tensor]:
        """Parameters after a step of the acting parts, each of the same share of its size."""
        numbers = [number for number, _, _ in acting]
        shapes = [parts[number].shape for number in numbers]

        def parted(flat: Tensor) -> list[Tensor]:
            own = torch.split(flat, [shape[1:].numel() for shape in shapes], dim=1)
            found = list(parts)
            for number, values, shape in zip(numbers, own, shapes, strict=True):
                found[number] = values.reshape(shape)
            return found

        flat = torch.cat([parts[number].flatten(1) for number in numbers], dim=1)
        everyone = torch.arange(len(flat), device=flat.device)
        gradient = parted(
            search.gradient_through(lambda values: _rendered(acting, parted(values)), flat, everyone, cross_entropy)
        )
        share = 2.5 / self.steps if self.relative_step_size is None else self.relative_step_size
        after = list(parts)
        for number, rows, link in acting:
            moved = link.step(parts[number][rows], gradient[number][rows], share * link.radius)
            after[number] = parts[number].index_copy(0, rows, moved)
        return after


def _acting(allowed: AnyOrderSet, numbers: Int64[Tensor, " n"], images: Images) -> Acting:
    """The parts of one slot; every example belongs to one."""
    found: Acting = []
    for number, link in enumerate(allowed.chain.links):
        rows = (numbers == number).nonzero()[:, 0]
        if len(rows) == len(images):
            return [(number, rows, link.moved_to(images))]
        if len(rows):
            found.append((number, rows, link.select(rows).moved_to(images[rows])))
    return found


def _rendered(acting: Acting, parts: list[Tensor]) -> Images:
    """Inputs after the parts of one slot; differentiable."""
    outputs = torch.cat([link.apply(parts[number][rows]) for number, rows, link in acting])
    return outputs[torch.cat([rows for _, rows, _ in acting]).argsort()] if len(acting) > 1 else outputs
