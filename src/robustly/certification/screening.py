"""Cheap stages of a verification, for many properties at once: attack, intervals, backward and optimised bounds."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from robustly.certification.bounds.alpha import Slopes, optimise
from robustly.certification.bounds.methods import margins, row_bounds
from robustly.certification.bounds.propagation import intermediate
from robustly.certification.bounds.verdict import proved
from robustly.certification.computed import ROUNDING, as_computed
from robustly.certification.deadline import NEVER, Deadline
from robustly.certification.falsify import falsify, falsify_each
from robustly.certification.outcome import OUT_OF_TIME, Outcome
from robustly.certification.problem import NO_MEMORY, STAGES, Budget, Method, Problem
from robustly.evidence import Verdict
from robustly.memory import is_out_of_memory


def screen(
    problem: Problem, *, method: Method, budget: Budget, deadline: Deadline = NEVER, seed: int = 0
) -> tuple[Outcome, ...]:
    """Run the cheap stages; what they leave open has the verdict unknown and its best proved bound."""
    outcomes = [Outcome(Verdict.UNKNOWN, -torch.inf, None, "", 0) for _ in range(len(problem))]
    for stage in STAGES[method]:
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
            bound = -torch.inf if outcome.reason == ROUNDING else max(before.lower_bound, outcome.lower_bound)
            outcomes[index] = replace(
                outcome,
                lower_bound=bound,
                work=before.work + outcome.work,
                reason=outcome.reason or before.reason,
            )
    return tuple(outcomes)


def largest_radii(
    at: Callable[[Tensor, Tensor], Problem],
    low: Tensor,
    high: Tensor,
    *,
    method: Method,
    budget: Budget,
    halvings: int,
) -> Tensor:
    """Radii up to which intervals or backward bounds prove properties, by bisection, `(B,)`.

    The search computes in the type of the problems; each radius is proved at the end.

    Args:
        at: the problem of some properties at given radii: `(rows, radii) -> problem`.
        low: radii that are proved already, `(B,)`.
        high: radii that are not, or are not examined.
        method: as for `verify`; radii are searched by "ibp" for it, and by backward bounds for the others.
        budget: as for `verify`.
        halvings: steps of the bisection.
    """
    stage = "ibp" if last_bound(method) == "ibp" else "crown"
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
    stages = [one for one in STAGES[method] if one in ("ibp", "crown", "alpha")]
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
        broken = point is not None and problem.select(torch.tensor([index])).confirmed(point)
        verdict = Verdict.FALSIFIED if broken else Verdict.UNKNOWN
        outcomes.append(Outcome(verdict, -torch.inf, point if broken else None, "attack", 0))
    return outcomes


def _bounded(problem: Problem, stage: str, budget: Budget, last: bool) -> list[Outcome]:
    """Bounds by one method: searched in the type of the problem, then proved where they are positive, or all."""
    try:
        found, slopes = _searched(problem, stage, budget)
        claimed = torch.ones_like(found, dtype=torch.bool) if last else found > 0
        bounds = torch.full_like(found, -torch.inf, dtype=torch.float64)
        rows = claimed.nonzero().squeeze(1)
        if len(rows):
            bounds[rows] = _proofs(problem.select(rows), stage, _of_rows(slopes, rows))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return [Outcome(Verdict.UNKNOWN, -torch.inf, None, stage, 0, NO_MEMORY)] * len(problem)
    made = [
        Outcome(Verdict.VERIFIED if bound > 0 else Verdict.UNKNOWN, bound, None, stage, 1)
        for bound in bounds.tolist()
    ]
    return [as_computed(problem.select(torch.tensor([index])), one) for index, one in enumerate(made)]


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
