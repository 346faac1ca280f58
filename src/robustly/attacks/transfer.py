"""Transfer: adversarial examples crafted on one model, tried on another."""

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
from robustly.attacks.core.search import Rows, Search, run_search
from robustly.objectives import ClassificationGoal, Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat

Fuse = Literal["logits", "probabilities"]


class LogitEnsemble(nn.Module):
    """Several classifiers as one (Dong et al., CVPR 2018, sec. 3.3).

    Args:
        members: from the same images to logits of the same classes.
        weights: one per member, at least 0, that add up to 1; None weighs all alike.
        fuse: "logits" averages the logits, which transfers best in the paper; "probabilities" returns the logarithm
            of the averaged probabilities.

    Raises:
        AttackError: no member; weights that do not fit; an unknown way to fuse.
    """

    def __init__(
        self, members: tuple[nn.Module, ...], weights: tuple[float, ...] | None = None, fuse: Fuse = "logits"
    ) -> None:
        super().__init__()
        self.weights = _checked_weights(len(members), weights)
        if fuse not in get_args(Fuse):
            raise AttackError(f"fuse is one of {', '.join(get_args(Fuse))}, got {fuse!r}")
        self.members, self.fuse = nn.ModuleList(members), fuse

    def forward(self, x: Images) -> Float[Tensor, "n k"]:
        """Logits `(N, K)`."""
        answers = torch.stack([member(x) for member in self.members])
        weights = answers.new_tensor(self.weights).view(-1, 1, 1)
        if self.fuse == "logits":
            return (weights * answers).sum(0)
        return (answers.log_softmax(2) + weights.log()).logsumexp(0)


@dataclass(frozen=True)
class Transfer:
    """Crafts on surrogates with any attack, and tests what comes out on the victim.

    Two points of each example are tried, inside the same threat set. First what the attack returns: the first point
    that fools the surrogate, or the one of highest objective where none does. A first success lies just behind the
    surrogate's boundary and often not behind the victim's; where it does not, the attack runs again with nothing
    counted as a success, so that it climbs to its last step, and the point of highest objective is tried. With the
    victim as its own surrogate exactly those examples are broken that the attack breaks.

    The victim costs at most three forward passes and no backward pass: one clean, one per point. `forwards` and
    `backwards` of the result add to them the passes through every surrogate (an ensemble of M counts M times);
    `zero_gradients` is that of the surrogates. Examples that are not broken are returned unchanged. How often the
    surrogate is fooled says the attack itself, run on `LogitEnsemble(surrogates)`.

    Args:
        attack: what crafts, for a given radius. Boosted ones transfer best: `MIM(diversity=InputDiversity())`.
            One that keeps its last iterate (`keep="last"`) has that one tried, and no other.
        surrogates: one or more models of the victim's classes, on its device.
        weights: of the surrogates; see `LogitEnsemble`.
        fuse: how they become one; see `LogitEnsemble`.

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
                f"{type(self.attack).__name__} looks for the nearest adversarial example, which lies on the "
                "surrogate's boundary and does not transfer: take an attack for a given radius, such as MIM"
            )
        self._surrogate()

    @property
    def needs(self) -> Needs:
        """Those of the attack."""
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
        """Run the attack on the surrogates, count what it costs, and try on the victim what it returns."""
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
        raise AttackError("transfer needs at least one surrogate")
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count or min(weights) < 0 or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise AttackError(
            f"weights are {count} numbers of at least 0 that add up to 1, one per surrogate, got {weights}"
        )
    return weights


@dataclass(frozen=True)
class EndlessGoal(ClassificationGoal):
    """A goal that is never reached: an attack runs all its steps and returns the point of highest objective.

    Label, target and reference are those of the objective. For points that shall transfer to another model, or that
    a model trains on: the first misclassified point lies just behind the boundary.
    """

    def reached(self, logits: Float[Tensor, "n k"]) -> Bool[Tensor, " n"]:
        """Never."""
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)


def endless(y: Int64[Tensor, " n"] | Goal) -> EndlessGoal:
    """The same goal, never reached."""
    goal = ClassificationGoal(y) if isinstance(y, Tensor) else y
    if not isinstance(goal, ClassificationGoal):
        raise AttackError(f"only a classification goal can be made endless, got a {type(goal).__name__}")
    return EndlessGoal(goal.y, goal.target, goal.reference)
