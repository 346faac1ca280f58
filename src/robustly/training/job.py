"""What a training run is made of."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from robustly.data import Augmentation, ImageData
from robustly.threat import ThreatModel
from robustly.training.method import Method, MethodError
from robustly.training.optimisation import OptimizerConfig, ScheduleConfig


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how often.

    Args:
        epochs: passes over the training images, at least 1.
        batch_size: images of a step, all processes together.
        validation_batch_size: images of a validation pass.
        validation_steps: steps of the validation attack (PGD, steps of epsilon / 4), at least 1.
        select_by: what the best epoch is best at on the validation images: "robust" or "clean" accuracy; the other
            one breaks ties.
        patience: epochs without a better one after which training stops; none without it.
        epsilon_ramp: epochs during which the training attack's epsilon grows linearly from 0.
        channels_last: whether images are laid out channels-last, the faster layout for convolutions.
    """

    epochs: int = 10
    batch_size: int = 128
    validation_batch_size: int = 500
    validation_steps: int = 10
    select_by: Literal["robust", "clean"] = "robust"
    patience: int | None = None
    epsilon_ramp: float = 0.0
    channels_last: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validation_batch_size", "validation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        if not self.epsilon_ramp >= 0:
            raise ValueError(f"epsilon_ramp must be at least 0, got {self.epsilon_ramp}")


@dataclass(frozen=True)
class Job:
    """Everything that a training run is made of.

    Args:
        method: the five parts.
        model: the network to train.
        guide: the network trained beside it, where the method has one.
        train: training images.
        validation: held-out images for model selection.
        threat: what the adversary may do.
        optimizer: how parameters move.
        schedule: how the learning rate changes.
        training: how long.
        augmentation: what is done to the training images.
        seed: seed of every random number of the run.
    """

    method: Method
    model: nn.Module
    guide: nn.Module | None
    train: ImageData
    validation: ImageData
    threat: ThreatModel
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    augmentation: Augmentation
    seed: int = 0

    def __post_init__(self) -> None:
        check_guide(self.method, self.guide is not None)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self.train) // self.training.batch_size)


def check_guide(method: Method, has_guide: bool) -> None:
    """A guide network is there exactly if the method wants one.

    Raises:
        MethodError: it is missing, or nothing would use it.
    """
    if method.needs_guide and not has_guide:
        raise MethodError("the method's labels come from a guide network, the run has none: set the key 'guide'")
    if has_guide and not method.needs_guide:
        raise MethodError("the run has a guide network that the method does not use: set the key 'guide' to null")
