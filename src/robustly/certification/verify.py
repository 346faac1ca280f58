"""Verification of properties by stages: attack, intervals, backward bounds, optimised slopes, then splitting.

Cheap stages run for all properties at once; then the open ones are split one after the other, the ones nearest to a
proof first, within one time limit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robustly.certification.bounds.alpha import Slopes, optimise, tighten
from robustly.certification.bounds.dense import Dense
from robustly.certification.bounds.methods import margins, row_bounds
from robustly.certification.bounds.propagation import intermediate
from robustly.certification.bounds.verdict import proved
from robustly.certification.complete.branch import branch
from robustly.certification.complete.splitting import split
from robustly.certification.deadline import Deadline
from robustly.certification.falsify import falsify, falsify_each, judge
from robustly.certification.network import Graph
from robustly.certification.operations.pool_as_relu import max_pool_as_relu
from robustly.certification.outcome import Outcome
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.evidence import Verdict
from robustly.randomness import KeyedGenerator

Method = Literal["auto", "ibp", "crown", "alpha_crown", "bab"]
_STAGES: dict[str, tuple[str, ...]] = {
    "ibp": ("attack", "ibp"),
    "crown": ("attack", "ibp", "crown"),
    "alpha_crown": ("attack", "ibp", "crown", "alpha"),
    "auto": ("attack", "ibp", "crown", "long_attack", "alpha", "complete"),
    "bab": ("attack", "long_attack", "complete"),
}
METHODS = tuple(_STAGES)
NEVER = Deadline()
MOST_INPUTS = 20
LARGEST = 1e100
"""Largest size of an input; sums and products of larger ones could overflow."""
NO_MEMORY = "the memory is not enough"
OUT_OF_TIME = "the time limit was reached"
UNCONFIRMED = "the network does not confirm the counterexample of its graph: they differ by rounding"
COMPLETE = tuple(name for name, stages in _STAGES.items() if "complete" in stages)


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
    domains: int = 20_000
    iterations: int = 12
    branching: Literal["babsr", "fsb"] = "fsb"


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


def verify(
    problem: Problem,
    *,
    method: Method = "auto",
    budget: Budget | None = None,
    deadline: Deadline = NEVER,
    seed: int = 0,
) -> tuple[Outcome, ...]:
    """Verify properties: the cheap stages for all, then each open one by splitting.

    Args:
        problem: the properties.
        method: which stages run. All begin with the attack.
        budget: work that one property may cost.
        deadline: when all work stops; open properties get equal shares of the time that is left.
        seed: seed of the attack.
    """
    budget = budget or Budget()
    outcomes = list(screen(problem, method=method, budget=budget, deadline=deadline, seed=seed))
    if "complete" not in _STAGES[method]:
        return tuple(outcomes)
    waiting = by_distance_to_proof(outcomes)
    for done, index in enumerate(waiting):
        share = deadline.share(len(waiting) - done)
        one = problem.select(torch.tensor([index]))
        outcomes[index] = finish(one, outcomes[index], budget=budget, deadline=share)
    return tuple(outcomes)


def by_distance_to_proof(outcomes: Sequence[Outcome]) -> list[int]:
    """Indices of the open properties, the one with the largest lower bound first."""
    waiting = [index for index, one in enumerate(outcomes) if one.verdict == Verdict.UNKNOWN]
    return sorted(waiting, key=lambda index: (-outcomes[index].lower_bound, index))


def screen(
    problem: Problem, *, method: Method, budget: Budget, deadline: Deadline = NEVER, seed: int = 0
) -> tuple[Outcome, ...]:
    """Run the cheap stages; what they leave open has the verdict unknown and its best proved bound."""
    outcomes = [Outcome(Verdict.UNKNOWN, -torch.inf, None, "", 0) for _ in range(len(problem))]
    for stage in _STAGES[method]:
        waiting = [index for index, one in enumerate(outcomes) if one.verdict == Verdict.UNKNOWN]
        if not waiting or stage == "complete":
            break
        if deadline.passed:
            return tuple(_stopped(one) for one in outcomes)
        part = problem.select(torch.tensor(waiting))
        if stage == "long_attack" and problem.generator is not None:
            continue
        if stage.endswith("attack"):
            starts = budget.attack_starts if stage == "attack" else budget.long_starts
            found = _attacked(part, starts, budget.attack_steps, deadline, seed)
        else:
            found = _bounded(part, stage, budget, last=stage == last_bound(method))
        for index, outcome in zip(waiting, found, strict=True):
            before = outcomes[index]
            outcomes[index] = replace(
                outcome,
                lower_bound=max(before.lower_bound, outcome.lower_bound),
                work=before.work + outcome.work,
                reason=outcome.reason or before.reason,
            )
    return tuple(outcomes)


def finish(problem: Problem, before: Outcome, *, budget: Budget, deadline: Deadline = NEVER) -> Outcome:
    """Verify one open property by splitting inputs, where there are few, or neurons."""
    splits_inputs = _has_few_inputs(problem)
    try:
        found = _split(problem, budget, deadline) if splits_inputs else _branched(problem, budget, deadline)
    except (MemoryError, torch.OutOfMemoryError):
        return replace(before, stage="split" if splits_inputs else "branch", reason=NO_MEMORY)
    found = replace(found, work=before.work + found.work, lower_bound=max(before.lower_bound, found.lower_bound))
    if found.verdict != Verdict.FALSIFIED:
        return found
    assert found.counterexample is not None
    point, margin = judge(problem.graph, problem.inputs, problem.spec, found.counterexample)
    if not bool(margin <= 0) or not _confirmed(problem, point):
        return replace(found, verdict=Verdict.UNKNOWN, counterexample=None, reason=UNCONFIRMED)
    return replace(found, counterexample=point)


def _has_few_inputs(problem: Problem) -> bool:
    few = problem.inputs.ball is None and problem.graph.nodes[0].size <= MOST_INPUTS
    return few and Dense.of(problem.graph) is not None


def _split(problem: Problem, budget: Budget, deadline: Deadline) -> Outcome:
    return split(problem.graph, problem.inputs, problem.spec, domains=budget.domains, deadline=deadline)


def _branched(problem: Problem, budget: Budget, deadline: Deadline) -> Outcome:
    """Branch and bound from bounds with optimised slopes; max pools become ReLUs, which can be split."""
    graph = max_pool_as_relu(problem.graph)
    search = graph.to(problem.dtype)
    inputs, spec = problem.inputs.to(problem.dtype), problem.spec.to(problem.dtype)
    if any(len(node.shape) == 3 for node in graph.nodes[1:]):  # rows of convolutions are too many to optimise each
        bounds, slopes = intermediate(search, inputs, method="crown"), None
    else:
        bounds, slopes = tighten(search, inputs, iterations=budget.alpha_iterations)
    root = optimise(search, inputs, spec, bounds, iterations=budget.alpha_iterations, slopes=slopes)
    return branch(
        graph,
        problem.inputs,
        problem.spec,
        root,
        domains=budget.domains,
        iterations=budget.iterations,
        rule=budget.branching,
        deadline=deadline,
        confirm=problem.confirm,
    )


def largest_radii(
    at: Callable[[Tensor, Tensor], Problem],
    low: Tensor,
    high: Tensor,
    *,
    method: Method,
    budget: Budget,
    halvings: int,
) -> Tensor:
    """Radii up to which the last method before branch and bound proves properties, by bisection, `(B,)`.

    The search computes in the type of the problems; each radius is proved at the end.

    Args:
        at: the problem of some properties at given radii: `(rows, radii) -> problem`.
        low: radii that are proved already, `(B,)`.
        high: radii that are not, or are not examined.
        method: as for `verify`.
        budget: as for `verify`.
        halvings: steps of the bisection.
    """
    stage = last_bound(method)
    every, proved_low = torch.arange(len(low)), low
    for _ in range(halvings):
        middle = (low + high) / 2
        holds = _searched(at(every, middle), stage, budget)[0] > 0
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    risen = (low > proved_low).nonzero().squeeze(1)
    if len(risen):
        problem = at(risen, low[risen])
        fails = risen[~(_proofs(problem, stage, _searched(problem, stage, budget)[1]) > 0)]
        low[fails] = proved_low[fails]
    return low


def last_bound(method: Method) -> str:
    """The last stage of a method before branch and bound: "ibp", "crown" or "alpha"."""
    stages = [one for one in _STAGES[method] if one in ("ibp", "crown", "alpha")]
    return stages[-1] if stages else "crown"


def _stopped(outcome: Outcome) -> Outcome:
    if outcome.verdict != Verdict.UNKNOWN:
        return outcome
    return replace(outcome, verdict=Verdict.TIMEOUT, reason=OUT_OF_TIME)


def _attacked(problem: Problem, starts: int, steps: int, deadline: Deadline, seed: int) -> list[Outcome]:
    points: list[Tensor | None] = [None] * len(problem)
    if problem.generator is None:
        for index in range(len(problem)):
            one = problem.select(torch.tensor([index]))
            points[index] = falsify(
                one.graph,
                one.inputs,
                one.spec,
                starts=starts,
                steps=steps,
                seed=seed,
                deadline=deadline,
            )
    else:
        found = falsify_each(
            problem.graph,
            problem.inputs,
            problem.spec,
            steps=steps,
            generator=problem.generator,
            deadline=deadline,
        )
        points = [found.points[index : index + 1] if hit else None for index, hit in enumerate(found.mask.tolist())]
    outcomes = []
    for index, point in enumerate(points):
        broken = point is not None and _confirmed(problem.select(torch.tensor([index])), point)
        verdict = Verdict.FALSIFIED if broken else Verdict.UNKNOWN
        outcomes.append(Outcome(verdict, -torch.inf, point if broken else None, "attack", 0))
    return outcomes


def _confirmed(problem: Problem, point: Tensor | None) -> bool:
    """Return True if the real network violates the property at a point of the input set."""
    if point is None:
        return False
    if problem.confirm is None:
        return True
    outputs = problem.confirm(point)
    return bool(problem.spec.to(outputs.dtype).violated(outputs)[0])


def _bounded(problem: Problem, stage: str, budget: Budget, last: bool) -> list[Outcome]:
    """Bounds by one method: searched in the type of the problem, then proved where they are positive, or all."""
    try:
        found, slopes = _searched(problem, stage, budget)
        claimed = torch.ones_like(found, dtype=torch.bool) if last else found > 0
        bounds = torch.full_like(found, -torch.inf, dtype=torch.float64)
        rows = claimed.nonzero().squeeze(1)
        if len(rows):
            bounds[rows] = _proofs(problem.select(rows), stage, _of_rows(slopes, rows))
    except (MemoryError, torch.OutOfMemoryError):
        return [Outcome(Verdict.UNKNOWN, -torch.inf, None, stage, 0, NO_MEMORY)] * len(problem)
    return [
        Outcome(Verdict.VERIFIED if bound > 0 else Verdict.UNKNOWN, bound, None, stage, 1)
        for bound in bounds.tolist()
    ]


def _of_rows(slopes: Slopes | None, rows: Tensor) -> Slopes | None:
    """The slopes of some properties; the nodes have their standard bounds."""
    if slopes is None:
        return None
    weights = None if slopes.weights is None else slopes.weights[rows]
    return replace(slopes, last={node: one[rows] for node, one in slopes.last.items()}, weights=weights)


def _searched(problem: Problem, stage: str, budget: Budget) -> tuple[Tensor, Slopes | None]:
    """Lower bound of the worst margin of each property, `(B,)`, without proof, and the slopes that reach it."""
    graph, inputs = problem.graph.to(problem.dtype), problem.inputs.to(problem.dtype)
    spec = problem.spec.to(problem.dtype)
    if stage == "alpha":
        start = intermediate(graph, inputs, method="crown")
        found = optimise(graph, inputs, spec, start, iterations=budget.alpha_iterations)
        return found.margins.amin(1), found.slopes
    return spec.worst(margins(graph, inputs, spec, "ibp" if stage == "ibp" else "crown")), None


def _proofs(problem: Problem, stage: str, slopes: Slopes | None) -> Tensor:
    """Lower bound of the worst margin of each property in real arithmetic, `(B,)` in float64."""
    graph, inputs, spec = problem.graph, problem.inputs, problem.spec
    if slopes is not None:
        return proved(graph, inputs, spec, slopes).amin(1)
    bounds = intermediate(graph, inputs, method="ibp" if stage == "ibp" else "crown", rounding=True)
    found = row_bounds(graph, inputs, spec, bounds, rounding=True, local=True)
    if stage != "ibp":
        found = torch.maximum(found, row_bounds(graph, inputs, spec, bounds, rounding=True))
    return spec.worst(found)
