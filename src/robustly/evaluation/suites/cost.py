"""The cost of an attack or a suite before it starts: passes through the model, from the settings alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from robustly.attacks import (
    APGD,
    DDN,
    EAD,
    FAB,
    FMN,
    JSMA,
    MIM,
    NES,
    PGD,
    PMA,
    SPSA,
    VMI,
    Attack,
    Averaged,
    Boundary,
    CarliniWagner,
    Composite,
    DeepFool,
    ExhaustiveSearch,
    ExpectedPatch,
    GridSearch,
    HopSkipJump,
    ParameterSearch,
    PatchSearch,
    RandomDraws,
    RoutePGD,
    SigmaZero,
    SmoothPGD,
    SparseRS,
    Square,
    TargetedAPGD,
    Transfer,
)
from robustly.attacks.boundary import CHECK_EVERY, FIRST_BISECTIONS
from robustly.attacks.core.decision_boundary import MOST_BISECTIONS
from robustly.attacks.core.linearisation import CANDIDATES
from robustly.attacks.fmn import MORE_STARTS, TRIALS
from robustly.attacks.hopskipjump import COARSEST
from robustly.attacks.jsma import LARGEST_FOR_PAIRS
from robustly.evaluation.suites.passes import passes_of
from robustly.evaluation.suites.semantic import parameters_of
from robustly.evaluation.suites.suite import Suite
from robustly.evidence.provenance import Plan
from robustly.threats import Chain, Threat
from robustly.threats.corruption import COLLECTIONS

Passes = tuple[int, int]
"""Forward and backward passes."""


@dataclass(frozen=True)
class Job:
    """Threat and data, on which the cost of an attack depends beside its settings.

    Args:
        threat: the threat.
        classes: number of classes.
        size: number of values of an image.
    """

    threat: Threat
    classes: int
    size: int


@dataclass(frozen=True)
class AnnouncedCost:
    """An upper bound of the passes of a suite; stages that run on suspicion only are not in the total.

    Args:
        stages: forward and backward passes of each stage for an image that it does not break.
        images: number of images that each stage attacks at most.
        count: number of images of the evaluation.
    """

    stages: dict[str, Passes]
    images: dict[str, int]
    count: int

    @property
    def total(self) -> int:
        """Forward and backward passes of all images, if no attack breaks any."""
        return self.count + sum(self.images[name] * sum(passes) for name, passes in self.stages.items())

    @property
    def per_image(self) -> float:
        """The same per image."""
        return self.total / self.count if self.count else 0.0

    def seconds(self, per_pass: float) -> float:
        """Estimated duration, from the duration of a forward with a backward pass."""
        return self.total * per_pass / 2


def announced_cost(suite: Suite, threat: Threat, count: int, classes: int, size: int = 3072) -> AnnouncedCost:
    """The cost of a suite on some images, from its settings: nothing is run, but an attack of the caller's own.

    Args:
        suite: the suite.
        threat: the threat of the evaluation.
        count: number of images that are classified correctly, or of all for a coarser bound.
        classes: number of classes.
        size: number of values of an image.
    """
    stages = {name: attack_cost(attack, threat, classes, size) for name, attack in suite.attacks.items()}
    return AnnouncedCost(stages, {name: _most(suite.plan(name), count) for name in suite.attacks}, count)


def attack_cost(attack: Attack, threat: Threat, classes: int = 10, size: int = 3072) -> Passes:
    """Forward and backward passes of an attack on one image that it does not break, from its settings.

    For most attacks this is exact in full precision; a search in bfloat16 adds a pass to confirm its result.
    Attacks that stop sooner where progress ends (Carlini and Wagner, JSMA) cost at most this. Attacks on predicted
    classes (HopSkipJump, Boundary) cost this if the first random image is adversarial.

    Args:
        attack: the attack; the passes of one of another class are counted by a trial.
        threat: the threat.
        classes: number of classes.
        size: number of values of an image.
    """
    job = Job(threat, classes, size)
    if isinstance(attack, Transfer):
        forwards, backwards = attack_cost(attack.attack, threat, classes, size)
        models = len(attack.surrogates)
        return 3 + 2 * models * forwards, 2 * models * backwards
    formula = COSTS.get(type(attack))
    return passes_of(attack, threat, classes) if formula is None else formula(attack, job)


def _most(plan: Plan, count: int) -> int:
    """The largest number of images that a stage attacks."""
    if plan.on_suspicion:
        return 0
    if plan.closest < 1:
        count = min(max(math.ceil(plan.closest * count), plan.at_least), count)
    return min(plan.sample or count, math.ceil(plan.sample_share * count))


def _gradient(estimator: object | None) -> Passes:
    """Passes of one gradient, in addition to the forward pass at the point."""
    if isinstance(estimator, NES | SPSA):
        return 2 * estimator.samples, 0
    if isinstance(estimator, Averaged):
        return estimator.draws, estimator.draws
    return 0, 1


def _pgd(attack: PGD, job: Job) -> Passes:
    forwards, backwards = _gradient(attack.estimator)
    steps = attack.restarts * attack.steps
    if attack.keep == "last":
        return attack.steps * (1 + forwards), attack.steps * backwards
    return 1 + steps * (1 + forwards) + attack.restarts, steps * backwards


def _smooth_pgd(attack: SmoothPGD, job: Job) -> Passes:
    return 1 + attack.restarts * (attack.steps + 1), attack.restarts * attack.steps


def _route_pgd(attack: RoutePGD, job: Job) -> Passes:
    starts = len(attack.scales)
    return 1 + starts * (attack.steps + 1), starts * attack.steps


def _patch_search(attack: PatchSearch, job: Job) -> Passes:
    forwards = attack.locations + attack.moves + 2 * attack.steps + 4
    return 1 + attack.restarts * forwards, attack.restarts * (2 * attack.steps + 1)


def _expected_patch(attack: ExpectedPatch, job: Job) -> Passes:
    return 2 + attack.samples * (attack.locations + attack.steps), attack.samples * attack.steps


def _mim(attack: MIM, job: Job) -> Passes:
    forwards, backwards = _gradient(attack.estimator)
    forwards += attack.diversity is not None
    steps = attack.restarts * attack.steps
    return 1 + steps * (1 + forwards) + attack.restarts, steps * backwards


def _vmi(attack: VMI, job: Job) -> Passes:
    gradients = attack.steps * (1 + attack.samples)
    return 2 + gradients, gradients


def _ascents(attack: APGD | TargetedAPGD, runs: int) -> Passes:
    forwards, backwards = _gradient(attack.estimator)
    odi = attack.odi_steps if attack.start == "odi" else 0
    gradients = runs * (attack.steps + 1)
    return 1 + gradients * (1 + forwards) + runs * odi, gradients * backwards + runs * odi


def _apgd(attack: APGD, job: Job) -> Passes:
    return _ascents(attack, attack.restarts)


def _apgd_t(attack: TargetedAPGD, job: Job) -> Passes:
    last = min(attack.first + attack.targets, job.classes - 1)
    forwards, backwards = _ascents(attack, max(last - attack.first, 0) * attack.restarts)
    more = _malt(last, job) if attack.ranking == "malt" else (0, 0)
    return forwards + more[0], backwards + more[1]


def _malt(count: int, job: Job) -> Passes:
    """Passes of the ranking of the nearest classes."""
    return 1, min(max(CANDIDATES, count), job.classes - 1) + 1


def _pma(attack: PMA, job: Job) -> Passes:
    return 1 + 2 * (attack.steps + 1), 2 * attack.steps


def _composite(attack: Composite, job: Job) -> Passes:
    parts = len(job.threat.parts) if isinstance(job.threat, Chain) else 1
    rounds = 1 if attack.order == "fixed" else attack.rounds
    gradients = rounds * parts * attack.steps
    if attack.order == "scheduled":
        gradients += (rounds - 1) * (parts**2 * attack.schedule_steps + 1)
    return 1 + attack.restarts * (gradients + rounds), attack.restarts * gradients


def _fab(attack: FAB, job: Job) -> Passes:
    targets = min(attack.targets, job.classes - 1)
    steps = attack.restarts * attack.steps * max(targets, 1)
    return 1 + 2 * steps, steps if targets else steps * (job.classes - 1)


def _deepfool(attack: DeepFool, job: Job) -> Passes:
    return 1 + 2 * attack.steps, attack.steps * min(attack.candidates, job.classes - 1)


def _ddn(attack: DDN, job: Job) -> Passes:
    return 2 + attack.steps, attack.steps


def _fmn(attack: FMN, job: Job) -> Passes:
    targets, starts = min(attack.targets, job.classes - 1), attack.restarts + MORE_STARTS
    more = _malt(targets, job) if targets else (0, 0)
    runs = max(targets, 1) * starts
    return 1 + more[0] + runs * (attack.steps + 1) + (starts - 1) * TRIALS, more[1] + runs * attack.steps


def _carlini_wagner(attack: CarliniWagner, job: Job) -> Passes:
    steps = attack.search_steps * attack.steps
    return 1 + steps, steps


def _ead(attack: EAD, job: Job) -> Passes:
    steps = attack.search_steps * attack.steps
    return 1 + 2 * steps, steps


def _sigma_zero(attack: SigmaZero, job: Job) -> Passes:
    return 2 + attack.steps, attack.steps


def _jsma(attack: JSMA, job: Job) -> Passes:
    pairs = attack.pairs if attack.pairs is not None else job.size <= LARGEST_FOR_PAIRS
    moves = int(attack.gamma * job.size + 1e-9) // (2 if pairs and job.size > 1 else 1)
    targets = min(attack.targets or job.classes, job.classes - 1)
    return 1 + targets * (2 * moves + 1), 2 * targets * moves


def _queries(attack: Square | SparseRS | ParameterSearch, job: Job) -> Passes:
    return 1 + attack.restarts * (attack.queries + 1), 0


def _draws(attack: RandomDraws, job: Job) -> Passes:
    return 1 + attack.draws, 0


def _grid(attack: GridSearch, job: Job) -> Passes:
    return 1 + math.prod(attack.points_of(parameters_of(job.threat))), 0


def _boundary(attack: Boundary, job: Job) -> Passes:
    return 2 + FIRST_BISECTIONS + attack.steps + math.ceil(attack.steps / CHECK_EVERY), 0


def _hopskipjump(attack: HopSkipJump, job: Job) -> Passes:
    theta = attack.gamma / job.size ** (2 if job.threat.kind == "linf" else 1.5)
    halvings = min(math.ceil(-math.log2(min(theta, COARSEST))), MOST_BISECTIONS)
    most = attack.most_evaluations
    directions = [max(min(int(attack.evaluations * math.sqrt(step + 1)), most), 1) for step in range(attack.steps)]
    return 2 + halvings + sum(count + 1 + halvings for count in directions), 0


def _exhaustive(attack: ExhaustiveSearch, job: Job) -> Passes:
    return 1 + attack.restarts * len(COLLECTIONS[job.threat.kind].names) * int(job.threat.extent), 0


COSTS: dict[type, Callable[[Any, Job], Passes]] = {
    PGD: _pgd,
    SmoothPGD: _smooth_pgd,
    RoutePGD: _route_pgd,
    PatchSearch: _patch_search,
    ExpectedPatch: _expected_patch,
    MIM: _mim,
    VMI: _vmi,
    APGD: _apgd,
    TargetedAPGD: _apgd_t,
    PMA: _pma,
    Composite: _composite,
    FAB: _fab,
    DeepFool: _deepfool,
    DDN: _ddn,
    FMN: _fmn,
    CarliniWagner: _carlini_wagner,
    EAD: _ead,
    SigmaZero: _sigma_zero,
    JSMA: _jsma,
    Square: _queries,
    SparseRS: _queries,
    Boundary: _boundary,
    HopSkipJump: _hopskipjump,
    RandomDraws: _draws,
    ParameterSearch: _queries,
    GridSearch: _grid,
    ExhaustiveSearch: _exhaustive,
}
"""Passes of each kind of attack on an image that it does not break."""
