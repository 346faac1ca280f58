"""Elastic-net attack: sparse perturbations under l1 (Chen et al., "EAD", AAAI 2018)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.penalty import PenaltyWeight, capped_lead, check_penalty_search
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat, per_example

Rule = Literal["l1", "elastic_net"]


@dataclass(frozen=True)
class EAD:
    """Minimise c max(z_y - max_{j != y} z_j, 0) + |x' - x|_2^2 + beta |x' - x|_1 by FISTA.

    The perturbation is measured in widths of the box, so that settings mean the same on every box. c is searched
    for each example (see `PenaltyWeight`). A step costs two forward passes and one backward pass.

    Args:
        steps: per value of c, at least 1.
        search_steps: values of c, at least 1.
        beta: weight of the l1 norm, and the shrinkage of every change per step; at least 0. Values that a step
            moves by at most beta from the image stay unchanged until c is large enough.
        initial_c: first value of c.
        learning_rate: first step size; it falls with the root of the share of steps that are left.
        rule: selects the success that is kept (the published decision rules): "l1", the nearest in l1, or
            "elastic_net", that of least |x' - x|_2^2 + beta |x' - x|_1, which is never nearer in l1.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("l1")
    minimum_norm: ClassVar[bool] = True

    steps: int = 1000
    search_steps: int = 9
    beta: float = 1e-3
    initial_c: float = 1e-3
    learning_rate: float = 0.01
    rule: Rule = "l1"

    def __post_init__(self) -> None:
        check_penalty_search(self.steps, self.search_steps, self.initial_c, self.learning_rate)
        if not self.beta >= 0:
            raise AttackError(f"beta must be at least 0, got {self.beta}")
        if self.rule not in get_args(Rule):
            raise AttackError(f"rule must be one of {', '.join(get_args(Rule))}, got {self.rule!r}")

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`."""
        return run_search(
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, nearest=True
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        rows = search.unbroken
        weight = PenaltyWeight.starting_at(self.initial_c, search.distance[rows])
        cheapest = _Cheapest.none_yet(search)
        for _ in range(self.search_steps):
            weight = weight.after(self._descend(search, rows, weight.c, cheapest))
        found = cheapest.cost.isfinite().nonzero()[:, 0]
        search.record(cheapest.points[found], found, cheapest.logits[found], None, exact=True)

    def _descend(
        self, search: Search, rows: Rows, c: Float[Tensor, " m"], cheapest: "_Cheapest"
    ) -> Bool[Tensor, " m"]:
        """One run with given weights; returns a mask of the examples that reached the goal."""
        low, high = search.ball.box
        width = high - low
        place = torch.arange(len(rows), device=rows.device)
        success = torch.zeros_like(rows).bool()
        ball = search.ball.select(rows)
        x = ball.x
        point, ahead = x, x
        objective = capped_lead(0.0)
        for step in range(self.steps):
            here = rows[place]
            found = search.value_and_grad(ahead, here, objective, inside=False)
            change = (ahead - x) / width
            gradient = 2 * change - per_example(c, x) * width * found.gradient
            change = change - self.learning_rate * (1 - step / self.steps) ** 0.5 * gradient
            moved = x + width * change.sign() * (change.abs() - self.beta).clamp_min(0.0)
            moved = ball.clamp(moved)
            success[place] |= self._reached(search, moved, here, cheapest)
            ahead = moved + step / (step + 3) * (moved - point)
            point = moved
            keep = ~search.invalid[here]
            if not bool(keep.all()):
                place, ball, c, point, ahead = place[keep], ball.select(keep), c[keep], point[keep], ahead[keep]
                x = ball.x
                if len(place) == 0:
                    break
        return success

    def _reached(self, search: Search, points: Images, rows: Rows, cheapest: "_Cheapest") -> Bool[Tensor, " m"]:
        """Mask of the points that reach the goal; successes are recorded by the rule."""
        if self.rule == "l1":
            return search.goal.select(rows).reached(search.evaluate(points, rows))
        logits = search.value_and_grad(points, rows, capped_lead(0.0), gradient=False, inside=False).output
        reached = search.goal.select(rows).reached(logits) & logits.isfinite().all(1)
        search.record(points[~reached], rows[~reached], logits[~reached], None, exact=True)
        low, high = search.ball.box
        change = ((points - search.x[rows]) / (high - low)).flatten(1)
        cost = change.square().sum(1) + self.beta * change.abs().sum(1)
        cheaper = reached & (cost < cheapest.cost[rows])
        place = rows[cheaper]
        cheapest.points[place], cheapest.logits[place] = points[cheaper], logits[cheaper]
        cheapest.cost[place] = cost[cheaper]
        return reached


@dataclass(frozen=True)
class _Cheapest:
    """Success of least elastic-net cost of each example; the search itself keeps the one nearest in l1."""

    points: Images
    logits: Float[Tensor, "n k"]
    cost: Float[Tensor, " n"]

    @staticmethod
    def none_yet(search: Search) -> "_Cheapest":
        return _Cheapest(search.x.clone(), search.clean.clone(), torch.full_like(search.distance, torch.inf))
