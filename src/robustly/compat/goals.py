"""What the parts of this room share: peers name target classes without true labels, and attack without radius."""

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
    """Target classes without true labels: for the label stands the class beside the target that is most likely."""
    others = verdict_logits(model, x).scatter(1, target[:, None], -torch.inf)
    return ClassificationGoal(others.argmax(1), target=target)


def generator_for(x: Tensor, *key: int | str) -> KeyedGenerator:
    """Random numbers of a call that names no examples: an image's id is its place in the batch."""
    return KeyedGenerator(derive_seed(*key), torch.arange(len(x), device=x.device))


def whole_box(norm: str, x: Tensor, box: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    """A threat that lets an image become any other."""
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
    """The points of a minimum-norm attack wherever they lie, and how far away; the image and infinity for none."""
    found = attack(model, x, goal, threat=threat, generator=generator)
    if found.beyond is None:
        return found.x_adv, found.distance
    reached = (~found.broken & found.distance.isfinite()).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(reached, found.beyond, found.x_adv), found.distance
