"""Accuracies that a run measures: on validation images, on training images, and of its guide."""

from dataclasses import dataclass

import torch
from torch import nn

from robustly.attacks import dynat_pgd
from robustly.data import ImageData
from robustly.randomness import derive_seed
from robustly.runtime import Runtime
from robustly.statistics import Proportion
from robustly.training.engine.checkpoint import Row
from robustly.training.engine.guide_check import GUIDE, checked_images, is_checked
from robustly.training.engine.job import Job
from robustly.training.engine.stepping import Stepper
from robustly.training.engine.validation import Validation, averaged_state, clean_accuracy, validate
from robustly.training.modes import with_state


@dataclass(frozen=True)
class Measurements:
    """Accuracies of the networks of a run as they are now, over all processes.

    Args:
        job: method, networks, data and settings.
        runtime: device and processes.
        stepper: the networks on their device.
        validation: held-out images on the device.
    """

    job: Job
    runtime: Runtime
    stepper: Stepper
    validation: ImageData

    def validate(self) -> Validation:
        """Clean and robust accuracy of the weights to release on held-out images."""
        training, model = self.job.training, self.stepper.networks.model
        with with_state(model, averaged_state(self.job.method, self.stepper.memory)):
            self.runtime.follow_first(model)
            with self.runtime.whole_weights(model):  # processes need not take the same passes
                return validate(
                    model,
                    self.validation,
                    dynat_pgd(training.validation_steps),
                    self.job.threat,
                    seed=derive_seed(self.job.seed, "validation"),
                    batch_size=training.validation_batch_size,
                    rank=self.runtime.rank,
                    world_size=self.runtime.world_size,
                    total=self.runtime.sum,
                    dtype=self.stepper.dtype,
                )

    def training_images(self) -> Row:
        """Clean accuracy of the weights to release on the first training images, where `measure_train` is not 0."""
        count, model = min(self.job.training.measure_train, len(self.job.train)), self.stepper.networks.model
        if not count:
            return {}
        images = self.job.train.select(torch.arange(count)).to(self.runtime.device)
        with with_state(model, averaged_state(self.job.method, self.stepper.memory)):
            self.runtime.follow_first(model)
            return {"train_subset_clean_accuracy": self.clean(model, images).share}

    def guide(self) -> Proportion | None:
        """Accuracy of the guide on training images if it was trained before the run; else None."""
        if not is_checked(self.job):
            return None
        return self.clean(self.stepper.networks.trained[GUIDE], checked_images(self.job).to(self.runtime.device))

    def clean(self, network: nn.Module, images: ImageData) -> Proportion:
        """Clean accuracy of a network in evaluation mode."""
        with self.runtime.whole_weights(network):
            return clean_accuracy(
                network,
                images,
                batch_size=self.job.training.validation_batch_size,
                rank=self.runtime.rank,
                world_size=self.runtime.world_size,
                total=self.runtime.sum,
                dtype=self.stepper.dtype,
            )
