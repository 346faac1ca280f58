"""What every attack takes, gives back and leaves untouched."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

ModelMode = Literal["eval", "train", "train_nostat"]
Images = Float[Tensor, "n ..."]


class AttackError(ValueError):
    """An attack was given something that it cannot work with; the message says what is allowed."""


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for each of N examples.

    Args:
        x_adv: images inside the threat set: an adversarial example where `broken`, otherwise what the attack says
            it returns on failure (the original, or the point of highest objective).
        broken: whether `x_adv` was seen to reach the goal. Examples that were misclassified before the attack
            are broken at distance 0.
        distance: distance of the nearest adversarial example that was found, infinity where there was none. Broken
            examples have it at most epsilon; what a minimum-norm attack finds beyond is in `beyond`.
        forwards: forward passes spent on the example.
        backwards: input-gradient passes spent on the example.
        correct_iterates: how many of the points at which a gradient was taken the model still had right
            (kappa of GAIRAT, Zhang et al. 2021).
        invalid: whether the model ever answered with NaN or infinite logits.
        beyond: for minimum-norm attacks, the nearest adversarial example of each image that was found outside the
            threat set (other rows are ignored); None for attacks that stay inside.
        margin: the highest max_{j != y} z_j - z_y that was seen at any point of the search, `(N,)`: how close the
            example came to being misclassified. None where the attack does not say.
        zero_gradients: at how many points the gradient was exactly zero, `(N,)`; None where there is none.
    """

    x_adv: Images
    broken: Bool[Tensor, " n"]
    distance: Float[Tensor, " n"]
    forwards: Int64[Tensor, " n"]
    backwards: Int64[Tensor, " n"]
    correct_iterates: Int64[Tensor, " n"]
    invalid: Bool[Tensor, " n"]
    beyond: Images | None = None
    margin: Float[Tensor, " n"] | None = None
    zero_gradients: Int64[Tensor, " n"] | None = None


@runtime_checkable
class Attack(Protocol):
    """A search for adversarial examples.

    Leaves the model as it found it (train or eval mode of every module, `requires_grad` and `.grad` of every
    parameter, buffers) and has no state of its own. What it finds for an example depends on (model, x, y, threat,
    seed, example id) and not on the other examples of the batch.

    An attack that looks for the nearest adversarial example, whatever epsilon is, says so with an attribute
    `minimum_norm = True`: one run of it gives the whole security curve. One that is not defined for every norm
    lists those that it is for in an attribute `norms`, and refuses the others.
    """

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch.

        Args:
            model: any module from images to logits `(N, K)`.
            x: images `(N, ...)` inside the threat's box.
            y: true labels `(N,)`, or a `Goal` with target classes or reference logits.
            threat: what is allowed.
            generator: source of random numbers, keyed by the examples' ids.

        Raises:
            AttackError: shapes that do not fit, images outside the box, labels that are no classes, a norm that the
                attack is not defined for.
        """
        ...


@contextmanager
def frozen(model: nn.Module, mode: ModelMode = "eval", full_precision: bool = True) -> Iterator[None]:
    """Hold a model still while it is attacked, and put everything back, also after an exception.

    Args:
        model: the model under attack; its parameters ask for no gradient inside.
        mode: "eval"; "train" (the modes are left as they are: under training, batch statistics that also update the
            running ones); or "train_nostat" (batch statistics, running ones left alone).
        full_precision: whether to switch autocast and TF32 off.
    """
    training = [(module, module.training) for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    tracked = [(norm, norm.track_running_stats) for norm in norms]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = next((p.device.type for p in model.parameters()), "cpu")
    autocast = torch.autocast(device, enabled=not full_precision and torch.is_autocast_enabled(device))
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        if full_precision:  # 10-bit mantissas would give other verdicts than the CPU that audits them
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        for parameter in wanted:
            parameter.requires_grad_(False)
        if mode == "eval":
            model.eval()
        elif mode == "train_nostat":
            model.eval()
            for norm in norms:
                norm.train()
                norm.track_running_stats = False
        with torch.inference_mode(False), torch.enable_grad(), autocast:
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, was_training in training:
            module.training = was_training
        for norm, was_tracked in tracked:
            norm.track_running_stats = was_tracked


def prepare(x: Images, y: Int64[Tensor, " n"] | Goal, threat: ThreatModel) -> tuple[Images, Goal]:
    """Check a batch at the door of an attack; tensors born in inference mode are copied out of it.

    Raises:
        AttackError: images that are no floats or lie outside the box; labels that do not fit the images.
    """
    goal = y if isinstance(y, Goal) else Goal(y)
    if not x.is_floating_point():
        raise AttackError(f"images must be floats in {list(threat.box)}, got {x.dtype}: divide uint8 by 255")
    if goal.y.shape != x.shape[:1] or goal.y.dtype != torch.int64:
        raise AttackError(f"labels must be int64 of shape ({len(x)},), got {goal.y.dtype} of {tuple(goal.y.shape)}")
    if goal.target is not None and (goal.target.shape != goal.y.shape or goal.target.dtype != torch.int64):
        raise AttackError(
            f"target classes must be int64 of shape ({len(x)},), got {goal.target.dtype} of "
            f"{tuple(goal.target.shape)}"
        )
    low, high = threat.box
    if x.numel() and not (bool(x.amin() >= low) and bool(x.amax() <= high)):
        raise AttackError(
            f"images must lie in [{low:g}, {high:g}], got [{x.amin():g}, {x.amax():g}]: the model, not the data, "
            "normalises (put a Normalize layer first)"
        )
    if goal.target is not None and bool((goal.target == goal.y).any()):
        raise AttackError("a target class equals the true label: targets must be other classes")
    with torch.inference_mode(False):
        return x.detach().clone(), goal


def check_logits(logits: Tensor, goal: Goal) -> Tensor:
    """Logits as they have to be, for the first answer of a model.

    Raises:
        AttackError: another shape than `(N, K)` with K at least 2, or labels outside 0..K-1.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(goal.y) or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise AttackError(f"the model must return logits ({len(goal.y)}, classes >= 2), got {shape}")
    for name, classes in (("labels", goal.y), ("target classes", goal.target)):
        if classes is None or len(classes) == 0:
            continue
        least, largest = int(classes.min()), int(classes.max())
        if least < 0 or largest >= logits.shape[1]:
            raise AttackError(f"{name} span {least}..{largest}, the model has classes 0..{logits.shape[1] - 1}")
    return logits


def check_norm(threat: ThreatModel, norms: tuple[str, ...]) -> None:
    """Refuse a threat that an attack is not defined for.

    Raises:
        AttackError: the norm is not among `norms`.
    """
    if threat.norm not in norms:
        raise AttackError(f"this attack is defined for {', '.join(norms)}, the threat is {threat}")


def check_ids(x: Images, generator: KeyedGenerator) -> None:
    """Refuse a generator of other examples.

    Raises:
        AttackError: another number of ids than images.
    """
    if len(generator.ids) != len(x):
        raise AttackError(
            f"every image needs its id: the generator has {len(generator.ids)} ids for {len(x)} images"
        )


def check_device(model: nn.Module, x: Images) -> None:
    """Refuse images that are not where the model is.

    Raises:
        AttackError: the two devices.
    """
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device != x.device:
        raise AttackError(f"the model is on {parameter.device}, the images are on {x.device}: move one of them")
