"""Properties of a network that are to be verified, the methods, and the work that they may cost."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robustly.certification.network import Graph
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.randomness import KeyedGenerator

Method = Literal["auto", "ibp", "crown", "alpha_crown", "bab"]
STAGES: dict[str, tuple[str, ...]] = {
    "ibp": ("attack", "ibp"),
    "crown": ("attack", "ibp", "crown"),
    "alpha_crown": ("attack", "ibp", "crown", "alpha"),
    "auto": ("attack", "ibp", "crown", "long_attack", "alpha", "complete"),
    "bab": ("attack", "long_attack", "complete"),
}
"""Stages of each method, in their order."""
METHODS = tuple(STAGES)
LARGEST = 1e100
"""Largest size of an input; sums and products of larger ones could overflow."""
NO_MEMORY = "the memory is not enough"
UNCONFIRMED = "the network does not confirm the counterexample of its graph: they differ by rounding"
COMPLETE = tuple(name for name, stages in STAGES.items() if "complete" in stages)


@dataclass(frozen=True)
class Budget:
    """Work that one property may cost, counted, so that a result does not depend on the machine.

    Args:
        attack_starts: starts of the first attack on a property of its own; examples have one start, their suite
            has attacks before.
        long_starts: starts of the attack that follows the cheap bounds; examples have none.
        attack_steps: steps from each start.
        alpha_iterations: steps of the optimisation of slopes.
        domains: domains of branch and bound or of input splitting.
        iterations: steps of the optimisation in each batch of domains.
        branching: score that chooses the neuron to split: "babsr" or "fsb".
    """

    attack_starts: int = 16
    long_starts: int = 256
    attack_steps: int = 30
    alpha_iterations: int = 20
    domains: int = 5_000
    iterations: int = 6
    branching: Literal["babsr", "fsb"] = "babsr"


class ProblemError(ValueError):
    """Properties of which nothing can be proved; the message gives the reason."""


@dataclass(frozen=True)
class Problem:
    """Properties of one network.

    Args:
        graph: the network in float64, of which the proofs are.
        inputs: input sets of B properties, in float64.
        spec: specifications of the B properties, in float64.
        confirm: the outputs `(N, outputs)` of the real network for inputs `(N, *shape)`; None for the graph itself.
        generator: random numbers of the attack, if the properties are examples; None for a property of its own.
        dtype: type of the search for a proof.

    Raises:
        ProblemError: sizes that do not fit, bounds of inputs that are NaN, crossed or beyond `LARGEST`, or no rows.
    """

    graph: Graph
    inputs: InputSet
    spec: Specification
    confirm: Callable[[Tensor], Tensor] | None = None
    generator: KeyedGenerator | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        low, high, source = self.inputs.lower, self.inputs.upper, self.graph.source
        if tuple(low.shape[1:]) != self.graph.input_shape:
            own = self.graph.input_shape
            raise ProblemError(f"{source}: inputs have shape {tuple(low.shape[1:])}, the network's input has {own}")
        if tuple(self.spec.rows.shape) != (len(low), len(self.spec.disjunct), self.graph.outputs):
            found = tuple(self.spec.rows.shape)
            raise ProblemError(
                f"{source}: rows of shape {found} do not fit {len(low)} x {self.graph.outputs} outputs"
            )
        if not len(self.spec.disjunct):
            raise ProblemError(f"{source}: there is nothing to prove; a classifier needs at least 2 outputs")
        if not bool(((low <= high) & (low.abs() <= LARGEST) & (high.abs() <= LARGEST)).all()):
            raise ProblemError(
                f"{source}: bounds of inputs must be numbers from {-LARGEST:g} to {LARGEST:g}, the lower one first"
            )
        if not bool(self.spec.rows.isfinite().all() and self.spec.offset.isfinite().all()):
            raise ProblemError(f"{source}: the property has numbers that are NaN or infinite")

    def select(self, index: Tensor) -> "Problem":
        """Some of the properties."""
        generator = None if self.generator is None else self.generator.select(index)
        return replace(self, inputs=self.inputs.select(index), spec=self.spec.select(index), generator=generator)

    def __len__(self) -> int:
        return len(self.inputs.lower)

    def confirmed(self, point: Tensor) -> bool:
        """Return True if the real network violates the first property at a point of its input set."""
        if self.confirm is None:
            return True
        outputs = self.confirm(point)
        return bool(self.spec.to(outputs.dtype).violated(outputs)[0])
