"""Exhaustive search over a grid of parameters (Engstrom et al., ICML 2019)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.objectives import Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.chain_set import BoxChainSet
from robustly.threats.contract import Threat
from robustly.threats.parameter_box import ParameterBox

MOST_POINTS = 1_000_000
"""Most points of a grid."""


@dataclass(frozen=True)
class GridSearch:
    """Evaluate every point of a grid over the parameters: the exact worst case over the grid.

    Engstrom et al. ("Exploring the landscape of spatial robustness", ICML 2019) take 31 angles and 5 shifts along
    each axis: `GridSearch(counts=(31, 5, 5))` under "affine:rotation=30,shift=3". Points of a parameter are evenly
    spaced and include both ends of its range. Small changes come first. Where gradients are masked or have many
    local maxima, a grid finds more than gradient ascent.

    A robust example costs 1 forward pass and one for each point, and no backward pass.

    Args:
        counts: number of points of each parameter, each at least 1 (1 is the middle of the range); one number alone
            is that of all parameters. None: the same odd number for all parameters, as many as `queries` allow.
        queries: most points without `counts`, at least 1.
        objective: ranks the points that break nothing.
        precision: "full", "ambient" or "bfloat16"; see `PGD`. In bfloat16 the worst case is no longer exact.

    Raises:
        AttackError: a setting that is out of range; at use, a number of counts other than that of the parameters,
            or too few queries for two points per parameter.
    """

    needs: ClassVar[Needs] = Needs((ParameterBox, BoxChainSet))
    minimum_norm: ClassVar[bool] = False

    counts: tuple[int, ...] | None = None
    queries: int = 775
    objective: Objective = margin
    precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.counts is not None and not (len(self.counts) and all(count >= 1 for count in self.counts)):
            raise AttackError(f"counts must be whole numbers of at least 1, one per parameter, got {self.counts}")
        if self.counts is not None and math.prod(self.counts) > MOST_POINTS:
            raise AttackError(f"a grid has at most {MOST_POINTS:,} points, got {math.prod(self.counts):,}")
        if not 1 <= self.queries <= MOST_POINTS:
            raise AttackError(f"queries must be from 1 to {MOST_POINTS:,}, got {self.queries}")

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
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, precision=self.precision
        )

    def points_of(self, parameters: int) -> tuple[int, ...]:
        """Number of points of each parameter.

        Raises:
            AttackError: counts for another number of parameters, or too few queries.
        """
        if self.counts is not None:
            counts = self.counts * parameters if len(self.counts) == 1 else self.counts
            if len(counts) != parameters:
                raise AttackError(f"the threat has {parameters} parameters, the grid has counts for {len(counts)}")
            if math.prod(counts) > MOST_POINTS:
                raise AttackError(f"a grid has at most {MOST_POINTS:,} points, got {math.prod(counts):,}")
            return counts
        each = round(self.queries ** (1 / parameters))
        while each**parameters > self.queries:
            each -= 1
        if each < 2:
            raise AttackError(
                f"{self.queries} queries are fewer than two points for each of {parameters} parameters: give more, "
                "or use parameter_search"
            )
        return (each if each % 2 else max(each - 1, 2),) * parameters

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        allowed = search.threat_set
        assert isinstance(allowed, ParameterBox | BoxChainSet)  # `check_needs` rejects other threats before
        low, high = allowed.bounds()
        rows = search.unbroken
        rows = rows[allowed.radius[rows] > 0]
        for share in grid(self.points_of(low.shape[1])).to(low):
            if len(rows) == 0:
                return
            points = allowed.select(rows).project(torch.lerp(low[rows], high[rows], share))
            found = search.value_and_grad(points, rows, self.objective, gradient=False)
            rows = rows[found.going]


def grid(counts: Sequence[int]) -> Float[Tensor, "q p"]:
    """Points of a grid on the unit cube, those near its centre first.

    Args:
        counts: number of points along each axis; both ends are among them, or the middle alone for 1.
    """
    axes = [torch.linspace(0, 1, count) if count > 1 else torch.tensor([0.5]) for count in counts]
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    size = (points - 0.5).abs().amax(1)
    return points[size.argsort(stable=True)]
