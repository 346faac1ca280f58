"""State of a search: counts of passes, verdicts, and the best point of each example."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import (
    AttackError,
    AttackResult,
    Images,
    check_output,
)
from robustly.attacks.core.gradient_estimators import GradientEstimator
from robustly.attacks.core.model_access import input_gradient, logits_of
from robustly.models.adapted import Adapted
from robustly.objectives import ClassificationGoal, Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import LpBall, laid_out_like
from robustly.threats.contract import Theta, Threat, ThreatSet, per_example

Precision = Literal["full", "ambient", "bfloat16"]
Rows = Int64[Tensor, " m"]
PointValue = Callable[[Images, Tensor, Goal], Float[Tensor, " m"]]
"""An objective that also depends on the inputs: from M inputs, the model's outputs and their goals to `(M,)`."""
Settled = Callable[[Rows, Images, Tensor, Goal], Bool[Tensor, " m"]]
"""Mask of the M examples that stop, from their rows, inputs, the model's outputs and their goals."""


@dataclass(frozen=True)
class Evaluated:
    """Outcome of one evaluation at M points.

    Args:
        output: of the model: logits `(M, K)` for classifiers; float32 or wider.
        gradient: of the objective with respect to theta, zeros where it is NaN or infinite.
        value: the objective `(M,)`.
        reached: True where the goal was reached, confirmed in full precision `(M,)`.
        going: True where the example continues: not broken, not invalid, not settled `(M,)`.
    """

    output: Float[Tensor, "m ..."]
    gradient: Float[Tensor, "m ..."]
    value: Float[Tensor, " m"]
    reached: Bool[Tensor, " m"]
    going: Bool[Tensor, " m"]


