"""Attacks by the names and arguments of torchattacks (github.com/Harry24k/adversarial-attacks-pytorch)."""
# ruff: noqa: N802  (functions have the names of the classes that they replace)

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from robustly import attacks
from robustly.attacks import Attack, deepfool, fab, jsma, square
from robustly.attacks.carlini_wagner import CarliniWagner
from robustly.attacks.ead import EAD
from robustly.attacks.mim import MIM, InputDiversity
from robustly.compat import autoattack
from robustly.compat.autoattack import NORMS, Version
from robustly.compat.goals import generator_for, nearest, targeted_goal, verdict_logits, whole_box
from robustly.models import as_classifier
from robustly.models.layers import Normalize
from robustly.objectives import ClassificationGoal, cross_entropy, difference_of_logits_ratio
from robustly.randomness import derive_seed
from robustly.threats.lp import ThreatModel

Craft = Callable[[nn.Module, Tensor, ClassificationGoal, int], Tensor]
TargetMap = Callable[[Tensor, Tensor], Tensor]
Loss = Literal["ce", "dlr"]
OBJECTIVES = {"ce": cross_entropy, "dlr": difference_of_logits_ratio}
ROUNDING = 1e-4  # largest distance outside [0, 1] of an image after normalisation and its inverse


class PortedAttack:
    """Attack in torchattacks' form: `atk(images, labels)` returns adversarial images.

    Images are in [0, 1] (or normalised, see `set_normalization_used`). Random numbers depend on `seed` and the
    number of earlier calls, not on `torch.manual_seed`.

    Args:
        model: from images to logits; it is attacked in evaluation mode and left unchanged.
        craft: from model, images in [0, 1], goal and seed to adversarial images.
        targeted: True if the attack supports target classes.
        seed: of the random numbers.
    """

    def __init__(self, model: nn.Module, craft: Craft, *, targeted: bool = True, seed: int = 0) -> None:
        self.model, self.craft, self.seed, self.calls = as_classifier(model), craft, seed, 0
        self.can_target, self.attack_mode = targeted, "default"
        self._target_map: TargetMap | None = None
        self._normalize: Normalize | None = None

    def __call__(self, images: Tensor, labels: Int64[Tensor, " n"]) -> Tensor:
        """Adversarial images, on the model's device.

        Args:
            images: `(N, ...)`.
            labels: true labels; in mode "targeted(label)", target classes.
        """
        parameter = next(self.model.parameters(), None)
        device = images.device if parameter is None else parameter.device
        images, labels, model = images.detach().to(device), labels.to(device), self.model
        if self._normalize is not None:
            normalize = self._normalize.to(device)
            model, images = nn.Sequential(normalize, model), images * normalize.std + normalize.mean
            inside = images.clamp(0, 1)
            images = torch.where((inside - images).abs() < ROUNDING, inside, images)
        self.calls += 1
        goal = self._goal(model, images, labels)
        found = self.craft(model, images, goal, derive_seed(self.seed, "call", self.calls))
        return found if self._normalize is None else self._normalize(found)

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set standardised input and output by numbers per channel; epsilon stays on the [0, 1] scale."""
        self._normalize = Normalize([float(value) for value in mean], [float(value) for value in std])

    def set_mode_default(self) -> None:
        """Attack untargeted: any wrong class is a success."""
        self.attack_mode, self._target_map = "default", None

    def set_mode_targeted_by_label(self, quiet: bool = True) -> None:
        """Use the labels of a call as target classes."""
        self._set_targeted("targeted(label)", None)

    def set_mode_targeted_by_function(self, target_map_function: TargetMap, quiet: bool = True) -> None:
        """Compute target classes, other than the labels, by a function of images and labels."""
        self._set_targeted("targeted(custom)", target_map_function)

    def set_mode_targeted_random(self, quiet: bool = True) -> None:
        """Draw target classes from all but the label's."""
        self._set_targeted("targeted(random)", self._random_target)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = True) -> None:
        """Use the classes with the k-th smallest logit as targets, except the label's."""

        def least_likely(images: Tensor, labels: Tensor) -> Tensor:
            logits = self._logits(images).scatter(1, labels[:, None], torch.inf)
            return logits.argsort(1)[:, kth_min - 1]

        self._set_targeted("targeted(least-likely)", least_likely)

    def _set_targeted(self, mode: str, target_map: TargetMap | None) -> None:
        if not self.can_target:
            raise ValueError("Targeted mode is not supported.")
        self.attack_mode, self._target_map = mode, target_map

    def _goal(self, model: nn.Module, images: Tensor, labels: Tensor) -> ClassificationGoal:
        if self.attack_mode == "default":
            return ClassificationGoal(labels)
        if self._target_map is None:
            return targeted_goal(model, images, labels)
        return ClassificationGoal(labels, target=self._target_map(images, labels).to(labels))

    def _random_target(self, images: Tensor, labels: Tensor) -> Tensor:
        classes = self._logits(images).shape[1]
        step = generator_for(images, self.seed, "target", self.calls).integers(classes - 1, 1)[:, 0]
        return (labels + 1 + step) % classes

    def _logits(self, images: Tensor) -> Tensor:
        model = self.model if self._normalize is None else nn.Sequential(self._normalize, self.model)
        return verdict_logits(model, images)


