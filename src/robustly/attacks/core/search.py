"""One attack on one batch: all access to the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.attacks.core.contract import Images, check_output
from robustly.attacks.core.gradient_estimators import GradientEstimator
from robustly.attacks.core.graphs import PassGraphs
from robustly.attacks.core.model_access import input_gradient, logits_of
from robustly.attacks.core.search_state import Rows, SearchState, goal_margin
from robustly.models.adapted import Adapted
from robustly.objectives import ClassificationGoal, Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Theta
from robustly.threats.parameter_box import all_zero

Precision = Literal["full", "ambient", "bfloat16"]
PointValue = Callable[[Images, Tensor, Goal], Float[Tensor, " m"]]
"""An objective that also depends on the inputs: from M inputs, the model's outputs and their goals to `(M,)`."""
Penalty = Callable[[Theta, Rows], Float[Tensor, " m"]]
"""A cost `(M,)` of the parameters of M examples, which an ascent keeps low; differentiable."""
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


class Search(SearchState):
    """One attack on one batch; all access to the model goes through it.

    `SearchState` describes the arguments, and keeps what the calls below find.

    Attributes:
        graphs: captured passes, which replace those of plain objectives; None for none.
    """

    graphs: PassGraphs | None = None

    def begin(self) -> None:
        """Run the clean pass. Misclassified examples count as broken at distance 0 and are not attacked."""
        given = self.x.clone()
        version = given._version
        with torch.no_grad():
            self.clean = check_output(logits_of(self.model, given), self.goal)
        if given._version != version:  # the model normalises its input in place
            self.model = Adapted(self.model, copies_input=True)
        self.forwards += 1
        finite = self.all_finite(self.clean)
        self.broken = self.goal.reached(self.clean)
        if finite is not None:
            self.invalid |= ~finite
            self.broken |= ~finite
        self.distance[self.broken] = 0.0
        self.margin = goal_margin(self.clean, self.goal).to(self.margin)

    def evaluate(self, theta: Theta, rows: Rows) -> Float[Tensor, "m ..."]:
        """Outputs at allowed points, recorded: one forward pass each, in full precision."""
        with torch.no_grad():
            output = logits_of(self.model, self.render(theta, rows))
        self.add(self.forwards, rows, 1)
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
        penalty: Penalty | None = None,
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
            penalty: a cost of theta whose gradient is subtracted from that of the objective, unless an estimator
                computes gradients. It directs the ascent only: values and ranks are those of the objective.
            settled: examples that stop here. They still take part in the backward pass of the others, which counts.
        """
        goal, counted = self.goal_of(rows) if goal is None else goal, self.counted(rows)
        self.add(self.forwards, rows, counted)
        if not gradient or estimator is not None:
            moving = torch.ones_like(rows, dtype=torch.bool)
            output, value, found = self._estimated(
                theta, rows, objective, goal, estimator, draws, gradient=gradient
            )
        else:
            output, value, found, moving = self._differentiated(
                theta, rows, objective, goal, value_at, penalty, settled
            )
        output, value, found = output.detach(), value.detach().to(theta.dtype), self.along_free(found)
        if gradient and counts:
            self.add(self.correct_iterates, rows, ~self.goal_of(rows).reached(output) & counted)
        if not self.verdicts:
            return Evaluated(output, found, value, torch.zeros_like(moving), moving)
        if gradient and counts:
            self.add(self.zero_gradients, rows, all_zero(found) & counted)
        reached = torch.zeros_like(moving)  # points outside the threat set do not count as found
        if inside:
            lead = self._lead(output, rows, objective, goal, value)
            worth = lead.to(value) if self.by_margin and lead is not None else value
            reached = self.record(theta, rows, output, worth if rank else None, exact=self.half is None, lead=lead)
        return Evaluated(
            output, found, value, reached, moving & ~self.taken(self.in_any_run(self.invalid | self.broken), rows)
        )

    def _lead(self, output: Tensor, rows: Rows, objective: Objective, goal: Goal, value: Tensor) -> Tensor | None:
        """Margin of the goal, where the search needs it or has it: an untargeted margin as objective."""
        if self.by_margin:
            return goal_margin(output, self.goal_of(rows))
        # a targeted margin, and that of another kind of goal, is another number
        known = objective is margin and type(goal) is type(self.goal) is ClassificationGoal and goal.target is None
        return value.nan_to_num(-torch.inf) if known else None

    def sample_gradient(self, theta: Theta, rows: Rows, objective: Objective, goal: Goal) -> Theta:
        """Gradient of an objective at points that only serve to estimate a gradient.

        Costs one forward and one backward pass each. The points are not iterates: they get no verdict and do not
        count in `correct_iterates` and `zero_gradients`.
        """
        found = self.value_and_grad(theta, rows, objective, goal=goal, inside=False, counts=False)
        return found.gradient

    def gradient_through(
        self, render: Callable[[Tensor], Images], numbers: Float[Tensor, "m ..."], rows: Rows, objective: Objective
    ) -> Float[Tensor, "m ..."]:
        """Gradient of an objective with respect to numbers from which the caller makes the inputs.

        Costs one forward and one backward pass each. The inputs need not be allowed: they get no verdict.

        Args:
            render: inputs from the numbers, differentiable.
            numbers: `(M, ...)`.
            rows: the examples.
            objective: function to maximise.
        """
        here = numbers.detach().requires_grad_()
        output = logits_of(self.model if self.half is None else self.half, render(here))
        value = objective(output, self.goal_of(rows))
        self.add(self.forwards, rows, 1)
        self.add(self.backwards, rows, 1)
        return input_gradient(value.sum(), here)

    def value_through(
        self, render: Callable[[Tensor], Images], numbers: Float[Tensor, "m ..."], rows: Rows, objective: Objective
    ) -> Float[Tensor, " m"]:
        """An objective at inputs that the caller makes from numbers: one forward pass each, without a verdict.

        Arguments as in `gradient_through`.
        """
        with torch.no_grad():
            output = logits_of(self.model if self.half is None else self.half, render(numbers))
            value = objective(output, self.goal_of(rows))
        self.add(self.forwards, rows, 1)
        return value

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
        self.add(self.forwards, rows, 1)
        self.backwards[rows] += classes.shape[1]
        self.add(self.correct_iterates, rows, ~self.goal_of(rows).reached(logits))
        self.record(theta, rows, logits.detach(), None, exact=True)
        return logits.detach(), torch.stack(gradients, dim=1)

    def confirm_best(self) -> None:
        """Evaluate the best failing points in full precision, after a search in half precision."""
        rows = self.unbroken
        if self.half is not None and len(rows):
            self.evaluate(self.theta[rows], rows)

    def _differentiated(
        self,
        theta: Theta,
        rows: Rows,
        objective: Objective,
        goal: Goal,
        value_at: PointValue | None,
        penalty: Penalty | None,
        settled: Settled | None,
    ) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, " m"]]:
        """Output, objective, its gradient by a backward pass, and a mask of the examples that move on."""
        if self.graphs is not None and self._is_direct and (value_at, penalty, settled) == (None, None, None):
            found = self.graphs.run(self.model if self.half is None else self.half, theta, objective, goal)
            if found is not None:
                self.add(self.backwards, rows, self.counted(rows))
                return *found, torch.ones_like(rows, dtype=torch.bool)
        here, moving = theta.detach().requires_grad_(), torch.ones_like(rows, dtype=torch.bool)
        images = self.render(here, rows)
        output = logits_of(self.model if self.half is None else self.half, images)
        if settled is not None:
            moving = ~settled(rows, images.detach(), output.detach(), goal)
        value = objective(output, goal) if value_at is None else value_at(images, output, goal)
        if settled is not None and not bool(moving.any()):
            return output, value, torch.zeros_like(theta), moving
        self.add(self.backwards, rows, self.counted(rows))
        aim = value if penalty is None else value - penalty(here, rows)
        return output, value, input_gradient((aim if settled is None else aim[moving]).sum(), here), moving

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
