"""Complete verification of small networks by mixed-integer programs, and the least value of their relaxation.

The solver is HiGHS (through scipy). It computes in floating point, without outward rounding, so a bound counts only
where it exceeds the effect of the solver's tolerances on the output (Zombori et al., "Fooling a complete neural
network verifier", ICLR 2021).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustly.certification.bounds.propagation import ibp, intersection
from robustly.certification.complete.program import Columns, Numbers, Program, encode
from robustly.certification.deadline import Deadline
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph
from robustly.certification.operations import Interval
from robustly.certification.outcome import Outcome
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.evidence import Verdict

TOLERANCE = 1e-6
"""Largest error of a row that the solver allows."""
_FLOAT32_SLACK = 1e-6
_NORMS = {"add": 2, "sub": 2, "clip": 2, "abs": 3}


@dataclass(frozen=True)
class _Least:
    """Least value of a disjunct's largest row: the proved bound, the best point, and the nodes of the search."""

    bound: float
    point: Numbers | None
    nodes: int
    timed_out: bool


def solve(
    graph: Graph,
    inputs: InputSet,
    spec: Specification,
    bounds: Mapping[int, Interval],
    *,
    deadline: Deadline | None = None,
    relaxed: bool = False,
) -> Outcome:
    """Decide a property by one mixed-integer program for each disjunct.

    Verified needs a bound above 1e-6 times the largest bound of a node, by which the error of a binary is
    multiplied, and the product of the norms of all operations. A counterexample is evaluated in float64.

    Args:
        graph: the network, of at most 5,000 values.
        inputs: a box, or the intersection of a box and an l1 ball, of one example.
        spec: the property of that example.
        bounds: known bounds of nodes; nodes that are missing get intervals.
        deadline: end of the search.
        relaxed: solve the linear relaxation instead, which cannot decide everything.

    Raises:
        UnsupportedOperationError: an operation or a ball has no exact encoding, or the network is too large.
        ImportError: scipy is not installed.
    """
    deadline = deadline or Deadline()
    problem = _Problem.of(graph, inputs, bounds)
    spec = spec.to(torch.float64)
    needed = TOLERANCE * problem.largest * _amplification(problem.graph, spec)
    worst, work, late = float("inf"), 0, False

    def outcome(verdict: Verdict, reason: str = "", point: Tensor | None = None) -> Outcome:
        return Outcome(verdict, worst, point, "milp", work, reason)

    for number in range(spec.disjuncts):
        chosen = spec.disjunct == number
        least = problem.least(spec.rows[0, chosen], spec.offset[0, chosen], deadline, relaxed)
        worst, work, late = min(worst, least.bound), work + least.nodes, late or least.timed_out
        point = None if least.point is None else _inside(least.point, inputs)
        if point is not None and bool(spec.violated(evaluate(problem.graph, point.double()))):
            return outcome(Verdict.FALSIFIED, point=point)
    if worst > needed:
        return outcome(Verdict.VERIFIED)
    if late:
        return outcome(Verdict.TIMEOUT, "the deadline passed before the mixed-integer program was solved")
    if relaxed:
        return outcome(Verdict.UNKNOWN, "the linear relaxation does not decide the property")
    return outcome(
        Verdict.UNKNOWN,
        f"open numerically: the least margin {worst:.1e} lies within the solver's tolerance, {needed:.1e}",
    )


def relaxed_minimum(
    graph: Graph, inputs: InputSet, rows: Tensor, offset: Tensor, bounds: Mapping[int, Interval]
) -> Tensor:
    """Least values of rows over the linear relaxation with triangles for ReLUs, which alpha-CROWN approaches.

    Args:
        graph: the network.
        inputs: the input set of one example.
        rows: rows over the outputs, `(R, outputs)`.
        offset: `(R,)`.
        bounds: bounds of nodes, which shape the triangles.

    Returns:
        `(R,)` in float64.
    """
    return _minima(graph, inputs, rows, offset, bounds, relaxed=True)


def exact_minimum(
    graph: Graph, inputs: InputSet, rows: Tensor, offset: Tensor, bounds: Mapping[int, Interval]
) -> Tensor:
    """Least values of rows over the input set, `(R,)`; arguments as for `relaxed_minimum`."""
    return _minima(graph, inputs, rows, offset, bounds, relaxed=False)