def FGSM(model: nn.Module, eps: float = 8 / 255) -> PortedAttack:
    """One step of length eps."""
    attack = attacks.PGD(1, relative_step_size=1.0, start="none", keep="last")
    return PortedAttack(model, _within(attack, "Linf", eps))


def FFGSM(model: nn.Module, eps: float = 8 / 255, alpha: float = 10 / 255) -> PortedAttack:
    """One step of length alpha from a random start ("fast" FGSM)."""
    return PortedAttack(model, _within(attacks.PGD(1, step_size=alpha, keep="last"), "Linf", eps))


def BIM(model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> PortedAttack:
    """PGD from the image itself."""
    return PGD(model, eps, alpha, steps, random_start=False)


def PGD(
    model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, random_start: bool = True
) -> PortedAttack:
    """Sign ascent on cross-entropy; returns the last iterate."""
    return PortedAttack(model, _within(_ascent(alpha, steps, random_start), "Linf", eps))


def PGDL2(
    model: nn.Module, eps: float = 1.0, alpha: float = 0.2, steps: int = 10, random_start: bool = True
) -> PortedAttack:
    """PGD in l2; the start is uniform in the ball, the projection exact for ball and box together."""
    return PortedAttack(model, _within(_ascent(alpha, steps, random_start), "L2", eps))


def MIFGSM(
    model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, decay: float = 1.0
) -> PortedAttack:
    """PGD with momentum; returns the last iterate."""
    return PortedAttack(model, _within(MIM(steps, decay, step_size=alpha, keep="last"), "Linf", eps))


def DIFGSM(
    model: nn.Module,
    eps: float = 8 / 255,
    alpha: float = 2 / 255,
    steps: int = 10,
    decay: float = 0.0,
    resize_rate: float = 0.9,
    diversity_prob: float = 0.5,
    random_start: bool = False,
) -> PortedAttack:
    """PGD with momentum and input diversity, drawn for each image; returns the last iterate."""
    attack = MIM(
        steps,
        decay,
        step_size=alpha,
        start="random" if random_start else "none",
        keep="last",
        diversity=InputDiversity(diversity_prob, resize_rate),
    )
    return PortedAttack(model, _within(attack, "Linf", eps))


def APGD(
    model: nn.Module,
    norm: str = "Linf",
    eps: float = 8 / 255,
    steps: int = 10,
    n_restarts: int = 1,
    seed: int = 0,
    loss: Loss = "ce",
) -> PortedAttack:
    """Auto-PGD."""
    attack = attacks.APGD(steps, OBJECTIVES[loss], n_restarts)
    return PortedAttack(model, _within(attack, norm, eps), seed=seed)


def APGDT(
    model: nn.Module,
    norm: str = "Linf",
    eps: float = 8 / 255,
    steps: int = 10,
    n_restarts: int = 1,
    seed: int = 0,
    n_classes: int = 10,
) -> PortedAttack:
    """Auto-PGD towards each of the likeliest wrong classes, at most nine."""
    attack = attacks.TargetedAPGD(steps, targets=min(9, n_classes - 1), restarts=n_restarts)
    return PortedAttack(model, _within(attack, norm, eps), targeted=False, seed=seed)


def FAB(
    model: nn.Module,
    norm: str = "Linf",
    eps: float = 8 / 255,
    steps: int = 10,
    n_restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    *,
    seed: int = 0,
    multi_targeted: bool = False,
    n_classes: int = 10,
) -> PortedAttack:
    """FAB, which minimises the perturbation; adversarial examples beyond eps do not count."""
    targets = min(9, n_classes - 1) if multi_targeted else 0
    attack = fab.FAB(steps, n_restarts, targets, alpha_max, eta, beta)
    return PortedAttack(model, _within(attack, norm, eps), seed=seed)


def Square(
    model: nn.Module,
    norm: str = "Linf",
    eps: float = 8 / 255,
    n_queries: int = 5000,
    n_restarts: int = 1,
    p_init: float = 0.8,
    *,
    resc_schedule: bool = True,
    seed: int = 0,
) -> PortedAttack:
    """Random search without gradients, on the margin."""
    attack = square.Square(n_queries, p_init, n_restarts, resc_schedule)
    return PortedAttack(model, _within(attack, norm, eps), seed=seed)


def AutoAttack(
    model: nn.Module,
    norm: str = "Linf",
    eps: float = 8 / 255,
    version: Version = "standard",
    n_classes: int = 10,
    seed: int | None = None,
) -> PortedAttack:
    """The published suite with 100 steps per attack; see `robustly.compat.autoattack`."""

    def craft(model: nn.Module, x: Tensor, goal: ClassificationGoal, seed: int) -> Tensor:
        return autoattack.AutoAttack(model, norm, eps, seed, False, version=version).evaluated(
            x, goal.y, max(len(x), 1)
        )[1]

    return PortedAttack(model, craft, targeted=False, seed=seed or 0)


def DeepFool(model: nn.Module, steps: int = 50, overshoot: float = 0.02) -> PortedAttack:
    """Steps to the nearest linearised boundary, in l2, without a radius."""
    return PortedAttack(model, _without_radius(deepfool.DeepFool(steps, overshoot), "l2"), targeted=False)


def CW(model: nn.Module, c: float = 1, kappa: float = 0, steps: int = 50, lr: float = 0.01) -> PortedAttack:
    """Carlini and Wagner's l2 attack at one value of the constant, without a radius; the image if it fails."""
    attack = CarliniWagner(steps, search_steps=1, initial_c=c, confidence=kappa, learning_rate=lr)
    return PortedAttack(model, _without_radius(attack, "l2"))


def EADL1(
    model: nn.Module,
    lr: float = 0.01,
    binary_search_steps: int = 9,
    max_iterations: int = 100,
    initial_const: float = 0.001,
    beta: float = 0.001,
) -> PortedAttack:
    """Elastic net, the nearest example in l1, without a radius."""
    attack = EAD(max_iterations, binary_search_steps, beta, initial_const, lr)
    return PortedAttack(model, _without_radius(attack, "l1"))


def JSMA(model: nn.Module, theta: float = 1.0, gamma: float = 0.1) -> PortedAttack:
    """Pairs of features by saliency; without a target all wrong classes are tried, not only the next one."""
    return PortedAttack(model, _without_radius(jsma.JSMA(theta, gamma), "l0"))


def _ascent(alpha: float, steps: int, random_start: bool) -> attacks.PGD:
    return attacks.PGD(steps, step_size=alpha, start="random" if random_start else "none", keep="last")


def _within(attack: Attack, norm: str, eps: float) -> Craft:
    """Images of an attack at a radius."""
    threat = ThreatModel(NORMS[norm], eps)

    def craft(model: nn.Module, x: Tensor, goal: ClassificationGoal, seed: int) -> Tensor:
        return attack(model, x, goal, threat=threat, generator=generator_for(x, seed)).x_adv

    return craft


def _without_radius(attack: Attack, norm: str) -> Craft:
    """Images of a minimum-norm attack, without a radius."""

    def craft(model: nn.Module, x: Tensor, goal: ClassificationGoal, seed: int) -> Tensor:
        return nearest(attack, model, x, goal, whole_box(norm, x), generator_for(x, seed))[0] if len(x) else x

    return craft
