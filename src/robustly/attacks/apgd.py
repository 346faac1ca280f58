"""Auto-PGD: projected ascent with an adaptive step size (Croce and Hein, "Reliable evaluation", ICML 2020)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.apgd_ascent import AdaptiveAscent, APGDStart
from robustly.attacks.core.contract import ANY_BUT_L0, AttackError, AttackResult, Images, Needs
from robustly.attacks.core.gradient_estimators import GradientEstimator
from robustly.attacks.core.linearisation import Ranking, ranked_targets
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.core.search_state import Rows
from robustly.attacks.core.together import in_turn, together
from robustly.objectives import (
    ClassificationGoal,
    Goal,
    Objective,
    cross_entropy,
    difference_of_logits_ratio,
)
from robustly.randomness import KeyedGenerator, interleaved
from robustly.threats.contract import Threat


@dataclass(frozen=True)
class APGD:
    """Ascent with momentum; the step size halves where progress stops (Croce and Hein 2020, alg. 1).

    A robust example costs 1 + restarts * (steps + 1) forward and restarts * (steps + 1) backward passes. The first
    start runs alone, all others at once until one of them breaks the example. Under l1 the steps are sparse
    (Croce and Hein, "Mind the box", ICML 2021, alg. 2).

    Args:
        steps: ascent steps per restart, at least 0.
        objective: function to maximise.
        restarts: independent starts; later ones attack only unbroken examples.
        start: "sphere" (a random point with one coordinate at epsilon, under l2 on the sphere), or "odi" (ascent on
            a random combination of the logits from there, Tashiro et al., NeurIPS 2020).
        odi_steps: steps of that ascent.
        large_epsilon: l1 only: search at 3 epsilon, then 2 epsilon, then epsilon, each from the best point before,
            in 30, 30 and 40 % of the steps.
        early_stop: True removes an example from the batch as soon as it is broken.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.
        estimator: computes gradients in place of the backward pass.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = ANY_BUT_L0
    minimum_norm: ClassVar[bool] = False

    steps: int = 100
    objective: Objective = cross_entropy
    restarts: int = 1
    start: APGDStart = "sphere"
    odi_steps: int = 7
    large_epsilon: bool = False
    early_stop: bool = True
    precision: Precision = "full"
    estimator: GradientEstimator | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.restarts, self.odi_steps, self.start)

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

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        ascent = AdaptiveAscent(
            self.steps,
            self.objective,
            self.start,
            self.odi_steps,
            self.large_epsilon,
            self.early_stop,
            self.estimator,
        )
        for runs in in_turn(self.restarts, self.estimator):
            rows = search.unbroken
            if len(rows) == 0:
                return
            draws = [generator.select(rows).fold("restart", restart) for restart in runs]

            def run(part: Search, each: Rows, place: Tensor, draws: list[KeyedGenerator] = draws) -> None:
                ascent(part, each, part.goal.select(each), interleaved([one.select(place) for one in draws]))

            together(search, rows, len(runs), run)


@dataclass(frozen=True)
class TargetedAPGD:
    """APGD towards one wrong class after the other: APGD-T, and its MALT-ordered variant.

    Any wrong prediction breaks an example, not only the target class of the search. The first target runs alone,
    all others at once until one of them breaks the example.

    Args:
        steps: ascent steps per target.
        objective: function to maximise, in its targeted form.
        targets: number of target classes, in the order of `ranking`; at most K - 1 are used.
        first: rank of the first target, from 0, so that a later stage of a suite can continue an earlier one.
        ranking: "confidence" (largest clean logits first, as AutoAttack), or "malt" (smallest linearised distance
            first, Melamed et al., NeurIPS 2024; costs K - 1 more backward passes).
        restarts: starts per target.
        start: as in `APGD`, like all that follow.
        odi_steps: steps of an ODI start.
        large_epsilon: True starts the l1 schedule in larger balls.
        early_stop: True removes a broken example from the batch.
        precision: of the search; verdicts are in full precision.
        estimator: computes gradients in place of the backward pass.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = ANY_BUT_L0
    minimum_norm: ClassVar[bool] = False

    steps: int = 100
    objective: Objective = difference_of_logits_ratio
    targets: int = 9
    first: int = 0
    ranking: Ranking = "confidence"
    restarts: int = 1
    start: APGDStart = "sphere"
    odi_steps: int = 7
    large_epsilon: bool = False
    early_stop: bool = True
    precision: Precision = "full"
    estimator: GradientEstimator | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.restarts, self.odi_steps, self.start)
        if self.targets < 1 or self.first < 0:
            raise AttackError(f"targets must be at least 1 and first at least 0, got {self.targets}, {self.first}")

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`. A goal with targets is attacked at these targets alone."""
        return run_search(
            self._run,
            model,
            x,
            y,
            threat=threat,
            generator=generator,
            needs=self.needs,
            by_margin=True,
            precision=self.precision,
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        ascent = AdaptiveAscent(
            self.steps,
            self.objective,
            self.start,
            self.odi_steps,
            self.large_epsilon,
            self.early_stop,
            self.estimator,
        )
        order = _targets_of(search, self.ranking, self.first + self.targets)
        ranks = range(min(self.first, order.shape[1]), order.shape[1])
        plan = [(rank, restart) for rank in ranks for restart in range(self.restarts)]
        for turns in in_turn(len(plan), self.estimator):
            rows = search.unbroken
            if len(rows) == 0:
                return
            now = [plan[turn] for turn in turns]
            draws = [generator.select(rows).fold("target", *one) for one in now]
            targets = order[rows][:, [rank for rank, _ in now]]

            def run(
                part: Search,
                each: Rows,
                place: Tensor,
                draws: list[KeyedGenerator] = draws,
                targets: Tensor = targets,
            ) -> None:
                goal = ClassificationGoal(part.labels.y[each], targets[place].flatten())
                ascent(part, each, goal, interleaved([one.select(place) for one in draws]))

            together(search, rows, len(now), run)


def _targets_of(search: Search, ranking: Ranking, count: int) -> Int64[Tensor, "n t"]:
    """Target classes, one column per rank."""
    if search.labels.target is not None:
        return search.labels.target[:, None]
    return ranked_targets(search, ranking, count)


def _check(steps: int, restarts: int, odi_steps: int, start: str) -> None:
    if steps < 0 or restarts < 1 or odi_steps < 1:
        raise AttackError(
            f"steps must be at least 0, restarts and odi_steps at least 1, got {steps}, {restarts}, {odi_steps}"
        )
    if start not in ("sphere", "odi"):
        raise AttackError(f"start must be 'sphere' or 'odi', got {start!r}")
