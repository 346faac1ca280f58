"""Branch and bound over the signs of neurons, with bounds by optimised slopes and multipliers (beta-CROWN).

Wang et al., "Beta-CROWN: efficient bound propagation with per-neuron split constraints" (NeurIPS 2021).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robustly.certification.bounds.alpha import AlphaResult, rows_of_disjuncts
from robustly.certification.bounds.ascent import SLOPE, SPLIT, WEIGHT, Parameters, Task, ascend, combined, lines_of
from robustly.certification.bounds.backward import Bounded, Free, lower
from robustly.certification.bounds.propagation import Bounds
from robustly.certification.bounds.verdict import proof_rows, proved, proved_bounds, repeated
from robustly.certification.complete.branching import choose, filtered, scores
from robustly.certification.complete.domains import Domains, Sites, Store, clamped, sites_of
from robustly.certification.deadline import Deadline
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph
from robustly.certification.operations import Interval, Rows
from robustly.certification.outcome import Outcome
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.evidence import Verdict

Rule = Literal["babsr", "fsb"]
RATES = {SLOPE: 0.1, SPLIT: 0.05, WEIGHT: 0.05}
DECAY = 0.98
NEVER = Deadline()


@dataclass(frozen=True)
class Problem:
    """One property of one network in one precision.

    Args:
        graph: the network.
        inputs: the input set, one example.
        rows: rows of each disjunct, `(D, K, *shape)`.
        offset: their constant parts, `(D, K)`.
        bounds: bounds of every node over the whole set.
        sites: neurons that may be split.
    """

    graph: Graph
    inputs: InputSet
    rows: Tensor
    offset: Tensor
    bounds: Bounds
    sites: Sites

    @property
    def dtype(self) -> torch.dtype:
        """Type of all numbers."""
        return self.rows.dtype

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same problem in another type; bounds are rounded outwards."""
        bounds = {key: InputSet(*one).to(dtype).interval() for key, one in self.bounds.items()}
        return Problem(
            self.graph.to(dtype),
            self.inputs.to(dtype),
            self.rows.to(dtype),
            self.offset.to(dtype),
            bounds,
            self.sites,
        )

    def bounds_in(self, domains: Domains) -> Bounds:
        """Bounds of every node in each domain."""
        signs = self.sites.of_split(domains.splits)
        count = len(domains)
        return {
            key: clamped(one, self.sites.split[key], signs[key])
            if key in signs
            else Interval(
                one.lower.expand(count, *one.lower.shape[1:]), one.upper.expand(count, *one.upper.shape[1:])
            )
            for key, one in self.bounds.items()
        }

    def inputs_of(self, count: int) -> InputSet:
        """The input set, repeated."""
        low, high, ball = self.inputs.lower, self.inputs.upper, self.inputs.ball
        if ball is not None:
            ball = replace(
                ball, center=ball.center.expand(count, *ball.center.shape[1:]), radius=ball.radius.expand(count)
            )
        return InputSet(low.expand(count, *low.shape[1:]), high.expand(count, *high.shape[1:]), ball)


def _spread(values: Tensor, index: Tensor, base: Tensor) -> Tensor:
    """Values `(D, S)` at some places of a copy of `base`, `(D, 1, *shape)`."""
    flat = base.flatten(1).clone()
    flat[:, index] = values.to(flat.dtype)
    return flat.view(base.shape)


def _task(problem: Problem, domains: Domains) -> tuple[Task, Parameters]:
    """The bounding of domains as an ascent, and its start."""
    graph, sites = problem.graph, problem.sites
    bounds = problem.bounds_in(domains)
    count = len(domains)
    dummy = problem.rows.new_zeros(())
    at = {key: Rows(dummy.expand(count, 1, *graph.nodes[key].shape)) for key in sites.slope}
    lines, start = lines_of(graph, at, bounds)
    for key, values in sites.of_slope(domains.slopes).items():
        start[SLOPE, key] = _spread(values, sites.slope[key], start[SLOPE, key])
    signs: dict[int, Tensor] = {}
    multipliers = sites.of_split(domains.multipliers)
    for key, sign in sites.of_split(domains.splits).items():
        if sign.any():
            zeros = problem.rows.new_zeros(count, 1, *graph.nodes[key].shape)
            signs[key] = _spread(sign, sites.split[key], zeros)
            start[SPLIT, key] = _spread(multipliers[key], sites.split[key], zeros)
    rows, offset = Rows(problem.rows[domains.disjunct]), problem.offset[domains.disjunct]
    if problem.rows.shape[1] > 1:
        start[WEIGHT, graph.output] = domains.weights.to(problem.dtype)
    task = Task(graph, graph.output, rows, offset, problem.inputs_of(count), bounds, lines, signs)
    return task, start


