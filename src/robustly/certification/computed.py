"""Comparison of a proof, which speaks of real arithmetic, with the network as it is computed."""

from dataclasses import replace

import torch

from robustly.certification.evaluation import evaluate
from robustly.certification.falsify import samples
from robustly.certification.outcome import Outcome
from robustly.certification.problem import Problem
from robustly.evidence import Verdict

ROUNDING = "proved in real arithmetic only: the network as it is computed rounds too much"
_POINTS = 32
_UNIT = 2.0**-24  # relative rounding error of float32
_LOST = 0.05  # share of the outputs that the rounding of one value may be


def as_computed(problem: Problem, outcome: Outcome) -> Outcome:
    """The outcome of one property, unknown instead of verified if rounding in float32 may break it.

    That is so if the computed network violates the property at one of 32 points of the set, or if some value inside
    the network is so large that its rounding is as large as the outputs are, as in `(x + 2**24) - 2**24`.
    """
    if outcome.verdict != Verdict.VERIFIED or problem.confirm is None:
        return outcome
    points = samples(problem.inputs, _POINTS)
    outputs = problem.confirm(points)
    first = torch.zeros(len(outputs), dtype=torch.int64, device=outputs.device)
    with torch.no_grad():
        values = evaluate(problem.graph, points.double(), keep=True)
    largest = max((float(one.abs().max()) for index, one in values.items() if index), default=0.0)
    lost = _UNIT * largest > _LOST * float(values[problem.graph.output].abs().max())
    if not lost and not bool(problem.spec.to(outputs.dtype).select(first).violated(outputs).any()):
        return outcome
    return replace(outcome, verdict=Verdict.UNKNOWN, lower_bound=-torch.inf, reason=ROUNDING)
