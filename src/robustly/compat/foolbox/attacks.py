"""Attacks by the names and arguments of foolbox.attacks."""
# ruff: noqa: N802  (functions have the names of the classes that they replace)

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from robustly.attacks import PGD, Attack, AttackError
from robustly.attacks.boundary import Boundary
from robustly.attacks.carlini_wagner import CarliniWagner
from robustly.attacks.ddn import DDN
from robustly.attacks.deepfool import DeepFool
from robustly.attacks.ead import EAD
from robustly.attacks.fmn import FMN
from robustly.attacks.hopskipjump import HopSkipJump
from robustly.compat.foolbox.models import goal_of, module_and_bounds
from robustly.compat.goals import generator_for, nearest, verdict_logits, whole_box
from robustly.objectives import ClassificationGoal
from robustly.threats.lp import ThreatModel

Images = Tensor | list[Tensor]


@dataclass(frozen=True)
class PortedAttack:
    """Attack in Foolbox's form.

    Args:
        attack: the search.
        norm: "linf", "l2", "l1" or "l0".
        times: number of runs on all images, with other random numbers; the nearest success counts.
        seed: of the random numbers; the same call gives the same images.
    """

    attack: Attack
    norm: str
    times: int = 1
    seed: int = 0

    def repeat(self, times: int) -> "PortedAttack":
        """The same attack with several runs."""
        return replace(self, times=self.times * times)

    def __call__(
        self,
        model: Any,
        inputs: Tensor,
        criterion: Any,
        *,
        epsilons: float | Sequence[float | None] | None,
    ) -> tuple[Images, Images, Bool[Tensor, "..."]]:
        """Attack images at one radius or several.

        Args:
            model: `PyTorchModel`, a Foolbox model, or a plain module of images in [0, 1].
            inputs: images `(N, ...)` within the model's bounds.
            criterion: labels `(N,)`, `Misclassification` or `TargetedMisclassification`.
            epsilons: radii; None, for minimum-norm attacks, sets no limit.

        Returns:
            The attack's images, the same projected on the ball, and a mask of the latter that are adversarial: a
            list over epsilons of images, twice, and `(E, N)`; for a single epsilon images, images and `(N,)`.

        Raises:
            AttackError: None for an attack that requires a radius; another model or criterion.
        """
        several = isinstance(epsilons, Sequence)
        radii: list[float | None] = list(epsilons) if isinstance(epsilons, Sequence) else [epsilons]
        module, box = module_and_bounds(model)
        goal = goal_of(module, inputs, criterion)
        free = self._crafted(module, inputs, goal, whole_box(self.norm, inputs, box)) if self._is_free else None
        raw, clipped, is_adv = [], [], []
        for radius in radii:
            if radius is None and free is None:
                raise AttackError(f"{type(self.attack).__name__} requires a radius: epsilons must not be None")
            threat = None if radius is None else ThreatModel(self.norm, radius, box)
            found = free
            if found is None:
                assert threat is not None
                found = self._crafted(module, inputs, goal, threat)
            raw.append(found)
            clipped.append(found if threat is None else threat.project(found, inputs))
            is_adv.append(goal.reached(verdict_logits(module, clipped[-1])))
        if several:
            return raw, clipped, torch.stack(is_adv)
        return raw[0], clipped[0], is_adv[0]

    @property
    def _is_free(self) -> bool:
        return self.attack.minimum_norm

    def _crafted(self, model: nn.Module, x: Tensor, goal: ClassificationGoal, threat: ThreatModel) -> Tensor:
        best, distance = nearest(self.attack, model, x, goal, threat, generator_for(x, self.seed, "repeat", 0))
        for turn in range(1, self.times):
            draws = generator_for(x, self.seed, "repeat", turn)
            points, other_distance = nearest(self.attack, model, x, goal, threat, draws)
            closer = other_distance < distance
            best = torch.where(closer.reshape(-1, *[1] * (x.ndim - 1)), points, best)
            distance = torch.minimum(distance, other_distance)
        return best


def LinfPGD(
    *,
    rel_stepsize: float = 0.01 / 0.3,
    abs_stepsize: float | None = None,
    steps: int = 40,
    random_start: bool = True,
) -> PortedAttack:
    """Sign ascent on cross-entropy."""
    return PortedAttack(_ascent(rel_stepsize, abs_stepsize, steps, random_start), "linf")


def L2PGD(
    *, rel_stepsize: float = 0.025, abs_stepsize: float | None = None, steps: int = 50, random_start: bool = True
) -> PortedAttack:
    """LinfPGD in l2."""
    return PortedAttack(_ascent(rel_stepsize, abs_stepsize, steps, random_start), "l2")


def L1PGD(
    *, rel_stepsize: float = 0.025, abs_stepsize: float | None = None, steps: int = 50, random_start: bool = True
) -> PortedAttack:
    """LinfPGD in l1, with sparse steps."""
    return PortedAttack(_ascent(rel_stepsize, abs_stepsize, steps, random_start), "l1")


