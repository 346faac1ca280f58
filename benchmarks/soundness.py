"""Search for wrong proofs: random small networks of all operations, random sets and properties near their truth.

    python benchmarks/soundness.py [--networks 100000] [--first 0] [--seconds S]

Every network has an input set and a property (single ones have two). Sampling that narrows in on the best point
gives a value that the worst margin attains; no lower bound may exceed it. For the methods that decide, the
property is moved so that this point violates it by 1e-3 or 1e-6 of its size, which must never be verified, or
misses it by as much. Where a mixed-integer program can encode the network, its minimum is the truth. Continues
what `soundness.json` has counted. Writes `benchmarks/results/soundness.md`.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from robustly.certification.bounds.alpha import optimise
from robustly.certification.bounds.methods import margins, row_bounds
from robustly.certification.bounds.propagation import intermediate
from robustly.certification.bounds.verdict import proved
from robustly.certification.complete.milp import solve
from robustly.certification.deadline import Deadline
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, UnsupportedOperationError
from robustly.certification.outcome import Outcome
from robustly.certification.problem import Budget, Problem
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.certification.verify import finish, verify
from robustly.evidence import Verdict

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from certification.soundness.random_groups import (
    NETWORKS,
    least_values,
    random_boxes,
    random_group,
    random_rows,
)
from certification.soundness.random_problems import (
    nearest,
    random_network,
    random_set,
    random_specification,
)

RESULTS = Path(__file__).parent / "results" / "soundness.md"
STATE = Path("runs/soundness/soundness.json")
GROUPS = 5
"""Groups of networks for each single network."""
DECIDED = 5
"""One of this many single networks is a problem for the methods that decide."""
OFFSETS = (-1e-3, -1e-6, 1e-6, 1e-3)
START = Outcome(Verdict.UNKNOWN, -torch.inf, None, "", 0)
BUDGET = Budget(attack_starts=4, attack_steps=10, alpha_iterations=5, domains=60, iterations=4)


class Counts:
    """What was tried and what was found, by method."""

    def __init__(self) -> None:
        self.numbers: Counter[str] = Counter()
        self.wrong: list[str] = []

    def bound(self, method: str, network: str, bound: Tensor, attained: Tensor, size: Tensor, slack: float) -> None:
        """Compare lower bounds with values that are attained, `(B,)` each."""
        self.numbers[f"{method} bounds"] += len(bound)
        self.numbers[f"{method} tight"] += int((bound > attained - 1e-3 * size).sum())
        wrong = ~(bound <= attained + slack * size)
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            self.wrong.append(f"{method}, {network}: bound {bound[at]:.17g}, attained {attained[at]:.17g}")

    def verdict(self, method: str, network: str, outcome: Outcome, offset: float, problem: Problem) -> None:
        """Check one verdict on a property whose worst margin attains `offset`, or lies there if it is positive."""
        false = offset < 0
        self.numbers[f"{method} {'false' if false else 'true'}"] += 1
        if outcome.verdict == Verdict.VERIFIED:
            self.numbers[f"{method} {'false' if false else 'true'} verified"] += 1
            if false:
                self.wrong.append(f"{method}, {network}: verified, but {offset:g} is attained")
        elif outcome.verdict == Verdict.FALSIFIED:
            self.numbers[f"{method} {'false' if false else 'true'} falsified"] += 1
            if not _is_real(outcome, problem):
                self.wrong.append(f"{method}, {network}: the counterexample is none")


def _is_real(outcome: Outcome, problem: Problem) -> bool:
    """Whether a counterexample lies in the set and violates the property."""
    if outcome.counterexample is None:
        return False
    x, inputs = outcome.counterexample.double(), problem.inputs
    if not bool(((x >= inputs.lower) & (x <= inputs.upper)).all()):
        return False
    if inputs.ball is not None:
        change = (x - inputs.ball.center).flatten(1)
        radius = float(inputs.ball.radius)
        if inputs.ball.norm == "l0":
            pixels = (x - inputs.ball.center).abs().sum(1) if x.dim() == 4 else change.abs()
            size = float((pixels.flatten(1) > 0).sum())
        else:
            size = float(change.norm() if inputs.ball.norm == "l2" else change.abs().sum())
        if not size <= radius:
            return False
    return bool(problem.spec.violated(evaluate(problem.graph, x))[0])


def _moved(spec: Specification, by: Tensor) -> Specification:
    return Specification(spec.rows, spec.offset + by.unsqueeze(1), spec.disjunct, spec.strict)


def _nodes(counts: Counts, method: str, graph: Graph, bounds: dict, points: Tensor, exact: bool) -> None:
    """Compare the bounds of every node with values at points `(B, P, *shape)`."""
    points = points[:, :: max(1, points.shape[1] // 60)]
    values = evaluate(graph, points.flatten(0, 1), keep=True)
    slack = 1e-13 if exact else 1e-9
    for index, node in enumerate(graph.nodes[1:], start=1):
        if node.op == "constant":
            continue
        value = values[index].view(*points.shape[:2], *node.shape)
        size = 1 + value.abs()
        low, high = (one.unsqueeze(1) for one in bounds[index])
        if not bool(((value >= low - slack * size) & (value <= high + slack * size)).all()):
            counts.wrong.append(f"{method}, {graph.source}: node {node.name} ({node.op}) leaves its bounds")
            return
    counts.numbers[f"{method} nodes"] += len(graph.nodes) - 1


@torch.no_grad()
def _bounds(counts: Counts, seed: int, graph: Graph, inputs: InputSet, spec: Specification) -> None:
    """Two thirds of the networks are bounded by CROWN, one third by intervals; some by other methods too."""
    generator = torch.Generator().manual_seed(seed)
    _, attained, points = nearest(graph, inputs, spec, generator)
    size, name = 1 + attained.abs(), graph.source
    method = "crown" if seed % 3 else "ibp"
    bounds = intermediate(graph, inputs, method=method, rounding=True)
    _nodes(counts, method, graph, bounds, points, True)
    found = spec.worst(row_bounds(graph, inputs, spec, bounds, rounding=True))
    counts.bound("crown" if seed % 3 else "crown_ibp", name, found, attained, size, 1e-13)
    if not seed % 3:
        local = spec.worst(row_bounds(graph, inputs, spec, bounds, rounding=True, local=True))
        counts.bound("ibp", name, local, attained, size, 1e-13)
    if graph.nodes[0].size <= 36 and seed % 8 == 0:
        _nodes(counts, "forward", graph, intermediate(graph, inputs, method="forward"), points, False)
        found = spec.worst(margins(graph, inputs, spec, "forward"))
        counts.bound("forward", name, found, attained, size, 1e-9)
    if seed % 10 == 1:
        with torch.enable_grad():
            root = optimise(graph, inputs, spec, intermediate(graph, inputs), iterations=4, goal=None)
        counts.bound("alpha_crown", name, root.margins.amin(1), attained, size, 1e-9)
        found = proved(graph, inputs, spec, root.slopes).amin(1)
        counts.bound("alpha_crown, proved", name, found, attained, size, 1e-13)


@torch.no_grad()
def run_group(counts: Counts, seed: int) -> None:
    """The bounds of a group of networks of one architecture."""
    graph = random_group(seed)
    inputs, rows = random_boxes(graph, seed), random_rows(graph, seed)
    none = torch.zeros(NETWORKS, dtype=torch.bool)
    spec = Specification(rows, torch.zeros(1, NETWORKS, dtype=torch.float64), torch.arange(NETWORKS), none)
    try:
        attained, points = least_values(graph, inputs, rows, torch.Generator().manual_seed(seed))
        size, name = 1 + attained.abs(), graph.source
        method = "crown" if seed % 3 else "ibp"
        bounds = intermediate(graph, inputs, method=method, rounding=True)
        _nodes(counts, method, graph, bounds, points, True)
        if not seed % 3:
            local = row_bounds(graph, inputs, spec, bounds, rounding=True, local=True)[0]
            counts.bound("ibp", name, local, attained, size, 1e-13)
        found = row_bounds(graph, inputs, spec, bounds, rounding=True)[0]
        counts.bound("crown" if seed % 3 else "crown_ibp", name, found, attained, size, 1e-13)
        if graph.nodes[0].size <= 100 and seed % 4 == 0:
            _nodes(counts, "forward", graph, intermediate(graph, inputs, method="forward"), points, False)
            found = margins(graph, inputs, spec, "forward")[0]
            counts.bound("forward", name, found, attained, size, 1e-9)
        if seed % 8 == 1:
            with torch.enable_grad():
                root = optimise(graph, inputs, spec, intermediate(graph, inputs), iterations=4, goal=None)
            counts.bound("alpha_crown", name, root.margins[0], attained, size, 1e-9)
            found = proved(graph, inputs, spec, root.slopes)[0]
            counts.bound("alpha_crown, proved", name, found, attained, size, 1e-13)
        counts.numbers["networks"] += NETWORKS
        counts.numbers["grouped"] += NETWORKS
        for node in graph.nodes:
            counts.numbers[f"op {node.op}"] += NETWORKS
    except UnsupportedOperationError:
        counts.numbers["refused"] += 1
    except Exception as error:
        counts.wrong.append(f"group {seed}: {type(error).__name__}: {error}")


def _verdicts(counts: Counts, seed: int) -> None:
    """All methods that decide, on one property near its truth."""
    kind = seed // DECIDED % 3
    graph = random_network(seed + 10**7, kinked_only=kind == 1, flat=kind == 2)
    inputs = random_set(graph, seed, 1, ("linf",) if kind == 2 else ("linf", "linf", "l1", "l2", "l0"))
    spec = random_specification(graph.outputs, seed, 1)
    generator = torch.Generator().manual_seed(seed)
    _, attained, _ = nearest(graph, inputs, spec, generator, count=256, rounds=6)
    offset = OFFSETS[seed // DECIDED // 3 % 4]
    size = 1 + attained.abs()
    truth = attained
    encoded = kind > 0 and (inputs.ball is None or inputs.ball.norm == "l1")
    if encoded:
        try:
            bounds = intermediate(graph, inputs, rounding=True)
            least = (
                solve(
                    graph, inputs, _moved(spec, 1e6 * torch.ones(1)), bounds, deadline=Deadline.after(5)
                ).lower_bound
                - 1e6
            )
            counts.numbers["milp minima"] += 1
            if least > float(attained) + 1e-4 * float(size):
                counts.wrong.append(f"milp, {graph.source}: least {least:g}, attained {float(attained):g}")
            if offset > 0 and least > -1e9:
                truth = torch.minimum(attained, torch.tensor([least], dtype=torch.float64))
        except UnsupportedOperationError:
            encoded = False
    one = _moved(spec, offset * size - truth)
    problem = Problem(graph, inputs, one)
    for method in ("auto", "alpha_crown", "bab"):
        outcome = verify(problem, method=method, budget=BUDGET)[0]
        counts.verdict(method, graph.source, outcome, offset, problem)
    outcome = finish(problem, START, budget=BUDGET)
    method = outcome.stage + " alone"
    counts.verdict(method, graph.source, outcome, offset, problem)
    bound = torch.tensor([outcome.lower_bound], dtype=torch.float64)
    if offset < 0 and math.isfinite(outcome.lower_bound):
        counts.bound(method, graph.source, bound, offset * size, size, 1e-13)
    if encoded:
        try:
            bounds = intermediate(graph, inputs, rounding=True)
            outcome = solve(graph, inputs, one, bounds, deadline=Deadline.after(5))
            counts.verdict("milp", graph.source, outcome, offset, problem)
        except UnsupportedOperationError:
            counts.numbers["milp not encoded"] += 1


def run(counts: Counts, seed: int) -> None:
    """Everything for one network."""
    graph = random_network(seed)
    inputs, spec = random_set(graph, seed, 2), random_specification(graph.outputs, seed, 2)
    try:
        _bounds(counts, seed, graph, inputs, spec)
        counts.numbers["networks"] += 1
        counts.numbers.update(f"op {node.op}" for node in graph.nodes)
        if seed % DECIDED == 0:
            _verdicts(counts, seed)
            counts.numbers["networks"] += 1
    except UnsupportedOperationError:
        counts.numbers["refused"] += 1
    except Exception as error:
        counts.wrong.append(f"network {seed}: {type(error).__name__}: {error}")


def report(counts: Counts, seconds: float) -> str:
    n = counts.numbers
    bounds = sorted({key.rsplit(" ", 1)[0] for key in n if key.endswith(" bounds")})
    deciders = sorted({key.rsplit(" ", 1)[0] for key in n if key.endswith(" false")})
    lines = [
        "# Soundness on random networks",
        "",
        f"{n['networks']:,} networks of 3 to 14 operations ({n['grouped']:,} of them in groups of {NETWORKS} of "
        "one architecture, each network with its own weights, box and property) in "
        f"{seconds:,.0f} s of CPU time, one thread; "
        f"**{len(counts.wrong)} wrong**. Made by `python benchmarks/soundness.py`.",
        "",
        "| lower bounds | compared with attained values | within 0.1 % of them | values of nodes |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one} | {n[f'{one} bounds']:,} | {n[f'{one} tight']:,} | {n[f'{one} nodes']:,} |" for one in bounds
    ]
    lines += [
        "",
        "| method | false properties | verified | falsified | true properties | verified | falsified |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in deciders:
        cells = [
            f"{n[f'{one} {key}']:,}"
            for key in ("false", "false verified", "false falsified", "true", "true verified", "true falsified")
        ]
        lines.append(f"| {one} | {' | '.join(cells)} |")
    lines += [
        "",
        "True means that the truth lies above 0 as far as a mixed-integer program or sampling shows; sampling may "
        "miss the least value, so a true property may be falsified, by a counterexample that was checked.",
        "",
        "Operations: " + ", ".join(f"{key[3:]} {n[key]:,}" for key in sorted(n) if key.startswith("op ")) + ".",
    ]
    return "\n".join([*lines, "", *(f"- wrong: {one}" for one in counts.wrong[:50])]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts, began, spent, first = Counts(), time.monotonic(), 0.0, options.first
    if STATE.exists():
        saved = json.loads(STATE.read_text())
        counts.numbers, counts.wrong = Counter(saved["numbers"]), saved["wrong"]
        spent, first = saved["seconds"], saved["next"]
    seed = first
    STATE.parent.mkdir(parents=True, exist_ok=True)
    while counts.numbers["networks"] < options.networks and time.monotonic() - began < options.seconds:
        before = len(counts.wrong)
        for part in range(GROUPS):
            run_group(counts, GROUPS * seed + part)
        run(counts, seed)
        for one in counts.wrong[before:]:
            print("WRONG", one, flush=True)
        seed += 1
        if seed % 50 == 0 or counts.numbers["networks"] >= options.networks:
            seconds = spent + time.process_time()
            state = {"numbers": counts.numbers, "wrong": counts.wrong, "seconds": seconds, "next": seed}
            STATE.write_text(json.dumps(state))
            RESULTS.write_text(report(counts, seconds))
    print(report(counts, spent + time.process_time()))


if __name__ == "__main__":
    main()
