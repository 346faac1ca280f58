"""Projected gradient ascent: any objective, any threat (Madry et al., ICLR 2018)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.ascent import Ascent
from robustly.attacks.core.contract import ANY_THREAT, AttackError, AttackResult, ModelMode, Needs
from robustly.attacks.core.gradient_estimators import GradientEstimator
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.core.update_rules import Adam, Normalised, Steepest, UpdateRule
from robustly.objectives import Goal, Objective, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.balls import L0Ball, laid_out_like
from robustly.threats.contract import Images, Theta, Threat, ThreatSet

Start = Literal["random", "gaussian", "halfway", "none"]
Keep = Literal["best", "last"]
Update = Literal["steepest", "normalised", "adam"]
GAUSSIAN_START = 0.001  # standard deviation of TRADES' start around the clean image
UPDATES: dict[str, UpdateRule] = {"steepest": Steepest(), "normalised": Normalised(), "adam": Adam()}


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent.

    A robust example costs 1 + restarts * (steps + 1) forward and restarts * steps backward passes. The first
    forward pass skips misclassified examples, the last of a restart evaluates its last iterate. With 0 steps the
    result is the worst of `restarts` random points.

    Args:
        steps: gradient steps per restart, at least 0.
        objective: function to maximise (`robustly.objectives`).
        step_size: length of a step in units of the images; not together with `relative_step_size`.
        relative_step_size: length of a step as a share of epsilon (under l0, which counts pixels, the default is
            used instead). With neither, 2.5 epsilon / steps (l1, l0: see `robustly.threats.balls`).
        start: "random" (a random point of the threat set), "gaussian" (0.001 standard normal noise around the
            image, as TRADES), "halfway" (a step of epsilon / 2 in a random direction) or "none" (the image itself).
        restarts: independent starts in total; later ones attack only unbroken examples.
        early_stop: True removes an example from the batch as soon as it is broken.
        keep: "best" returns the first broken iterate, or else the iterate of highest objective; "last" returns the
            last iterate without evaluating it, as training methods do, for steps forward and backward passes.
        mode: mode of batch normalisation under attack; see `frozen`.
        precision: "full"; "ambient" (autocast as it is, for training); or "bfloat16": the search runs in a
            bfloat16, channels-last copy of the model, and only successes confirmed in full precision count.
        estimator: computes gradients in place of the backward pass (`attacks.core.gradient_estimators`).
        update: "steepest" (in the threat's geometry: signs under linf), "normalised" (Euclidean steps) or "adam".

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = ANY_THREAT
    minimum_norm: ClassVar[bool] = False

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
    update: Update = "steepest"

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
        if self.update not in UPDATES:
            raise AttackError(f"update must be one of {', '.join(UPDATES)}, got {self.update!r}")

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
            self._restarts if self.keep == "best" else self._last_iterate,
            model,
            x,
            y,
            threat=threat,
            generator=generator,
            needs=self.needs,
            mode=self.mode,
            precision=self.precision,
            verdicts=self.keep == "best",
            condenses=self._condenses,
        )

    @property
    def _condenses(self) -> bool:
        """True if no start, gradient or step depends on parameters that change no input."""
        # other starts and estimators draw random numbers for all parameters; a norm sums over all of them
        return self.start in ("random", "none") and self.estimator is None and self.update != "normalised"

    def step_sizes(self, threat_set: ThreatSet) -> Float[Tensor, " n"]:
        """Size of a step, per example, in the threat's unit."""
        if self.step_size is not None:
            return torch.full_like(threat_set.radius, self.step_size)
        if self.relative_step_size is not None and not isinstance(threat_set, L0Ball):
            return threat_set.radius * self.relative_step_size
        return threat_set.default_step_size(self.steps)

    def started(self, threat_set: ThreatSet, generator: KeyedGenerator) -> Theta:
        """Start of a restart."""
        if self.start == "random":
            return threat_set.random_start(generator.fold("start"))
        origin = threat_set.identity()
        if self.start == "none":
            return origin
        noise = laid_out_like(origin, generator.fold("start").normal(*origin.shape[1:]))
        if self.start == "halfway":
            return threat_set.step(origin, noise, threat_set.radius / 2)
        noisy = origin + GAUSSIAN_START * noise
        # TRADES evaluates its first gradient at the noisy image as it is; a verdict requires an allowed point
        return noisy if self.keep == "last" and self.steps > 0 else threat_set.project(noisy)

    def _last_iterate(self, search: Search, generator: KeyedGenerator) -> None:
        """The K steps of a training method, for K forward and K backward passes."""
        rows, draws = search.unbroken, generator.fold("restart", 0)
        start = self.started(search.threat_set, draws)
        self._ascent().run(search, rows, start, search.goal, draws)

    def _restarts(self, search: Search, generator: KeyedGenerator) -> None:
        """Run the starts in turn; later ones attack only unbroken examples."""
        for restart in range(self.restarts):
            rows = search.unbroken
            if len(rows) == 0:
                return
            draws = generator.select(rows).fold("restart", restart)
            start = self.started(search.set_of(rows), draws)
            self._ascent().run(search, rows, start, search.goal_of(rows), draws)

    def _ascent(self) -> Ascent:
        return Ascent(
            self.steps,
            self.objective,
            lambda step, threat_set: self.step_sizes(threat_set),
            UPDATES[self.update],
            early_stop=self.early_stop and self.keep == "best",
            finish="evaluate" if self.keep == "best" else "keep",
            estimator=self.estimator,
        )
