"""Boundary attack: a random walk along the decision boundary (Brendel, Rauber and Bethge, ICLR 2018)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.decision_boundary import bisect, decide, evaluate_decisions, random_adversarials
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat, per_example

ADAPTATION = 1.5  # factor by which the steps grow or shrink
CHECK_EVERY = 10  # steps between evaluations of the move on the sphere alone
FIRST_BISECTIONS = 10
SMALLEST_SOURCE_STEP = 1e-7
_TINY = 1e-12


@dataclass(frozen=True)
class Boundary:
    """Random moves on the sphere around the original, then towards it, kept while the goal is reached.

    The walk of Brendel et al. (ICLR 2018), with the thresholds of Foolbox. Every tenth step also evaluates the move
    on the sphere alone. If more than 50 % (less than 20 %) of the last 100 such points reach the goal, both step
    sizes grow (shrink) by 1.5; if more than 25 % (less than 10 %) of the last 30 whole moves of these steps do, the
    step towards the original does. The attack uses no logits, only success or failure. Minimum-norm.

    Costs some 1.1 forward passes per step, up to `tries` for a start, and no backward pass. Examples for which no
    random image reaches the goal are not attacked.

    Args:
        steps: at least 1; the paper uses 25,000 and more.
        spherical_step: first length of a move on the sphere, relative to the distance, positive.
        source_step: first length of a move towards the original, relative to the distance, in (0, 1).
        tries: largest number of random images for the start, at least 1.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("l2")
    minimum_norm: ClassVar[bool] = True

    steps: int = 25_000
    spherical_step: float = 0.01
    source_step: float = 0.01
    tries: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1 or self.tries < 1:
            raise AttackError(f"steps and tries must be at least 1, got {self.steps}, {self.tries}")
        if not 0 < self.spherical_step < float("inf") or not 0 < self.source_step < 1:
            raise AttackError(
                "spherical_step must be a positive number and source_step in (0, 1), got "
                f"{self.spherical_step}, {self.source_step}"
            )

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
        rows, points = random_adversarials(search, rows, generator.select(rows).fold("start"), self.tries)
        points = bisect(search, rows, points, FIRST_BISECTIONS)
        x, draws = search.x[rows], generator.select(rows)
        distance = _length(points - x)
        spherical, source = (torch.full_like(distance, size) for size in (self.spherical_step, self.source_step))
        on_sphere, whole = _Memory.empty(distance, 100), _Memory.empty(distance, 30)
        for step in range(self.steps):
            keep = ~search.invalid[rows] & (source > SMALLEST_SOURCE_STEP)
            if not bool(keep.all()):
                rows, x, draws, points = rows[keep], x[keep], draws.select(keep), points[keep]
                distance, spherical, source = distance[keep], spherical[keep], source[keep]
                on_sphere, whole = on_sphere.select(keep), whole.select(keep)
            if len(rows) == 0:
                return
            noise = search.ball.along_free(draws.fold("step", step).normal(*x.shape[1:]).to(x))
            moved, nearer = _moves(x, points, noise, spherical, source, search.ball.box)
            checked = step % CHECK_EVERY == 0
            sphere_reached = decide(search, rows, moved[:, None])[:, 0] if checked else None
            reached = evaluate_decisions(search, nearer, rows)
            shorter = _length(nearer - x)
            better = reached & (shorter < distance)
            points = torch.where(per_example(better, points), nearer, points)
            distance = torch.where(better, shorter, distance)
            if sphere_reached is not None:
                on_sphere, whole = on_sphere.add(sphere_reached), whole.add(reached)
                factor, on_sphere = on_sphere.adapt(0.2, 0.5)
                spherical, source = spherical * factor, source * factor
                factor, whole = whole.adapt(0.1, 0.25)
                source = source * factor


@dataclass(frozen=True, eq=False)
class _Memory:
    """The last outcomes of each example, `(M, W)`, and their number since the last reset."""

    outcomes: Bool[Tensor, "m w"]
    count: Int64[Tensor, " m"]

    @staticmethod
    def empty(like: Float[Tensor, " m"], length: int) -> "_Memory":
        """Memory of a length, without outcomes."""
        count = torch.zeros_like(like, dtype=torch.int64)
        return _Memory(count.bool()[:, None].expand(-1, length), count)

    def add(self, reached: Bool[Tensor, " m"]) -> "_Memory":
        """Memory with the latest outcome in the place of the oldest."""
        return _Memory(torch.cat([self.outcomes[:, 1:], reached[:, None]], dim=1), self.count + 1)

    def adapt(self, least: float, most: float) -> tuple[Float[Tensor, " m"], "_Memory"]:
        """Factor of a step size (1 unless the memory is full), and the memory, reset where the factor is not 1."""
        rate, full = self.outcomes.double().mean(1), self.count >= self.outcomes.shape[1]
        up, down = full & (rate > most), full & (rate < least)
        factor = torch.where(up, ADAPTATION, torch.where(down, 1 / ADAPTATION, 1.0))
        return factor, replace(self, count=self.count.masked_fill(up | down, 0))

    def select(self, keep: Bool[Tensor, " m"]) -> "_Memory":
        """Memory of some of the examples."""
        return _Memory(self.outcomes[keep], self.count[keep])


def _moves(
    x: Images,
    points: Images,
    noise: Images,
    spherical: Float[Tensor, " m"],
    source: Float[Tensor, " m"],
    box: tuple[float, float],
) -> tuple[Images, Images]:
    """A move on the sphere around x, and the same followed by a move towards x."""
    away = points - x
    distance = _length(away)
    outward = away / per_example(distance.clamp_min(_TINY), x)
    across = noise - per_example((noise * outward).flatten(1).sum(1), x) * outward
    across = across * per_example(spherical * distance / _length(across).clamp_min(_TINY), x)
    on_sphere = (away + across) / per_example((spherical.square() + 1).sqrt(), x)
    moved = (x + on_sphere).clamp(*box)
    back = x - moved
    length = _length(back)
    share = (source * distance + length - distance).clamp_min(0.0) / length.clamp_min(_TINY)
    return moved, (moved + per_example(share, x) * back).clamp(*box)


def _length(delta: Images) -> Float[Tensor, " m"]:
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return length