def _with_parameters(problem: Problem, domains: Domains, parameters: Parameters) -> Domains:
    """Domains with the parameters that an ascent found."""
    sites, graph = problem.sites, problem.graph
    slopes = [parameters[SLOPE, key].flatten(1)[:, index] for key, index in sites.slope.items()]
    multipliers = [
        parameters[SPLIT, key].flatten(1)[:, index] if (SPLIT, key) in parameters else old
        for (key, index), old in zip(sites.split.items(), sites.of_split(domains.multipliers).values(), strict=True)
    ]
    multiplier = torch.cat(multipliers, 1) * (domains.splits != 0)
    return replace(
        domains,
        slopes=torch.cat(slopes, 1),
        multipliers=multiplier,
        weights=parameters.get((WEIGHT, graph.output), domains.weights),
    )


def _bounded(problem: Problem, domains: Domains, bounds: Bounds, *, proof: bool = False) -> Bounded:
    """Lower bounds of domains with the parameters that they have; a proof bounds its rounding errors."""
    graph, sites = problem.graph, problem.sites
    count = len(domains)
    zero = problem.rows.new_zeros(())
    free, added = {}, {}
    for key, values in sites.of_slope(domains.slopes).items():
        base = zero.expand(count, 1, *graph.nodes[key].shape)
        free[key] = Free(_spread(values, sites.slope[key], base), True)
    multipliers = sites.of_split(domains.multipliers)
    for key, sign in sites.of_split(domains.splits).items():
        if sign.any():
            base = zero.expand(count, 1, *graph.nodes[key].shape)
            added[key] = _spread(-sign * multipliers[key].to(problem.dtype), sites.split[key], base)
    rows, offset = Rows(problem.rows[domains.disjunct]), problem.offset[domains.disjunct]
    if proof:
        output = problem.bounds[graph.output]
        rows, offset = proof_rows(rows, offset, domains.weights, repeated(output, count))
    else:
        rows, offset = combined(rows, offset, domains.weights)
    return lower(
        graph,
        graph.output,
        rows,
        problem.inputs_of(count),
        bounds,
        offset=offset,
        free=free,
        added=added,
        keep=proof,
        rounding=proof,
    )


def branch(
    graph: Graph,
    inputs: InputSet,
    spec: Specification,
    root: AlphaResult,
    *,
    domains: int,
    iterations: int = 12,
    rule: Rule = "fsb",
    batch: int = 64,
    deadline: Deadline = NEVER,
    confirm: Callable[[Tensor], Tensor] | None = None,
) -> Outcome:
    """Prove or refute one property by splitting neurons.

    Every disjunct has a tree of its own in one queue. The search runs in float32; a domain is closed only by a
    float64 pass that bounds its rounding errors.

    Args:
        graph: the network in float64.
        inputs: the input set, one example, in float64.
        spec: the property, one example, in float64.
        root: bounds of the whole set with optimised slopes.
        domains: number of domains that may be bounded.
        iterations: gradient steps for each domain.
        rule: choice of the neuron to split.
        batch: number of domains that are split at once.
        deadline: moment at which the search stops.
        confirm: outputs `(1, outputs)` of the real network for a counterexample; None to accept the graph's own.
    """
    exact = Problem(
        graph,
        inputs,
        *_rows(graph, spec),
        bounds := proved_bounds(graph, inputs, root.slopes),
        sites_of(graph, bounds),
    )
    quick = exact.to(torch.float32)
    margins = proved(graph, inputs, spec, root.slopes)[0]
    store = Store()
    work = 0
    stuck = float("inf")

    def outcome(verdict: Verdict, reason: str = "", point: Tensor | None = None) -> Outcome:
        closed = float(margins[margins > 0].min()) if bool((margins > 0).any()) else float("inf")
        return Outcome(
            verdict,
            min(store.worst, stuck, closed if verdict == Verdict.VERIFIED else 0),
            point,
            "branch",
            work,
            reason,
        )

    fresh = _start(exact, root, margins)
    while True:
        found = _examined(exact, quick, spec, fresh, rule, confirm)
        if isinstance(found, Tensor):
            return outcome(Verdict.FALSIFIED, point=found)
        leaf = found.choice < 0
        if leaf.any():
            stuck = min(stuck, float(found.bound[leaf].min()))
        store.push(found.select((~leaf).nonzero().squeeze(1)))
        if not len(store):
            break
        if work >= domains:
            return outcome(Verdict.UNKNOWN, f"{work} domains were bounded and {len(store)} are open")
        if deadline.passed:
            return outcome(
                Verdict.TIMEOUT, f"the time is over; {work} domains were bounded and {len(store)} are open"
            )
        children = store.pop(batch).children()
        work += len(children)
        task, start = _task(quick, children)
        raised = ascend(task, start, iterations=iterations, rates=RATES, decay=DECAY)
        fresh = _with_parameters(quick, children, raised.parameters)
    if stuck < float("inf"):
        return outcome(Verdict.UNKNOWN, "all signs are split in a domain whose bound is not positive")
    return outcome(Verdict.VERIFIED)


