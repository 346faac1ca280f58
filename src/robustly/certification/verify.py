"""Verification of properties by stages: attack, intervals, backward bounds, optimised slopes, then splitting.

Cheap stages run for all properties at once; then the open ones are split one after the other, the ones nearest to a
proof first, within one time limit.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from robustly.certification.bounds.alpha import optimise, tighten
from robustly.certification.complete.branch import branch
from robustly.certification.complete.splitting import split
from robustly.certification.computed import as_computed
from robustly.certification.deadline import NEVER, Deadline
from robustly.certification.falsify import judge
from robustly.certification.operations.pool_as_relu import max_pool_as_relu
from robustly.certification.outcome import Outcome, spent
from robustly.certification.problem import COMPLETE, NO_MEMORY, UNCONFIRMED, Budget, Method, Problem
from robustly.certification.screening import screen
from robustly.evidence import Verdict
from robustly.memory import is_out_of_memory

MOST_INPUTS = 20
"""Inputs of a network that is verified by splitting them."""


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
    if method not in COMPLETE:
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


def finish(problem: Problem, before: Outcome, *, budget: Budget, deadline: Deadline = NEVER) -> Outcome:
    """Verify one open property by splitting inputs, where there are few, or neurons."""
    splits_inputs = _has_few_inputs(problem)
    try:
        found = _split(problem, budget, deadline) if splits_inputs else _branched(problem, budget, deadline)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return replace(before, stage="split" if splits_inputs else "branch", reason=NO_MEMORY)
    found = replace(found, work=before.work + found.work, lower_bound=max(before.lower_bound, found.lower_bound))
    if found.verdict != Verdict.FALSIFIED:
        return as_computed(problem, found)
    assert found.counterexample is not None
    point, margin = judge(problem.graph, problem.inputs, problem.spec, found.counterexample)
    if not bool(margin <= 0) or not problem.confirmed(point):
        return replace(found, verdict=Verdict.UNKNOWN, counterexample=None, reason=UNCONFIRMED)
    return replace(found, counterexample=point, lower_bound=min(found.lower_bound, float(margin)))


def _has_few_inputs(problem: Problem) -> bool:
    return problem.graph.nodes[0].size <= MOST_INPUTS


def _split(problem: Problem, budget: Budget, deadline: Deadline) -> Outcome:
    return split(problem.graph, problem.inputs, problem.spec, domains=budget.domains, deadline=deadline)


def _branched(problem: Problem, budget: Budget, deadline: Deadline) -> Outcome:
    """Branch and bound from bounds with optimised slopes; max pools become ReLUs, which can be split."""
    if deadline.passed:
        return spent(deadline, -torch.inf, "branch", 0)
    graph = max_pool_as_relu(problem.graph)
    search = graph.to(problem.dtype)
    inputs, spec = problem.inputs.to(problem.dtype), problem.spec.to(problem.dtype)
    bounds, slopes = tighten(search, inputs, iterations=budget.alpha_iterations, deadline=deadline)
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
