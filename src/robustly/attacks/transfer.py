"""Transfer: adversarial examples crafted on one model and evaluated on another."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import (
    Attack,
    AttackError,
    AttackResult,
    Images,
    Needs,
)
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.objectives import ClassificationGoal, Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat

Fuse = Literal["logits", "probabilities"]


class LogitEnsemble(nn.Module):
    """Average of several classifiers (Dong et al., CVPR 2018, sec. 3.3).

    Args:
        members: from the same images to logits of the same classes.
        weights: one per member, at least 0, with sum 1; None for equal weights.
        fuse: "logits" averages the logits, which transfers best in the paper; "probabilities" returns the logarithm
            of the averaged probabilities.

    Raises:
        AttackError: no member; weights that do not fit; an unknown value of `fuse`.
    """

    def __init__(
        self, members: tuple[nn.Module, ...], weights: tuple[float, ...] | None = None, fuse: Fuse = "logits"
    ) -> None:
        super().__init__()
        self.weights = _checked_weights(len(members), weights)
        if fuse not in get_args(Fuse):
            raise AttackError(f"fuse must be one of {', '.join(get_args(Fuse))}, got {fuse!r}")
        self.members, self.fuse = nn.ModuleList(members), fuse

    def forward(self, x: Images) -> Float[Tensor, "n k"]:
        """Logits `(N, K)`."""
        outputs = torch.stack([member(x) for member in self.members])
        weights = outputs.new_tensor(self.weights).view(-1, 1, 1)
        if self.fuse == "logits":
            return (weights * outputs).sum(0)
        return (outputs.log_softmax(2) + weights.log()).logsumexp(0)


class Unloaded(nn.Module):
    """A surrogate that settings only name.

    Args:
        source: a run folder or a file of weights.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Images) -> Float[Tensor, "n k"]:
        """Refuse to run.

        Raises:
            AttackError: always.
        """
        raise AttackError(f"the surrogate {self.source} is named, but not loaded")


@dataclass(frozen=True)
class Transfer:
    """Craft adversarial examples on surrogates with any attack, and evaluate them on the victim.

    At most two points per example are evaluated, inside the same threat set. The first is the result of the attack:
    the first point that breaks the surrogate, or the one of highest objective. A first success lies just behind the
    surrogate's boundary and often not behind the victim's. Where it does not break the victim, the attack runs
    again with a goal that is never reached, so that it runs all its steps, and the point of highest objective is
    evaluated. With the victim as its own surrogate exactly those examples are broken that the attack breaks.

    The victim costs at most three forward passes and no backward pass: one clean, one per point. `forwards` and
    `backwards` of the result add to them the passes through every surrogate (an ensemble of M counts M times);
    `zero_gradients` is that of the surrogates. Examples that are not broken are returned unchanged. To measure
    the success on the surrogate, run the attack itself on `LogitEnsemble(surrogates)`.

    Args:
        attack: crafts the examples, for a given radius. The best for transfer is
            `MIM(diversity=InputDiversity())`. Of an attack with `keep="last"` only the last iterate is evaluated.
        surrogates: one or more models of the victim's classes, on its device.
        weights: of the surrogates; see `LogitEnsemble`.
        fuse: how their outputs are averaged; see `LogitEnsemble`.

    Raises:
        AttackError: no surrogate, weights that do not fit; a minimum-norm attack, which stops at the surrogate's
            boundary, where nothing transfers.
    """

    minimum_norm: ClassVar[bool] = False

    attack: Attack
    surrogates: tuple[nn.Module, ...]
    weights: tuple[float, ...] | None = None
    fuse: Fuse = "logits"

    def __post_init__(self) -> None:
        if self.attack.minimum_norm:
            raise AttackError(
                f"{type(self.attack).__name__} minimises the size of the perturbation; its examples lie on the "
                "surrogate's boundary and do not transfer: use an attack for a given radius, such as MIM"
            )
        self._surrogate()

    @property
    def needs(self) -> Needs:
        """Needs of the attack."""
        return self.attack.needs

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
        return run_search(self._run, model, x, y, threat=threat, generator=generator, needs=self.needs)

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        rows = search.unbroken
        found = self._crafted(search, rows, search.goal.select(rows), generator)
        again = rows[found.broken & ~search.broken[rows] & ~found.invalid]
        if len(again):
            self._crafted(search, again, endless(search.labels.select(again)), generator)

    def _crafted(self, search: Search, rows: Rows, goal: Goal, generator: KeyedGenerator) -> AttackResult:
        """Run the attack on the surrogates, count its passes, and evaluate its result on the victim."""
        found = self.attack(
            self._surrogate(),
            search.x[rows],
            goal,
            threat=search.threat.select(rows),
            generator=generator.select(rows),
        )
        search.forwards[rows] += len(self.surrogates) * found.forwards
        search.backwards[rows] += len(self.surrogates) * found.backwards
        if found.zero_gradients is not None:
            search.zero_gradients[rows] += found.zero_gradients
        search.evaluate(found.x_adv if found.theta is None else found.theta, rows)
        return found

    def _surrogate(self) -> nn.Module:
        ensemble = LogitEnsemble(self.surrogates, self.weights, self.fuse)
        return self.surrogates[0] if len(self.surrogates) == 1 else ensemble


def _checked_weights(count: int, weights: tuple[float, ...] | None) -> tuple[float, ...]:
    if count == 0:
        raise AttackError("transfer requires at least one surrogate")
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count or min(weights) < 0 or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise AttackError(
            f"weights must be {count} numbers of at least 0 with sum 1, one per surrogate, got {weights}"
        )
    return weights


@dataclass(frozen=True)
class EndlessGoal(ClassificationGoal):
    """Goal that is never reached: an attack runs all its steps and returns the point of highest objective.

    Label, target and reference are those of the objective. For points that have to transfer to another model, or
    that a model trains on: the first misclassified point lies just behind the boundary.
    """

    def reached(self, logits: Float[Tensor, "n k"]) -> Bool[Tensor, " n"]:
        """Mask of False."""
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)


def endless(y: Int64[Tensor, " n"] | Goal) -> EndlessGoal:
    """The same goal, never reached."""
    goal = ClassificationGoal(y) if isinstance(y, Tensor) else y
    if not isinstance(goal, ClassificationGoal):
        raise AttackError(f"only a classification goal can be made endless, got a {type(goal).__name__}")
    return EndlessGoal(goal.y, goal.target, goal.reference)