def _rows(graph: Graph, spec: Specification) -> tuple[Tensor, Tensor]:
    index = rows_of_disjuncts(spec)
    return spec.rows[0][index].view(*index.shape, *graph.nodes[graph.output].shape), spec.offset[0][index]


def _start(problem: Problem, root: AlphaResult, margins: Tensor) -> Domains:
    """A domain for each disjunct that is not refuted."""
    sites = problem.sites
    open_ = (margins <= 0).nonzero().squeeze(1)
    count, device = len(open_), margins.device
    slopes = [
        root.slopes.last[key][0, open_].flatten(1)[:, index]
        if key in root.slopes.last
        else torch.full((count, len(index)), 0.5, device=device)
        for key, index in sites.slope.items()
    ]
    weights = root.slopes.weights
    return Domains(
        splits=torch.zeros(count, sites.splits, dtype=torch.int8, device=device),
        slopes=torch.cat([torch.zeros(count, 0, device=device), *slopes], 1).float(),
        multipliers=torch.zeros(count, sites.splits, device=device),
        weights=problem.offset.new_ones(problem.offset.shape)[open_].float()
        if weights is None
        else weights[0, open_].float(),
        disjunct=open_,
        bound=margins[open_],
        choice=torch.full((count,), -1, device=device),
    )


def _examined(
    exact: Problem,
    quick: Problem,
    spec: Specification,
    domains: Domains,
    rule: Rule,
    confirm: Callable[[Tensor], Tensor] | None,
) -> Domains | Tensor:
    """The domains that a float64 pass leaves open, with the neuron to split next; or a counterexample."""
    if not len(domains):
        return domains
    with torch.no_grad():
        bounds = exact.bounds_in(domains)
        found = _bounded(exact, domains, bounds, proof=True)
        bound = torch.maximum(domains.bound, found.value.squeeze(1))
        open_ = (bound <= 0).nonzero().squeeze(1)
        if not len(open_):
            return domains.select(open_)
        if found.rows is not None:
            point = _counterexample(
                exact, spec, found.rows.with_coefficients(found.rows.coefficients[open_]), confirm
            )
            if point is not None:
                return point
        domains = replace(domains, bound=bound).select(open_)
        at = {key: one.with_coefficients(one.coefficients[open_]) for key, one in found.at.items()}
        seen = {key: Interval(one.lower[open_], one.upper[open_]) for key, one in bounds.items()}
        gain, intercept = scores(exact.graph, exact.sites, domains, seen, at)
        choice = choose(gain, intercept)
        if rule == "fsb" and gain.shape[1]:
            choice = filtered(domains, gain, intercept, lambda tried: _quick_bound(quick, tried))
        return replace(domains, choice=choice)


def _quick_bound(problem: Problem, domains: Domains) -> Tensor:
    """Lower bounds of domains with the parameters that they have."""
    return _bounded(problem, domains, problem.bounds_in(domains)).value.flatten()


def _counterexample(
    problem: Problem, spec: Specification, rows: Rows, confirm: Callable[[Tensor], Tensor] | None
) -> Tensor | None:
    """A point where the bounds of some domains are reached and the property is violated, `(1, *shape)`."""
    points = problem.inputs_of(len(rows.coefficients)).minimisers(rows).squeeze(1)
    outputs = evaluate(problem.graph, points)
    violated = spec.select(torch.zeros(len(points), dtype=torch.int64)).violated(outputs)
    for place in violated.nonzero().flatten().tolist():
        point = points[place : place + 1]
        if confirm is None or bool(spec.violated(confirm(point).to(spec.rows))):
            return point
    return None
