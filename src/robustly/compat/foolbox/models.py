"""Models and criteria of Foolbox's form; Foolbox's own objects are accepted as well."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError
from robustly.compat.goals import targeted_goal, verdict_logits
from robustly.objectives import ClassificationGoal


class PyTorchModel(nn.Module):
    """A model, the range of its images, and their preprocessing.

    Args:
        model: from preprocessed images to logits.
        bounds: least and largest value of an image.
        device: device that the model is moved to; None does not move it.
        preprocessing: "mean" and "std", numbers or one per channel, and "axis" of the channels, -3.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        bounds: tuple[float, float],
        device: str | torch.device | None = None,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        given = dict(preprocessing or {})
        self.model, self.bounds = model, (float(bounds[0]), float(bounds[1]))
        self.register_buffer("mean", _along(given.get("mean", 0.0), given.get("axis")))
        self.register_buffer("std", _along(given.get("std", 1.0), given.get("axis")))
        if device is not None:
            self.to(device)

    def forward(self, x: Tensor) -> Float[Tensor, "n k"]:
        """Logits."""
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Misclassification:
    """Criterion: any class but the label.

    Args:
        labels: true labels `(N,)`.
    """

    labels: Int64[Tensor, " n"]


@dataclass(frozen=True)
class TargetedMisclassification:
    """Criterion: the target class.

    Args:
        target_classes: classes to reach `(N,)`.
    """

    target_classes: Int64[Tensor, " n"]


class _Foreign(nn.Module):
    """A model of Foolbox's own; it must already be in evaluation mode."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.call(x)


def module_and_bounds(model: Any) -> tuple[nn.Module, tuple[float, float]]:
    """Module for the attacks, and its images' range; [0, 1] for plain modules.

    Raises:
        AttackError: neither a module nor a Foolbox model.
    """
    low, high = getattr(model, "bounds", (0.0, 1.0))
    if isinstance(model, nn.Module):
        return model, (float(low), float(high))
    if callable(model) and hasattr(model, "bounds"):
        return _Foreign(model), (float(low), float(high))
    raise AttackError(f"a model must be a torch.nn.Module or a Foolbox model, got {type(model).__name__}")


def goal_of(model: nn.Module, x: Tensor, criterion: Any) -> ClassificationGoal:
    """Goal of a criterion, or of labels.

    Raises:
        AttackError: another criterion.
    """
    if isinstance(criterion, Tensor):
        return ClassificationGoal(criterion)
    if hasattr(criterion, "target_classes"):
        return targeted_goal(model, x, _tensor(criterion.target_classes))
    if hasattr(criterion, "labels"):
        return ClassificationGoal(_tensor(criterion.labels))
    raise AttackError(
        "a criterion must be labels, Misclassification or TargetedMisclassification, "
        f"got {type(criterion).__name__}"
    )


def accuracy(fmodel: Any, inputs: Tensor, labels: Int64[Tensor, " n"]) -> float:
    """Share of images that a model classifies correctly."""
    model, _ = module_and_bounds(fmodel)
    return float((verdict_logits(model, inputs).argmax(1) == labels).double().mean())


def _tensor(value: Any) -> Tensor:
    """Tensor of a value, which Foolbox may wrap."""
    tensor: Tensor = getattr(value, "raw", value)
    return tensor


def _along(values: Any, axis: int | None) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return tensor if axis is None else tensor.reshape(-1, *[1] * (-axis - 1))