def _minima(
    graph: Graph, inputs: InputSet, rows: Tensor, offset: Tensor, bounds: Mapping[int, Interval], relaxed: bool
) -> Tensor:
    problem = _Problem.of(graph, inputs, bounds)
    found = [
        problem.least(row[None].double(), shift[None].double(), Deadline(), relaxed).bound
        for row, shift in zip(rows, offset, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


@dataclass(frozen=True)
class _Problem:
    """A network over one input set as a program.

    Args:
        graph: the network in float64.
        program: its program.
        x: columns of the input.
        y: columns of the output.
        largest: largest absolute bound of a node, at least 1.
    """

    graph: Graph
    program: Program
    x: Columns
    y: Columns
    largest: float

    @classmethod
    def of(cls, graph: Graph, inputs: InputSet, bounds: Mapping[int, Interval]) -> "_Problem":
        exact = graph.to(torch.float64, "cpu")
        inputs = inputs.to(torch.float64)
        known = ibp(exact, inputs)
        for index, interval in bounds.items():
            known[index] = intersection(known[index], _widened(interval))
        program, x, y = encode(exact, inputs, known)
        largest = max(float(bound.abs().max()) for interval in known.values() for bound in interval)
        return cls(exact, program, x, y, max(1.0, largest))

    def least(self, rows: Tensor, offset: Tensor, deadline: Deadline, relaxed: bool) -> _Least:
        """Least value over the input set of the largest of some rows, `(R, outputs)` and `(R,)`."""
        program = self.program.copy()
        largest = program.free_columns(1)
        count = len(rows)
        program.add_rows(
            offset.numpy(), np.full(count, np.inf), (largest, np.ones((count, 1))), (self.y, -rows.numpy())
        )
        cost = np.zeros(program.columns)
        cost[largest] = 1.0
        result = program.solve(cost, deadline.left, relaxed)
        linear = relaxed or not any(part.any() for part in program.whole)
        bound = result.fun if linear and result.status == 0 else getattr(result, "mip_dual_bound", None)
        bound = -np.inf if bound is None or not np.isfinite(bound) or result.status not in (0, 1) else bound
        point = None if result.x is None else result.x[self.x]
        nodes = int(getattr(result, "mip_node_count", None) or 1)
        return _Least(float(bound), point, nodes, result.status == 1)


def _widened(interval: Interval) -> Interval:
    """Bounds in float64, widened by the rounding errors of float32 if they are in it."""
    slack = 0.0 if interval.lower.dtype == torch.float64 else _FLOAT32_SLACK
    low, high = (one.detach().cpu().double() for one in interval)
    return Interval(low - slack * (1 + low.abs()), high + slack * (1 + high.abs()))


def _inside(point: Numbers, inputs: InputSet) -> Tensor:
    """The point in the type of the input set, inside its box and ball."""
    x = torch.from_numpy(point).to(inputs.lower).view_as(inputs.lower)
    x = torch.minimum(torch.maximum(x, inputs.lower), inputs.upper)
    if inputs.ball is None:
        return x
    change = x - inputs.ball.center
    size = float(change.abs().sum())
    share = float(inputs.ball.radius) / max(size, torch.finfo(x.dtype).tiny)
    share = min(1.0, share * (1 - torch.finfo(x.dtype).eps * change.numel()))
    return torch.minimum(torch.maximum(inputs.ball.center + change * share, inputs.lower), inputs.upper)


def _amplification(graph: Graph, spec: Specification) -> float:
    """Product of the norms (largest absolute row sums) of all operations and rows, each at least 1."""
    product = max(1.0, float(spec.rows.abs().sum(-1).max()))
    for node in graph.nodes:
        weight = node.constants.get("weight", node.constants.get("factor"))
        if weight is not None:
            sums = weight.abs() if node.op == "scale" else weight.abs().flatten(1).sum(1)
            if node.op == "conv_transpose":
                sums = weight.abs().sum(0).flatten(1).sum(1) if weight.ndim > 2 else sums
            product *= max(1.0, float(sums.max()))
        elif node.op == "sum":
            product *= math.prod(node.input_shapes[0]) / max(1, node.size)
        elif node.op == "leaky_relu":
            slope = torch.as_tensor(node.constants.get("slope", node.settings.get("slope", 0.0)))
            product *= max(1.0, float((slope.abs() + (1 - slope).abs()).max()))
        else:
            product *= _NORMS.get(node.op, 1)
    return product
