"""Projected gradient ascent: any objective, any threat (Madry et al., ICLR 2018)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import (
    AttackError,
    AttackResult,
    Images,
    ModelMode,
    check_device,
    check_ids,
    frozen,
    prepare,
)
from robustly.attacks.core.model_access import input_gradient, logits_of
from robustly.attacks.core.search import GradientEstimator, Precision, Rows, Search, run_search
from robustly.objectives import Goal, Objective, at_step, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import Ball, L0Ball, laid_out_like
from robustly.threats.lp import ThreatModel

Start = Literal["random", "gaussian", "halfway", "none"]
Keep = Literal["best", "last"]
GAUSSIAN_START = 0.001  # standard deviation of TRADES' start around the clean image


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent in the steepest direction of the threat's norm.

    A robust example costs 1 + restarts * (steps + 1) forward and restarts * steps backward passes: the first
    forward pass spares what is wrong already, the last of a restart looks at what its last step reached.

    Args:
        steps: gradient steps per restart, at least 0.
        objective: what is maximised (`robustly.objectives`).
        step_size: length of a step in units of the images; not together with `relative_step_size`.
        relative_step_size: length of a step as a share of epsilon (under l0, which counts pixels, the default is
            taken instead). With neither, 2.5 epsilon / steps (l1, l0: see `robustly.threats.balls`).
        start: "random" (a random point of the threat set), "gaussian" (0.001 standard normal noise around the
            image, as TRADES), "halfway" (a step of epsilon / 2 in a random direction) or "none" (the image itself).
        restarts: independent starts in total; later ones see only what still stands.
        early_stop: whether an example leaves the batch as soon as it is broken.
        keep: "best" returns the first broken iterate, or else the iterate of highest objective; "last" returns the
            last iterate, unseen, as training methods do, for steps forward and backward passes.
        mode: how batch normalisation behaves under attack; see `frozen`.
        precision: "full"; "ambient" (autocast as it is, for training); or "bfloat16": the search runs in a
            bfloat16, channels-last copy of the model, and only what full precision confirms counts.
        estimator: where gradients come from, if not from a backward pass (`attacks.core.gradient_estimators`).

    Raises:
        AttackError: a setting that is out of range.
    """

    steps: int = 20
    objective: Objective = cross_entropy
    step_size: float | None = None
    relative_step_size: float | None = None
    start: Start = "random"
    restarts: int = 1
    early_stop: bool = True
    keep: Keep = "best"
    mode: ModelMode = "eval"
    precision: Precision = "full"
    estimator: GradientEstimator | None = None

    def __post_init__(self) -> None:
        if self.steps < 0 or self.restarts < 1:
            raise AttackError(
                f"steps must be at least 0 and restarts at least 1, got {self.steps}, {self.restarts}"
            )
        if self.step_size is not None and self.relative_step_size is not None:
            raise AttackError("give step_size or relative_step_size, not both")
        for name, value in (("step_size", self.step_size), ("relative_step_size", self.relative_step_size)):
            if value is not None and not 0 < value < float("inf"):
                raise AttackError(f"{name} must be a positive number, got {value}")

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`."""
        if self.keep == "last":
            return self._last_iterate(model, x, y, threat, generator)
        return run_search(
            self._restarts,
            model,
            x,
            y,
            threat=threat,
            generator=generator,
            mode=self.mode,
            precision=self.precision,
        )

    def step_sizes(self, ball: Ball) -> Float[Tensor, " n"]:
        """Length of a step, per example."""
        if self.step_size is not None:
            return torch.full_like(ball.radius, self.step_size)
        if self.relative_step_size is not None and not isinstance(ball, L0Ball):
            return ball.radius * self.relative_step_size
        return ball.default_step_size(self.steps)

    def started(self, ball: Ball, generator: KeyedGenerator) -> Images:
        """Where a restart begins."""
        if self.start == "random":
            return ball.random_start(generator.fold("start"))
        if self.start == "gaussian":
            noise = laid_out_like(ball.x, generator.fold("start").normal(*ball.x.shape[1:]))
            noisy = ball.x + GAUSSIAN_START * noise
            # TRADES evaluates its first gradient at the noisy image as it is; a verdict needs an allowed one
            return noisy if self.keep == "last" and self.steps > 0 else ball.project(noisy)
        if self.start == "halfway":
            direction = laid_out_like(ball.x, generator.fold("start").normal(*ball.x.shape[1:]))
            return ball.step(ball.x, direction, ball.radius / 2)
        return ball.x

    def _last_iterate(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """The K steps of a training method: K forward and K backward passes, nothing else."""
        x, goal = prepare(x, y, threat)
        check_ids(x, generator)
        check_device(model, x)
        ball = threat.around(x)
        correct = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        no, spent = correct.bool(), torch.full_like(correct, self.steps)
        distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        if len(x) == 0:
            return AttackResult(x, no, distance, correct, correct.clone(), correct.clone(), no.clone())
        with frozen(model, self.mode, self.precision != "ambient"):
            x_adv, step_size = self.started(ball, generator.fold("restart", 0)), self.step_sizes(ball)
            for step in range(self.steps):
                point = x_adv.detach().requires_grad_()
                logits = logits_of(model, point)
                value = at_step(self.objective, step, self.steps)(logits, goal)
                gradient = input_gradient(value.sum(), point)
                correct = correct + ~goal.reached(logits.detach())
                x_adv = ball.step(x_adv, gradient, step_size)
        x_adv = laid_out_like(x, x_adv)  # steps take the memory format of the gradient
        return AttackResult(x_adv, no, distance, spent, spent.clone(), correct, no.clone())

    def _restarts(self, search: Search, generator: KeyedGenerator) -> None:
        """From survivor to survivor."""
        for restart in range(self.restarts):
            rows = search.unbroken
            if len(rows) == 0:
                return
            self._run(search, rows, generator.select(rows).fold("restart", restart))

    def _run(self, search: Search, rows: Rows, draws: KeyedGenerator) -> None:
        """One start: steps, and a look at what the last one reached."""
        goal, ball = search.select(rows)
        x_adv, step_size = self.started(ball, draws), self.step_sizes(ball)
        for step in range(self.steps + 1):
            is_last = step == self.steps
            found = search.value_and_grad(
                x_adv,
                rows,
                at_step(self.objective, min(step, self.steps - 1), self.steps),
                goal=goal,
                estimator=self.estimator,
                draws=draws.fold("estimate", step) if self.estimator is not None else None,
                gradient=not is_last,
            )
            if is_last:
                return
            gradient = found.gradient
            keep = found.unbroken if self.early_stop else ~search.invalid[rows]
            if not bool(keep.all()):
                rows, x_adv, gradient, step_size = rows[keep], x_adv[keep], gradient[keep], step_size[keep]
                goal, ball, draws = goal.select(keep), ball.select(keep), draws.select(keep)
                if len(rows) == 0:
                    return
            x_adv = ball.step(x_adv, gradient, step_size)
