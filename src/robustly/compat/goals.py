"""Target classes without true labels, and attacks without a radius, as other libraries have them."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.attacks.core.contract import check_device, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats.lp import ThreatModel


def verdict_logits(model: nn.Module, x: Tensor) -> Float[Tensor, "n k"]:
    """Logits in evaluation mode and full precision; the model is left unchanged."""
    check_device(model, x)
    with frozen(model), torch.no_grad():
        return logits_of(model, x)


def targeted_goal(model: nn.Module, x: Tensor, target: Int64[Tensor, " n"]) -> ClassificationGoal:
    """Goal of target classes without true labels; the label is the likeliest class other than the target."""
    others = verdict_logits(model, x).scatter(1, target[:, None], -torch.inf)
    return ClassificationGoal(others.argmax(1), target=target)


def generator_for(x: Tensor, *key: int | str) -> KeyedGenerator:
    """Random numbers of a call without example ids: an image's id is its place in the batch."""
    return KeyedGenerator(derive_seed(*key), torch.arange(len(x), device=x.device))


def whole_box(norm: str, x: Tensor, box: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    """Threat that allows every image of the box."""
    size, width = x[0].numel(), box[1] - box[0]
    pixels = x[0][0].numel() if x.ndim > 2 else size
    radius = {"linf": width, "l2": width * math.sqrt(size) * 1.001, "l1": width * size * 1.001, "l0": float(pixels)}
    return ThreatModel(norm, radius[norm], box)


def nearest(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    goal: ClassificationGoal,
    threat: ThreatModel,
    generator: KeyedGenerator,
) -> tuple[Tensor, Float[Tensor, " n"]]:
    """Points of a minimum-norm attack at any distance, and their distances; the image and infinity for failures."""
    found = attack(model, x, goal, threat=threat, generator=generator)
    if found.beyond is None:
        return found.x_adv, found.distance
    reached = (~found.broken & found.distance.isfinite()).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(reached, found.beyond, found.x_adv), found.distance