def LinfBasicIterativeAttack(
    *, rel_stepsize: float = 0.2, abs_stepsize: float | None = None, steps: int = 10, random_start: bool = False
) -> PortedAttack:
    """PGD from the image itself."""
    return LinfPGD(rel_stepsize=rel_stepsize, abs_stepsize=abs_stepsize, steps=steps, random_start=random_start)


def L2BasicIterativeAttack(
    *, rel_stepsize: float = 0.2, abs_stepsize: float | None = None, steps: int = 10, random_start: bool = False
) -> PortedAttack:
    """L2PGD from the image itself."""
    return L2PGD(rel_stepsize=rel_stepsize, abs_stepsize=abs_stepsize, steps=steps, random_start=random_start)


def FGSM(*, random_start: bool = False) -> PortedAttack:
    """One sign step of length epsilon."""
    return PortedAttack(_ascent(1.0, None, 1, random_start), "linf")


def FGM(*, random_start: bool = False) -> PortedAttack:
    """One step of length epsilon along the gradient."""
    return PortedAttack(_ascent(1.0, None, 1, random_start), "l2")


def L2DeepFoolAttack(*, steps: int = 50, candidates: int = 10, overshoot: float = 0.02) -> PortedAttack:
    """Steps to the nearest linearised boundary in l2; `candidates` includes the label's class, as in Foolbox."""
    return PortedAttack(DeepFool(steps, overshoot, candidates - 1), "l2")


def LinfDeepFoolAttack(*, steps: int = 50, candidates: int = 10, overshoot: float = 0.02) -> PortedAttack:
    """L2DeepFoolAttack in linf."""
    return PortedAttack(DeepFool(steps, overshoot, candidates - 1), "linf")


def DDNAttack(*, init_epsilon: float = 1.0, steps: int = 100, gamma: float = 0.05) -> PortedAttack:
    """Decoupled direction and norm."""
    return PortedAttack(DDN(steps, init_epsilon, gamma), "l2")


def L2CarliniWagnerAttack(
    *,
    binary_search_steps: int = 9,
    steps: int = 10_000,
    stepsize: float = 1e-2,
    confidence: float = 0.0,
    initial_const: float = 1e-3,
) -> PortedAttack:
    """Penalty method in the variable of a tanh."""
    return PortedAttack(CarliniWagner(steps, binary_search_steps, initial_const, confidence, stepsize), "l2")


def EADAttack(
    *,
    binary_search_steps: int = 9,
    steps: int = 10_000,
    initial_stepsize: float = 1e-2,
    initial_const: float = 1e-3,
    regularization: float = 1e-2,
) -> PortedAttack:
    """Elastic net with decision rule "L1"; Foolbox's default is "EN"."""
    return PortedAttack(EAD(steps, binary_search_steps, regularization, initial_const, initial_stepsize), "l1")


def LInfFMNAttack(*, steps: int = 100, max_stepsize: float = 1.0, gamma: float = 0.05) -> PortedAttack:
    """Fast minimum norm."""
    return PortedAttack(FMN(steps, step_size=max_stepsize, gamma=gamma), "linf")


def L2FMNAttack(*, steps: int = 100, max_stepsize: float = 1.0, gamma: float = 0.05) -> PortedAttack:
    """Fast minimum norm in l2."""
    return PortedAttack(FMN(steps, step_size=max_stepsize, gamma=gamma), "l2")


def L1FMNAttack(*, steps: int = 100, max_stepsize: float = 1.0, gamma: float = 0.05) -> PortedAttack:
    """Fast minimum norm in l1."""
    return PortedAttack(FMN(steps, step_size=max_stepsize, gamma=gamma), "l1")


def L0FMNAttack(*, steps: int = 100, max_stepsize: float = 1.0, gamma: float = 0.05) -> PortedAttack:
    """Fast minimum norm in l0, which counts pixels; Foolbox counts values."""
    return PortedAttack(FMN(steps, step_size=max_stepsize, gamma=gamma), "l0")


def BoundaryAttack(*, steps: int = 25_000, spherical_step: float = 1e-2, source_step: float = 1e-2) -> PortedAttack:
    """Random walk along the boundary, from predicted classes alone."""
    return PortedAttack(Boundary(steps, spherical_step, source_step), "l2")


def HopSkipJumpAttack(
    *,
    steps: int = 64,
    initial_gradient_eval_steps: int = 100,
    max_gradient_eval_steps: int = 10_000,
    gamma: float = 1.0,
    constraint: Literal["linf", "l2"] = "l2",
) -> PortedAttack:
    """Estimates of the boundary's normal, from predicted classes alone."""
    attack = HopSkipJump(steps, initial_gradient_eval_steps, max_gradient_eval_steps, gamma=gamma)
    return PortedAttack(attack, constraint)


LinfProjectedGradientDescentAttack = LinfPGD
L2ProjectedGradientDescentAttack = L2PGD
L1ProjectedGradientDescentAttack = L1PGD
LinfFastGradientAttack = FGSM
L2FastGradientAttack = FGM


def _ascent(relative: float, absolute: float | None, steps: int, random_start: bool) -> PGD:
    return PGD(
        steps,
        step_size=absolute,
        relative_step_size=relative if absolute is None else None,
        start="random" if random_start else "none",
    )
