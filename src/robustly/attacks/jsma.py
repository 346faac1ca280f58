"""Jacobian-based saliency maps: one or two features per step (Papernot et al., EuroS&P 2016)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, Needs, lp_balls
from robustly.attacks.core.linearisation import ranked_targets
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import ClassificationGoal, Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat

LARGEST_FOR_PAIRS = 1024  # features; the table of all pairs of more would not fit into memory
SATURATED = (
    0.01  # features this near the edge, as a share of the box's width, are not moved: their room is too small
)
PAIRS_AT_A_TIME = 2**22  # entries of that table in memory at once


@dataclass(frozen=True)
class JSMA:
    """Move, step by step, the one or two features that raise the target's logit and lower the others' most.

    Alpha is the gradient of the target's logit, beta that of the sum of the others. A feature or a pair is
    admissible if it raises the first and lowers the second (for `theta` < 0: the reverse); the one with the
    largest -alpha * beta is moved (their eq. 8, on logits). Without a target class one run per wrong class is made,
    in the order of the clean logits, and the sparsest success is kept. A run ends once it changed as many pixels as
    an earlier success. A step costs two forward and two backward passes, whatever the number of classes.

    Args:
        theta: change of a feature, as a share of the box's width, in [-1, 1] and not 0.
        gamma: share of the features that may change, in (0, 1].
        pairs: True moves two features at a time; None decides by the number of features.
        targets: number of wrong classes to try; None tries all.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = lp_balls("l0")
    minimum_norm: ClassVar[bool] = True

    theta: float = 1.0
    gamma: float = 0.1
    pairs: bool | None = None
    targets: int | None = None

    def __post_init__(self) -> None:
        if self.theta == 0 or not -1 <= self.theta <= 1 or not 0 < self.gamma <= 1:
            raise AttackError(
                f"theta must be in [-1, 1] and not 0, gamma in (0, 1], got {self.theta}, {self.gamma}"
            )
        if self.targets is not None and self.targets < 1:
            raise AttackError(f"targets must be at least 1, got {self.targets}")

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
        if search.labels.target is not None:
            self._run_target(search, rows, search.labels.target[rows])
            return
        order = ranked_targets(search, "confidence", self.targets or search.clean.shape[1])
        for rank in range(order.shape[1]):
            rows = search.unbroken
            if len(rows) == 0:
                return
            self._run_target(search, rows, order[rows, rank])

    def _run_target(self, search: Search, rows: Rows, target: Int64[Tensor, " m"]) -> None:
        """Run towards one target class until it is reached, or the features are used up."""
        low, high = search.ball.box
        size = search.x[0].numel()
        pairs = self.pairs if self.pairs is not None else size <= LARGEST_FOR_PAIRS
        together = 2 if pairs and size > 1 else 1
        allowed = int(self.gamma * size + 1e-9)  # 0.29 * 100 is a little less than 29
        moves = allowed // together
        if moves == 0:
            return
        point, step = search.x[rows].clone(), self.theta * (high - low)
        used = torch.zeros(len(rows), size, dtype=torch.bool, device=rows.device)
        for move in range(moves + 1):
            goal = ClassificationGoal(search.labels.y[rows], target=target)
            found = search.value_and_grad(point, rows, _targets_logit, goal=goal, gradient=move < moves, rank=False)
            if move == moves:
                return
            sparser = search.ball.select(rows).size(point) < search.distance[rows]
            keep = sparser & (found.output.argmax(1) != target) & ~search.invalid[rows]
            rows, target, point, used = rows[keep], target[keep], point[keep], used[keep]
            if len(rows) == 0:
                return
            others = search.value_and_grad(
                point, rows, _other_logits, goal=goal.select(keep), inside=False, counts=False
            )
            flat = point.flatten(1)
            edge = SATURATED * (high - low)
            free = (flat < high - edge) if step > 0 else (flat > low + edge)
            if search.ball.allowed is not None:
                free &= search.ball.allowed.expand(point.shape).flatten(1)
            chosen, admissible = _most_salient(
                found.gradient[keep].flatten(1), others.gradient.flatten(1), free, step > 0, together
            )
            keep = admissible & (used.scatter(1, chosen, True).sum(1) <= allowed)
            rows, target, chosen = rows[keep], target[keep], chosen[keep]
            if len(rows) == 0:
                return
            used = used[keep].scatter(1, chosen, True)
            flat = flat[keep].scatter_add(1, chosen, torch.full_like(chosen, step, dtype=flat.dtype))
            point = search.ball.select(rows).clamp(flat.view(len(rows), *search.x.shape[1:]))


def _targets_logit(logits: Float[Tensor, "m k"], goal: ClassificationGoal) -> Float[Tensor, " m"]:
    assert goal.target is not None
    return logits.gather(1, goal.target[:, None])[:, 0]


def _other_logits(logits: Float[Tensor, "m k"], goal: ClassificationGoal) -> Float[Tensor, " m"]:
    return logits.sum(1) - _targets_logit(logits, goal)


def _most_salient(
    alpha: Float[Tensor, "m d"], beta: Float[Tensor, "m d"], free: Tensor, is_up: bool, together: int
) -> tuple[Int64[Tensor, "m t"], Tensor]:
    """The feature, or pair, of largest saliency of each example, and a mask of the admissible ones."""
    if not is_up:
        alpha, beta = -alpha, -beta
    if together == 1:
        score = torch.where((alpha > 0) & (beta < 0) & free, -alpha * beta, -torch.inf)
        best = score.max(1)
        return best.indices[:, None], best.values > 0
    size = alpha.shape[1]
    chosen, admissible = [], []
    for part in torch.arange(len(alpha), device=alpha.device).split(max(PAIRS_AT_A_TIME // size**2, 1)):  # type: ignore[no-untyped-call]
        a, b, f = alpha[part], beta[part], free[part]
        both_a, both_b = a[:, :, None] + a[:, None, :], b[:, :, None] + b[:, None, :]
        score = torch.where(
            (both_a > 0) & (both_b < 0) & f[:, :, None] & f[:, None, :], -both_a * both_b, -torch.inf
        )
        score.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        best = score.flatten(1).max(1)
        chosen.append(torch.stack([best.indices // size, best.indices % size], dim=1))
        admissible.append(best.values > 0)
    return torch.cat(chosen), torch.cat(admissible)
