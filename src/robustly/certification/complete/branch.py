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
from robustly.certification.complete.leaf import solve_leaf
from robustly.certification.deadline import NEVER, Deadline
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph
from robustly.certification.operations import Interval, Rows
from robustly.certification.outcome import Outcome, spent
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.evidence import Verdict

Rule = Literal["babsr", "fsb"]
Confirm = Callable[[Tensor], Tensor]
RATES = {SLOPE: 0.1, SPLIT: 0.2, WEIGHT: 0.05}
DECAY = 0.98


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
        rows, shifted = combined(rows, offset, domains.weights)
        offset = offset if shifted is None else shifted
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
    iterations: int = 6,
    rule: Rule = "babsr",
    batch: int = 128,
    deadline: Deadline = NEVER,
    confirm: Confirm | None = None,
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
        rule: choice of the neuron to split: "babsr", or "fsb", which tries the best few and costs more.
        batch: number of domains that are split at once.
        deadline: moment at which the search stops.
        confirm: outputs `(1, outputs)` of the real network for a counterexample; None to accept the graph's own.

    Raises:
        ValueError: more than one example, or numbers that are not float64.
    """
    if len(spec.rows) != 1 or len(inputs.lower) != 1:
        raise ValueError(f"branch and bound decides one property at a time, not {len(spec.rows)}")
    if spec.rows.dtype != torch.float64 or inputs.lower.dtype != torch.float64:
        raise ValueError("branch and bound proves in float64: the inputs and the property must have this type")
    exact = Problem(
        graph,
        inputs,
        *_rows(graph, spec),
        bounds := proved_bounds(graph, inputs, root.slopes),
        sites_of(graph, bounds),
    )
    quick = exact.to(torch.float32)
    margins = proved(graph, inputs, spec, root.slopes)[0]
    if not exact.sites.splits and not bool((margins > 0).all()):
        reason = "the network has no sign to split: its other operations are bounded by lines only"
        return Outcome(Verdict.UNKNOWN, float(margins.min()), None, "branch", 0, reason)
    store = Store()
    work, least = 0, float(torch.cat([margins[margins > 0], margins.new_full((1,), torch.inf)]).min())
    fresh = _start(exact, root, margins)
    while True:
        found = _examined(exact, fresh, spec, confirm)
        if found.point is not None:
            return Outcome(Verdict.FALSIFIED, -torch.inf, found.point, "branch", work)
        store.push(_chosen(exact, quick, found, rule))
        least = min(least, found.closed)
        bound = min(least, store.worst, found.stuck)
        if found.stuck < torch.inf:
            reason = "all signs are known in a domain whose bound is not positive"
            return Outcome(Verdict.UNKNOWN, bound, None, "branch", work, reason)
        if not len(store):
            return Outcome(Verdict.VERIFIED, bound, None, "branch", work)
        if deadline.passed or work >= domains:
            return spent(deadline, bound, "branch", work)
        children = store.pop(batch).children()
        work += len(children)
        task, start = _task(quick, children)
        raised = ascend(task, start, iterations=iterations, rates=RATES, decay=DECAY)
        fresh = _with_parameters(quick, children, raised.parameters)


def _rows(graph: Graph, spec: Specification) -> tuple[Tensor, Tensor]:
    index = rows_of_disjuncts(spec)
    return spec.rows[0][index].view(*index.shape, *graph.nodes[graph.output].shape), spec.offset[0][index]


def _start(problem: Problem, root: AlphaResult, margins: Tensor) -> Domains:
    """A domain for each disjunct that is not refuted."""
    sites = problem.sites
    open_ = (~(margins > 0)).nonzero().squeeze(1)
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


@dataclass(frozen=True)
class Examined:
    """Result of the float64 pass over domains.

    Args:
        domains: the domains that stay open and have a neuron to split.
        gain: scores of the neurons, `(D, splits)`.
        intercept: second scores.
        closed: least bound of the domains that are closed; infinite if there are none.
        stuck: least bound of a domain without open signs that stays open; infinite if there is none.
        point: a counterexample, `(1, *shape)`; None if none was found.
    """

    domains: Domains
    gain: Tensor
    intercept: Tensor
    closed: float = float("inf")
    stuck: float = float("inf")
    point: Tensor | None = None


def _examined(problem: Problem, domains: Domains, spec: Specification, confirm: Confirm | None) -> Examined:
    """Prove domains; for the others, try counterexamples, score neurons, and solve those without open signs."""
    nothing = domains.bound.new_zeros(len(domains), problem.sites.splits)
    if not len(domains):
        return Examined(domains, nothing, nothing)
    with torch.no_grad():
        bounds = problem.bounds_in(domains)
        found = _bounded(problem, domains, bounds, proof=True)
        value = torch.where(found.value.isnan(), -torch.inf, found.value).squeeze(1)
        domains = replace(domains, bound=torch.maximum(domains.bound, value))
        open_ = (~(domains.bound > 0)).nonzero().squeeze(1)
        closed = float(torch.cat([domains.bound[domains.bound > 0], domains.bound.new_full((1,), torch.inf)]).min())
        if not len(open_):
            return Examined(domains.select(open_), nothing[:0], nothing[:0], closed)
        point = None
        if found.rows is not None:
            rows = found.rows.with_coefficients(found.rows.coefficients[open_])
            points = problem.inputs_of(len(open_)).minimisers(rows).squeeze(1)
            point = _violation(problem, spec, points, confirm)
        domains = domains.select(open_)
        at = {key: one.with_coefficients(one.coefficients[open_]) for key, one in found.at.items()}
        seen = {key: Interval(one.lower[open_], one.upper[open_]) for key, one in bounds.items()}
        gain, intercept = scores(problem.graph, problem.sites, domains, seen, at)
        stuck = float("inf")
        leaf = (domains.splits != 0).all(1)
        for place in leaf.nonzero().squeeze(1).tolist():
            if point is not None or stuck < torch.inf:
                break
            bound, candidate = _leaf_bound(problem, domains.select(torch.tensor([place])))
            if bound > 0:
                closed = min(closed, bound)
                continue
            point = None if candidate is None else _violation(problem, spec, candidate, confirm)
            stuck = float(domains.bound[place]) if point is None else stuck
        rest = (~leaf).nonzero().squeeze(1)
        return Examined(domains.select(rest), gain[rest], intercept[rest], closed, stuck, point)


def _leaf_bound(problem: Problem, domain: Domains) -> tuple[float, Tensor | None]:
    """Bound of a domain without open signs, and the point of the linear programme; -inf if there is none."""
    if not problem.sites.complete:
        return -torch.inf, None
    bounds = problem.bounds_in(domain)
    disjunct = int(domain.disjunct)
    known = problem.sites.of_split(domain.splits)
    signs = {key: (problem.sites.split[key], one[0]) for key, one in known.items() if one.shape[1]}
    rows, offset = problem.rows[disjunct], problem.offset[disjunct]
    solved = solve_leaf(problem.graph, problem.inputs, bounds, rows, offset, signs)
    if solved is None:
        return -torch.inf, None
    parts = [solved.multipliers.get(key, one[0].double()) for key, one in known.items()]
    domain = replace(domain, multipliers=torch.cat(parts).unsqueeze(0), weights=solved.weights.unsqueeze(0))
    return float(_bounded(problem, domain, bounds, proof=True).value), solved.point


def _chosen(exact: Problem, quick: Problem, found: Examined, rule: Rule) -> Domains:
    """Open domains with the neuron that is split next."""
    if not len(found.domains):
        return found.domains
    with torch.no_grad():
        if rule == "fsb":
            choice = filtered(found.domains, found.gain, found.intercept, lambda one: _quick_bound(quick, one))
        else:
            choice = choose(found.gain, found.intercept)
    return replace(found.domains, choice=choice)


def _quick_bound(problem: Problem, domains: Domains) -> Tensor:
    """Lower bounds of domains with the parameters that they have."""
    return _bounded(problem, domains, problem.bounds_in(domains)).value.flatten()


def _violation(problem: Problem, spec: Specification, points: Tensor, confirm: Confirm | None) -> Tensor | None:
    """The first of some points that violates the property, `(1, *shape)`."""
    outputs = evaluate(problem.graph, points)
    violated = spec.select(torch.zeros(len(points), dtype=torch.int64, device=points.device)).violated(outputs)
    for place in violated.nonzero().flatten().tolist():
        point = points[place : place + 1]
        if confirm is None or bool(spec.violated(confirm(point).to(spec.rows))):
            return point
    return None