class Search:
    """One attack on one batch; all access to the model goes through it.

    Examples are addressed by `rows`, positions in the batch `(M,)`, each at most once in a call. Points are the
    threat's parameters theta; the model receives `render(theta, rows)`. Every output gets a verdict: NaN or
    infinite values make an example invalid. The first point that reaches the goal is kept (under `nearest` the
    nearest one, whatever its size). Of failing points the one with the highest objective is kept.

    Args:
        model: the model, frozen by `frozen`.
        x: inputs `(N, ...)`.
        goal: the goal that defines success.
        threat: the threat.
        nearest: for minimum-norm attacks.
        by_margin: True ranks failing points by the goal's margin instead of the objective, for searches whose
            objective changes.
        half: a bfloat16 copy of the model to search with. Its successes count only if `model` confirms them.
        verdicts: False only moves the points and records nothing (the inner maximisation of training).

    Attributes:
        runs: runs per example, which stop together; more than 1 in a search made by `attacks.core.together`.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Images,
        goal: Goal,
        threat: Threat,
        *,
        nearest: bool = False,
        by_margin: bool = False,
        half: nn.Module | None = None,
        verdicts: bool = True,
    ) -> None:
        self.model, self.x, self.goal, self.threat = model, x, goal, threat
        self.nearest, self.by_margin, self.half, self.verdicts = nearest, by_margin, half, verdicts
        self.threat_set: ThreatSet = threat.around(x)
        self._is_direct = isinstance(self.threat_set, LpBall)
        self.runs = 1
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.theta: Theta = self.threat_set.identity().clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        self.highest = torch.full_like(self.distance, -torch.inf)
        self.margin = torch.full_like(self.distance, -torch.inf)
        self.forwards, self.backwards = count, count.clone()
        self.correct_iterates, self.zero_gradients = count.clone(), count.clone()
        self.broken, self.invalid = count.bool(), count.bool()
        self.clean = x.new_zeros(len(x), 0)

    def begin(self) -> None:
        """Run the clean pass. Misclassified examples count as broken at distance 0 and are not attacked."""
        given = self.x.clone()
        version = given._version
        with torch.no_grad():
            self.clean = check_output(logits_of(self.model, given), self.goal)
        if given._version != version:  # the model normalises its input in place
            self.model = Adapted(self.model, copies_input=True)
        self.forwards += 1
        finite = _all_finite(self.clean)
        self.broken = self.goal.reached(self.clean)
        if finite is not None:
            self.invalid |= ~finite
            self.broken |= ~finite
        self.distance[self.broken] = 0.0
        self.margin = _margin(self.clean, self.goal).to(self.margin)

    @property
    def unbroken(self) -> Rows:
        """Rows of the unbroken examples; under `nearest`, of all that were classified correctly at the start."""
        return (~self.broken & ~self.invalid).nonzero()[:, 0]

    @property
    def ball(self) -> LpBall:
        """Threat set of an attack that is defined for Lp balls only."""
        assert isinstance(self.threat_set, LpBall)  # `check_needs` rejects other threats before
        return self.threat_set

    @property
    def labels(self) -> ClassificationGoal:
        """Goal of an attack that is defined for classification only.

        Raises:
            AttackError: another kind of goal.
        """
        if not isinstance(self.goal, ClassificationGoal):
            raise AttackError(
                f"this attack is defined for classification, the goal is a {type(self.goal).__name__}"
            )
        return self.goal

    def render(self, theta: Theta, rows: Rows) -> Images:
        """Inputs of the model for some parameters; differentiable.

        Args:
            theta: `(M, ...)`, or a multiple of M rows: the repetitions of one example follow each other.
            rows: `(M,)`.
        """
        if self._is_direct:
            return theta
        each = len(theta) // max(len(rows), 1)
        return self.threat_set.select(rows.repeat_interleave(each) if each > 1 else rows).apply(theta)

    def along_free(self, gradient: Theta) -> Theta:
        """Gradient with zeros where the mask of an Lp threat forbids changes."""
        return self.ball.along_free(gradient) if self._is_direct else gradient

    def evaluate(self, theta: Theta, rows: Rows) -> Float[Tensor, "m ..."]:
        """Outputs at allowed points, recorded: one forward pass each, in full precision."""
        with torch.no_grad():
            output = logits_of(self.model, self.render(theta, rows))
        self.forwards[rows] += 1
        self.record(theta, rows, output, None, exact=True)
        return output

    def value_and_grad(
        self,
        theta: Theta,
        rows: Rows,
        objective: Objective,
        *,
        goal: Goal | None = None,
        estimator: GradientEstimator | None = None,
        draws: KeyedGenerator | None = None,
        gradient: bool = True,
        inside: bool = True,
        rank: bool = True,
        counts: bool = True,
        value_at: PointValue | None = None,
        settled: Settled | None = None,
    ) -> Evaluated:
        """Output, objective and gradient at some points: one forward and one backward pass each.

        Args:
            theta: `(M, ...)`.
            rows: their examples.
            objective: function to maximise.
            goal: the objective's goal where it is not that of the verdict (a target class that only directs an
                untargeted search).
            estimator: computes the gradient in place of a backward pass.
            draws: random numbers of the M examples, for the estimator.
            gradient: False saves the backward pass; the gradient is then zero.
            inside: False for points that may lie outside the threat set; they are not kept.
            rank: True ranks failing points by the objective.
            counts: True for iterates, which count in `correct_iterates` and `zero_gradients`.
            value_at: an objective that depends on the inputs too, in place of `objective`.
            settled: examples that stop here. They still take part in the backward pass of the others, which counts.
        """
        goal = self.goal.select(rows) if goal is None else goal
        self.forwards[rows] += 1
        if not gradient or estimator is not None:
            moving = torch.ones_like(rows, dtype=torch.bool)
            output, value, found = self._estimated(
                theta, rows, objective, goal, estimator, draws, gradient=gradient
            )
        else:
            output, value, found, moving = self._differentiated(theta, rows, objective, goal, value_at, settled)
        output, value, found = output.detach(), value.detach().to(theta.dtype), self.along_free(found)
        if gradient and counts:
            self.correct_iterates[rows] += ~self.goal.select(rows).reached(output)
        if not self.verdicts:
            return Evaluated(output, found, value, torch.zeros_like(moving), moving)
        if gradient and counts:
            self.zero_gradients[rows] += (found.flatten(1) == 0).all(1)
        reached = torch.zeros_like(moving)  # points outside the threat set do not count as found
        if inside:
            lead = self._lead(output, rows, objective, goal, value)
            worth = lead.to(value) if self.by_margin and lead is not None else value
            reached = self.record(theta, rows, output, worth if rank else None, exact=self.half is None, lead=lead)
        return Evaluated(output, found, value, reached, moving & ~self.in_any_run(self.invalid | self.broken)[rows])

    def _lead(self, output: Tensor, rows: Rows, objective: Objective, goal: Goal, value: Tensor) -> Tensor | None:
        """Margin of the goal, where the search needs it or has it: an untargeted margin as objective."""
        if self.by_margin:
            return _margin(output, self.goal.select(rows))
        # a targeted margin, and that of another kind of goal, is another number
        known = objective is margin and type(goal) is type(self.goal) is ClassificationGoal and goal.target is None
        return value.nan_to_num(-torch.inf) if known else None

    def in_any_run(self, found: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """True where it is true of any run of the same example."""
        if self.runs == 1:
            return found
        return found.view(-1, self.runs).any(1).repeat_interleave(self.runs)

    def sample_gradient(self, theta: Theta, rows: Rows, objective: Objective, goal: Goal) -> Theta:
        """Gradient of an objective at points that only serve to estimate a gradient.

        Costs one forward and one backward pass each. The points are not iterates: they get no verdict and do not
        count in `correct_iterates` and `zero_gradients`.
        """
        found = self.value_and_grad(theta, rows, objective, goal=goal, inside=False, counts=False)
        return found.gradient

    def jacobian(
        self, theta: Images, rows: Rows, classes: Int64[Tensor, "m c"]
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m c ..."]]:
        """Logits, and gradients of some of the logits at each point: one forward and C backward passes.

        Returns:
            Logits `(M, K)` and gradients `(M, C, ...)`.
        """
        here = theta.detach().requires_grad_()
        logits = logits_of(self.model, self.render(here, rows))
        gradients = []
        for column in range(classes.shape[1]):
            chosen = logits.gather(1, classes[:, column : column + 1]).sum()
            gradient = input_gradient(chosen, here, keep_graph=column + 1 < classes.shape[1])
            gradients.append(self.along_free(gradient))
        self.forwards[rows] += 1
        self.backwards[rows] += classes.shape[1]
        self.correct_iterates[rows] += ~self.goal.select(rows).reached(logits)
        self.record(theta, rows, logits.detach(), None, exact=True)
        return logits.detach(), torch.stack(gradients, dim=1)

    def confirm_best(self) -> None:
        """Evaluate the best failing points in full precision, after a search in half precision."""
        rows = self.unbroken
        if self.half is not None and len(rows):
            self.evaluate(self.theta[rows], rows)

    def _record_nearest(self, theta: Theta, rows: Rows, reached: Bool[Tensor, " m"], exact: bool) -> None:
        place = reached.nonzero()[:, 0]
        if len(place) == 0:
            return
        here, point = rows[place], theta[place]
        distance = self.threat_set.select(here).size(point).to(self.distance)
        closer = distance < self.distance[here]
        if not exact:
            closer = self._confirmed(point, here, closer)
        self.theta[here[closer]] = point[closer]
        self.distance[here[closer]] = distance[closer]

    def record(
        self,
        theta: Theta,
        rows: Rows,
        output: Tensor,
        value: Tensor | None,
        *,
        exact: bool,
        lead: Tensor | None = None,
    ) -> Bool[Tensor, " m"]:
        """Record outputs that the caller may have computed itself, and keep the best points.

        Args:
            theta: allowed points (under `nearest`: points in the box) `(M, ...)`.
            rows: their examples.
            output: the model's outputs there.
            value: the objective, by which failing points are ranked; None ranks none.
            exact: True if the outputs are those of `model`, in full precision.
            lead: margin of the goal at the outputs, if it is known, with -inf for NaN.

        Returns:
            True where the goal was reached, `(M,)`.
        """
        goal, finite = self.goal.select(rows), _all_finite(output)
        reached = goal.reached(output) & ~self.broken[rows]
        if finite is not None:
            reached &= finite
        if self.nearest:
            self._record_nearest(theta, rows, reached, exact)
        else:
            if not exact:
                reached = self._confirmed(theta, rows, reached)
            kept = reached
            if value is not None:
                kept = reached | ((value > self.highest[rows]) & ~self.broken[rows])
            place = kept.nonzero()[:, 0]  # few: most points of a search are not better than those before
            if len(place):
                here = rows[place]
                self.theta[here] = theta[place]
                self.broken[here] |= reached[place]
                if value is not None:
                    self.highest[here] = value[place]
        if finite is not None:
            self.invalid[rows] |= ~finite
            if not self.nearest:
                self.broken[rows] |= ~finite
        lead = _margin(output, goal) if lead is None else lead
        self.margin[rows] = torch.maximum(self.margin[rows], lead.to(self.margin))
        return reached

    def result(self) -> AttackResult:
        """Result of the search."""
        everyone = torch.arange(len(self.x), device=self.x.device)
        inside, theta, beyond = self.broken, self.theta, None
        if self.nearest:
            found = self.distance.isfinite() & ~self.invalid
            inside = (found & self.threat_set.contains(theta)) | self.invalid
            beyond = laid_out_like(self.x, self.render(theta, everyone).detach())
            theta = torch.where(per_example(inside, theta), theta, self.threat_set.identity())
        elif self.verdicts:
            self.distance = torch.where(inside, self.threat_set.size(theta), torch.inf)
        return AttackResult(
            laid_out_like(self.x, self.render(theta, everyone).detach()),
            inside,
            self.distance,
            self.forwards,
            self.backwards,
            self.correct_iterates,
            self.invalid,
            beyond,
            self.margin if self.verdicts else None,
            self.zero_gradients if self.verdicts else None,
            None if self._is_direct else theta,
        )

    def _differentiated(
        self,
        theta: Theta,
        rows: Rows,
        objective: Objective,
        goal: Goal,
        value_at: PointValue | None,
        settled: Settled | None,
    ) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, " m"]]:
        """Output, objective, its gradient by a backward pass, and a mask of the examples that move on."""
        here, moving = theta.detach().requires_grad_(), torch.ones_like(rows, dtype=torch.bool)
        images = self.render(here, rows)
        output = logits_of(self.model if self.half is None else self.half, images)
        if settled is not None:
            moving = ~settled(rows, images.detach(), output.detach(), goal)
        value = objective(output, goal) if value_at is None else value_at(images, output, goal)
        if settled is not None and not bool(moving.any()):
            return output, value, torch.zeros_like(theta), moving
        self.backwards[rows] += 1
        return output, value, input_gradient((value if settled is None else value[moving]).sum(), here), moving

    def _estimated(
        self,
        theta: Theta,
        rows: Rows,
        objective: Objective,
        goal: Goal,
        estimator: GradientEstimator | None,
        draws: KeyedGenerator | None,
        *,
        gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, objective, and the estimator's gradient (zero without an estimator)."""
        fast = self.model if self.half is None else self.half
        with torch.no_grad():
            output = logits_of(fast, self.render(theta, rows))
            value = objective(output, goal)
        if not gradient or estimator is None:
            return output, value, theta.new_zeros(()).expand_as(theta)
        assert draws is not None
        found, forwards, backwards = estimator(
            lambda points: logits_of(fast, self.render(points, rows)),
            theta,
            lambda outputs: objective(outputs, goal),
            draws,
        )
        self.forwards[rows] += forwards
        self.backwards[rows] += backwards
        return output, value, found

    def _confirmed(self, theta: Theta, rows: Rows, claimed: Bool[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Mask of the half-precision successes that hold in full precision: one forward pass each."""
        place = claimed.nonzero()[:, 0]
        if len(place) == 0:
            return claimed
        with torch.no_grad():
            output = logits_of(self.model, self.render(theta[place], rows[place]))
        self.forwards[rows[place]] += 1
        holds = torch.zeros_like(claimed)
        finite = _all_finite(output)
        holds[place] = self.goal.select(rows[place]).reached(output) & (True if finite is None else finite)
        return holds


def _all_finite(output: Tensor) -> Bool[Tensor, " m"] | None:
    """True where all outputs of an example are finite; None if they all are."""
    if math.isfinite(float(output.sum())):  # one operation: a sum with NaN or infinity is not finite
        return None
    return output.flatten(1).isfinite().all(1)


def _margin(output: Tensor, goal: Goal) -> Float[Tensor, " m"]:
    return goal.margin(output).nan_to_num(-torch.inf)
