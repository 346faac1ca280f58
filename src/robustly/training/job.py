"""What a training run is made of."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from robustly.data import Augmentation, Extra, ImageData
from robustly.threats.lp import ThreatModel
from robustly.training.cost import step_cost
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
        epsilon_ramp_by: whether it grows with every "step" or, constant within an epoch and whole in the ramp's
            last one, with every "epoch".
        stop_after_drop: training stops after an epoch whose robust validation accuracy lies more than this below
            the epoch before (catastrophic overfitting; Wong et al., ICLR 2020, stop at 0.2); none without it.
        channels_last: whether images are laid out channels-last, the faster layout for convolutions.
    """

    epochs: int = 10
    batch_size: int = 128
    validation_batch_size: int = 500
    validation_steps: int = 10
    select_by: Literal["robust", "clean"] = "robust"
    patience: int | None = None
    epsilon_ramp: float = 0.0
    epsilon_ramp_by: Literal["step", "epoch"] = "step"
    stop_after_drop: float | None = None
    channels_last: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validation_batch_size", "validation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        if self.stop_after_drop is not None and not 0 < self.stop_after_drop < 1:
            raise ValueError(f"stop_after_drop must lie between 0 and 1, got {self.stop_after_drop}")
        if self.stop_after_drop is not None and self.select_by != "robust":
            raise ValueError(
                "stop_after_drop goes with select_by 'robust': by clean accuracy the fall may look best"
            )
        if not self.epsilon_ramp >= 0:
            raise ValueError(f"epsilon_ramp must be at least 0, got {self.epsilon_ramp}")
        if self.epsilon_ramp == 0 and self.epsilon_ramp_by != "step":
            raise ValueError("epsilon_ramp_by says nothing without a ramp: set epsilon_ramp to its epochs")


@dataclass(frozen=True)
class Job:
    """Everything that a training run is made of.

    Args:
        method: the five parts.
        model: the network to train.
        guide: the network trained beside it, where the method has one.
        teachers: frozen networks by role ("teacher", "standard_teacher"), where the method has any.
        extra: more training images, mixed into every batch.
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
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    extra: Extra | None = None

    def __post_init__(self) -> None:
        check_networks(self.method, [*self.teachers, *(["guide"] if self.guide is not None else [])])
        self.method.check_epochs(self.training.epochs)
        if self.method.weights is not None:
            step_cost(self.method, self.training.epochs)  # refuses weights for a term that the loss has not
        ramp, epochs = self.training.epsilon_ramp, self.training.epochs
        if ramp > epochs:
            warnings.warn(
                f"epsilon grows over {ramp:g} epochs and the run has {epochs}: training never sees all of it, set "
                "training.epsilon_ramp",
                stacklevel=2,
            )
        if self.extra is not None:
            self.extra.share_of(self.training.batch_size)

    def check_processes(self, count: int) -> None:
        """Refuse several processes where the method needs one.

        Raises:
            MethodError: Free-AT, whose perturbation belongs to a place in the batch of one process.
        """
        if self.method.shares_backward and count > 1:
            raise MethodError("Free-AT keeps a perturbation for each place in the batch: use one process")

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self.train) // self.training.batch_size)


ROLES = ("guide", "teacher", "standard_teacher")


def check_networks(method: Method, roles: Collection[str]) -> None:
    """The networks beside the model are exactly those that the method asks for.

    Raises:
        MethodError: one is missing, or nothing would use it.
    """
    for role in method.networks:
        if role not in roles:
            raise MethodError(f"the method asks for a {_said(role)}, the run has none: set the key {role!r}")
    for role in roles:
        if role not in method.networks:
            raise MethodError(
                f"the run has a {_said(role)} that the method does not use: set the key {role!r} to null"
            )


def _said(role: str) -> str:
    return {"guide": "guide network", "teacher": "teacher", "standard_teacher": "second, standard-trained teacher"}[
        role
    ]
