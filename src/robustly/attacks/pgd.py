"""Projected gradient ascent: any objective, any threat (Madry et al., ICLR 2018)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.contract import AttackError, AttackResult, Images, ModelMode, check_logits, frozen, prepare
from robustly.balls import Ball, L0Ball, laid_out_like
from robustly.objectives import Goal, Objective, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threat import ThreatModel

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
            taken instead). With neither, 2.5 epsilon / steps (l1, l0: see `robustly.balls`).
        start: "random" (a random point of the threat set), "gaussian" (0.001 standard normal noise around the
            image, as TRADES), "halfway" (a step of epsilon / 2 in a random direction) or "none" (the image itself).
        restarts: independent starts in total; later ones see only what still stands.
        early_stop: whether an example leaves the batch as soon as it is broken.
        keep: "best" returns the first broken iterate, or else the iterate of highest objective; "last" returns the
            last iterate, unseen, as training methods do, for steps forward and backward passes.
        mode: how batch normalisation behaves under attack; see `frozen`.
        full_precision: whether to switch autocast off. Verdicts are given in full precision; training may not care.

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
    full_precision: bool = True

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
        x, goal = prepare(x, y, threat)
        if len(generator.ids) != len(x):
            raise AttackError(
                f"every image needs its id: the generator has {len(generator.ids)} ids for {len(x)} images"
            )
        if len(x) == 0:
            return _untouched(x)
        with frozen(model, self.mode, self.full_precision):
            if self.keep == "last":
                return self._last_iterate(model, x, goal, threat.around(x), generator)
            return self._best_iterate(model, x, goal, threat, generator)

    def _step_sizes(self, ball: Ball) -> Float[Tensor, " n"]:
        if self.step_size is not None:
            return torch.full_like(ball.radius, self.step_size)
        if self.relative_step_size is not None and not isinstance(ball, L0Ball):
            return ball.radius * self.relative_step_size
        return ball.default_step_size(self.steps)

    def _started(self, ball: Ball, generator: KeyedGenerator) -> Images:
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
        self, model: nn.Module, x: Images, goal: Goal, ball: Ball, generator: KeyedGenerator
    ) -> AttackResult:
        """The K steps of a training method: K forward and K backward passes, nothing else."""
        result = _untouched(x)
        step_size = self._step_sizes(ball)
        x_adv = self._started(ball, generator.fold("restart", 0))
        correct = result.correct_iterates
        for _ in range(self.steps):
            logits, gradient, _ = _ascent(model, x_adv, goal, self.objective)
            correct = correct + ~goal.reached(logits)
            x_adv = ball.step(x_adv, gradient, step_size)
        spent = result.forwards + self.steps
        x_adv = laid_out_like(x, x_adv)  # steps take the memory format of the gradient
        return replace(result, x_adv=x_adv, correct_iterates=correct, forwards=spent, backwards=spent.clone())

    def _best_iterate(
        self, model: nn.Module, x: Images, goal: Goal, threat: ThreatModel, generator: KeyedGenerator
    ) -> AttackResult:
        """Restarts from survivor to survivor; what was misclassified at the outset is not attacked."""
        with torch.no_grad():
            clean = check_logits(model(x), goal)
        invalid = ~clean.isfinite().all(1)
        result = replace(_untouched(x), invalid=invalid, broken=goal.reached(clean) | invalid)
        result = replace(result, forwards=result.forwards + 1)
        best = torch.full_like(result.distance, -torch.inf)
        for restart in range(self.restarts):
            rows = (~result.broken).nonzero()[:, 0]
            if len(rows) == 0:
                break
            ball = threat.select(rows).around(x[rows])
            draws = generator.select(rows).fold("restart", restart)
            found, objective = self._run(model, goal.select(rows), ball, draws)
            better = found.broken | (objective > best[rows])
            best[rows] = torch.maximum(best[rows], objective)
            result = _merge(result, rows, found, better)
        distance = threat.around(x).distance(result.x_adv)
        return replace(result, distance=torch.where(result.broken, distance, torch.inf))

    def _run(
        self, model: nn.Module, goal: Goal, ball: Ball, generator: KeyedGenerator
    ) -> tuple[AttackResult, Float[Tensor, " n"]]:
        """One start. Returns what was found and the highest objective seen."""
        result = _untouched(ball.x)
        best = torch.full_like(ball.radius, -torch.inf)
        x_adv = self._started(ball, generator)
        step_size = self._step_sizes(ball)
        rows = torch.arange(len(x_adv), device=x_adv.device)
        for step in range(self.steps + 1):
            is_last = step == self.steps
            logits, gradient, objective = _ascent(model, x_adv, goal, self.objective, gradient=not is_last)
            finite = logits.isfinite().all(1)
            reached = (goal.reached(logits) & finite) & ~result.broken[rows]
            improved = reached | ((objective > best[rows]) & ~result.broken[rows])
            result.x_adv[rows[improved]] = x_adv[improved]
            best[rows[improved]] = objective[improved]
            result.broken[rows] |= reached
            result.invalid[rows] |= ~finite
            result.forwards[rows] += 1
            if is_last:
                break
            result.backwards[rows] += 1
            result.correct_iterates[rows] += ~goal.reached(logits)
            standing = ~(reached | ~finite) if self.early_stop else finite
            if not bool(standing.all()):
                rows, x_adv, gradient = rows[standing], x_adv[standing], gradient[standing]
                goal, ball, step_size = goal.select(standing), ball.select(standing), step_size[standing]
                if len(rows) == 0:
                    break
            x_adv = ball.step(x_adv, gradient, step_size)
        return replace(result, broken=result.broken | result.invalid), best


def _ascent(
    model: nn.Module, x_adv: Images, goal: Goal, objective: Objective, gradient: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, gradient of the summed objective with respect to the images, and the objective per example."""
    if not gradient:
        with torch.no_grad():
            logits = _widened(model(x_adv))
            return logits, x_adv, objective(logits, goal).to(x_adv.dtype)
    point = x_adv.detach().requires_grad_()
    logits = _widened(model(point))
    value = objective(logits, goal)
    (slope,) = torch.autograd.grad(value.sum(), point)
    slope = slope.nan_to_num(0.0, 0.0, 0.0)  # a slope that is no number points nowhere; the verdict is the logits'
    return logits.detach(), slope, value.detach().to(point.dtype)


def _widened(logits: Tensor) -> Tensor:
    """Half precision as float32, in which objectives do not underflow; double as it is."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _untouched(x: Images) -> AttackResult:
    """The result of an attack that has not begun."""
    count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    no = count.bool()
    distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    return AttackResult(x.clone(), no, distance, count, count.clone(), count.clone(), no.clone())


def _merge(result: AttackResult, rows: Tensor, found: AttackResult, better: Tensor) -> AttackResult:
    """Take over what a restart found for some rows; images only where it did better."""
    x_adv, broken, invalid = result.x_adv.clone(), result.broken.clone(), result.invalid.clone()
    x_adv[rows[better]] = found.x_adv[better]
    broken[rows] |= found.broken
    invalid[rows] |= found.invalid
    forwards, backwards = result.forwards.clone(), result.backwards.clone()
    correct = result.correct_iterates.clone()
    forwards[rows] += found.forwards
    backwards[rows] += found.backwards
    correct[rows] += found.correct_iterates
    return replace(
        result,
        x_adv=x_adv,
        broken=broken,
        invalid=invalid,
        forwards=forwards,
        backwards=backwards,
        correct_iterates=correct,
    )
