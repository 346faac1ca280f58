"""State of a search: counts of passes, verdicts, and the best point of each example."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, AttackResult, Images, reads_are_free
from robustly.attacks.core.model_access import logits_of
from robustly.objectives import ClassificationGoal, Goal
from robustly.threats.balls import LpBall, laid_out_like
from robustly.threats.contract import Condensable, Condensed, Theta, Threat, ThreatSet, per_example
from robustly.threats.offset_field import best_one_by_one

Rows = Int64[Tensor, " m"]


class SearchState:
    """The record of one attack on one batch: what it has found and spent.

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
        half: a faster form of the model to search with, in bfloat16 or compiled. Its successes count only if
            `model` confirms them.
        verdicts: False only moves the points and records nothing (the inner maximisation of training).
        condenses: True leaves out parameters that change no input, for searches whose steps do not depend on them.

    Attributes:
        masked: whether points are kept by masks over all rows, because reading which ones they are would wait for
            the device. The results are the same.
        keeps_invalid: whether invalid examples stay among the rows of an ascent, without counting.
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
        condenses: bool = False,
    ) -> None:
        self.model, self.x, self.goal, self.threat = model, x, goal, threat
        self.nearest, self.by_margin, self.half, self.verdicts = nearest, by_margin, half, verdicts
        allowed = threat.around(x)
        self.threat_set: ThreatSet = (
            allowed.condensed() if condenses and isinstance(allowed, Condensable) else allowed
        )
        self._is_direct = isinstance(self.threat_set, LpBall)
        self._selected: tuple[Rows, ThreatSet] | None = None
        self._chosen: tuple[Rows, Goal] | None = None
        self._everyone: Rows = torch.arange(len(x), device=x.device)
        self.runs, self.masked, self.keeps_invalid = 1, not reads_are_free(x.device), False
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.theta: Theta = self.threat_set.identity().clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        self.highest = torch.full_like(self.distance, -torch.inf)
        self.margin = torch.full_like(self.distance, -torch.inf)
        self.forwards, self.backwards = count, count.clone()
        self.correct_iterates, self.zero_gradients = count.clone(), count.clone()
        self.broken, self.invalid = count.bool(), count.bool()
        self.clean = x.new_zeros(len(x), 0)

    @property
    def unbroken(self) -> Rows:
        """Rows of the unbroken examples; under `nearest`, of all that were classified correctly at the start."""
        if not self.verdicts:
            return self._everyone
        rows = (~self.broken & ~self.invalid).nonzero()[:, 0]
        return self._everyone if len(rows) == len(self.x) else rows

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

    def goal_of(self, rows: Rows) -> Goal:
        """Goal of some examples. It is selected once for the steps of an ascent, which have the same rows."""
        if rows is self._everyone:
            return self.goal
        if self._chosen is None or self._chosen[0] is not rows:
            self._chosen = rows, self.goal.select(rows)
        return self._chosen[1]

    def set_of(self, rows: Rows) -> ThreatSet:
        """Threat set of some examples; that of the batch, without a copy, for `unbroken` rows that are all."""
        return self.threat_set if rows is self._everyone else self.threat_set.select(rows)

    def taken(self, values: Tensor, rows: Rows) -> Tensor:
        """Entries of some examples, to read: for all of them it is the tensor itself."""
        return values if rows is self._everyone else values[rows]

    def put(self, values: Tensor, rows: Rows, new: Tensor) -> None:
        """Set the entries of some examples."""
        if rows is self._everyone:
            values.copy_(new)
        else:
            values[rows] = new.to(values.dtype)

    def add(self, counts: Tensor, rows: Rows, amount: Tensor | int) -> None:
        """Add to the counts of some examples."""
        if rows is self._everyone:
            counts += amount
        else:
            counts[rows] += amount

    def render(self, theta: Theta, rows: Rows) -> Images:
        """Inputs of the model for some parameters; differentiable.

        Args:
            theta: `(M, ...)`, or a multiple of M rows: the repetitions of one example follow each other.
            rows: `(M,)`.
        """
        if self._is_direct:
            return theta
        each = len(theta) // max(len(rows), 1)
        if each > 1:
            return self.threat_set.select(rows.repeat_interleave(each)).apply(theta)
        if self._selected is None or not _same(self._selected[0], rows):
            # the steps of an ascent have the same rows: what a set computes of its inputs is computed once
            self._selected = rows, self.set_of(rows)
        return self._selected[1].apply(theta)

    def along_free(self, gradient: Theta) -> Theta:
        """Gradient with zeros where the mask of an Lp threat forbids changes."""
        return self.ball.along_free(gradient) if self._is_direct else gradient

    def all_finite(self, output: Tensor) -> Bool[Tensor, " m"] | None:
        """True where all outputs of an example are finite; None if they all are, and that is known already."""
        if not self.masked and math.isfinite(float(output.sum())):  # a sum with NaN or infinity is not finite
            return None
        return output.flatten(1).isfinite().all(1)

    def counted(self, rows: Rows) -> Bool[Tensor, " m"] | bool:
        """True where passes count: not for invalid examples that stay among the rows."""
        return ~self.taken(self.invalid, rows) if self.keeps_invalid else True

    def in_any_run(self, found: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """True where it is true of any run of the same example."""
        if self.runs == 1:
            return found
        return found.view(-1, self.runs).any(1).repeat_interleave(self.runs)

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
        goal, finite = self.goal_of(rows), self.all_finite(output)
        if finite is not None and not exact:
            finite = finite | self._finite_in_full(theta, rows, ~finite)
        unbroken = ~self.taken(self.broken, rows)
        counted, reached = self.counted(rows), goal.reached(output) & unbroken
        if finite is not None:
            reached &= finite
        if self.nearest:
            self._record_nearest(theta, rows, reached, exact)
        else:
            if not exact:
                reached = self._confirmed(theta, rows, reached)
            kept = reached
            if value is not None:
                kept = reached | ((value > self.taken(self.highest, rows)) & unbroken)
            self._keep(theta, rows, kept, reached, value)
        if finite is not None:
            self.invalid[rows] |= ~finite
            if not self.nearest:
                self.broken[rows] |= ~finite
        lead = goal_margin(output, goal) if lead is None else lead
        if isinstance(counted, Tensor):
            lead = torch.where(counted, lead, -torch.inf)
        self.put(self.margin, rows, torch.maximum(self.taken(self.margin, rows), lead.to(self.margin)))
        return reached

    def _keep(
        self, theta: Theta, rows: Rows, kept: Bool[Tensor, " m"], reached: Bool[Tensor, " m"], value: Tensor | None
    ) -> None:
        """Keep some points as the best ones of their examples."""
        if self.masked:
            before, highest = self.taken(self.theta, rows), self.taken(self.highest, rows)
            self.put(self.theta, rows, torch.where(per_example(kept, theta), theta.to(self.theta.dtype), before))
            self.put(self.broken, rows, self.taken(self.broken, rows) | reached)
            if value is not None:
                self.put(self.highest, rows, torch.where(kept, value.to(self.highest.dtype), highest))
            return
        place = kept.nonzero()[:, 0]
        if len(place):
            here = rows[place]
            if len(place) == len(rows):  # usual in the first steps
                self.put(self.theta, rows, theta)
            elif best_one_by_one(theta):
                for to, at in zip(here.tolist(), place.tolist(), strict=True):
                    self.theta[to].copy_(theta[at])
            else:
                self.theta[here] = theta[place]
            self.broken[here] |= reached[place]
            if value is not None:
                self.highest[here] = value[place]

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

    def _confirmed(self, theta: Theta, rows: Rows, claimed: Bool[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Mask of the half-precision successes that hold in full precision: one forward pass each."""
        place = claimed.nonzero()[:, 0]
        if len(place) == 0:
            return claimed
        with torch.no_grad():
            output = logits_of(self.model, self.render(theta[place], rows[place]))
        self.forwards[rows[place]] += 1
        holds = torch.zeros_like(claimed)
        finite = self.all_finite(output)
        holds[place] = self.goal.select(rows[place]).reached(output) & (True if finite is None else finite)
        return holds

    def _finite_in_full(self, theta: Theta, rows: Rows, claimed: Bool[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Mask of the points of `claimed` with finite outputs in full precision: one forward pass each."""
        place, found = claimed.nonzero()[:, 0], torch.zeros_like(claimed)
        if len(place):
            with torch.no_grad():
                output = logits_of(self.model, self.render(theta[place], rows[place]))
            self.forwards[rows[place]] += 1
            found[place] = output.flatten(1).isfinite().all(1)
        return found

    def result(self) -> AttackResult:
        """Result of the search."""
        everyone = self._everyone
        inside, theta, beyond = self.broken, self.theta, None
        if self.nearest:
            found = self.distance.isfinite() & ~self.invalid
            inside = (found & self.threat_set.contains(theta)) | self.invalid
            beyond = laid_out_like(self.x, self.render(theta, everyone).detach())
            theta = torch.where(per_example(inside, theta), theta, self.threat_set.identity())
        elif self.verdicts:
            self.distance = torch.where(inside, self.threat_set.size(theta), torch.inf)
        whole = self.threat_set.expanded(theta) if isinstance(self.threat_set, Condensed) else theta
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
            None if self._is_direct else whole,
        )


def _same(first: Tensor, second: Tensor) -> bool:
    """True for the same rows; equal ones of two tensors are found on a CPU, where they cost no waiting."""
    return first is second or (first.device.type == "cpu" and torch.equal(first, second))


def goal_margin(output: Tensor, goal: Goal) -> Float[Tensor, " m"]:
    """Margin of the goal at some outputs, -inf for NaN."""
    return goal.margin(output).nan_to_num(-torch.inf)
