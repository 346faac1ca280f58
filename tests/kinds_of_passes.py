"""Short runs whose attacks take every kind of pass, for captured and for compiled passes."""

from pathlib import Path

import torch
from torch import nn

from robustly.data import Augmentation
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    ExponentialAverage,
    Job,
    Method,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TradesLoss,
    TrainingConfig,
    WeightPerturbation,
    train,
)
from robustly.training.engine.loop import FINAL
from trial_runs import digits

METHODS = {
    "pgd": Method(inner=PGDInner(steps=3), loss=AdversarialLoss(), parameters=(ExponentialAverage(),)),
    "trades": Method(inner=PGDInner(objective="kl", steps=2, start="gaussian"), loss=TradesLoss()),
    "statistics of the batch": Method(inner=PGDInner(steps=2, mode="train_nostat"), loss=AdversarialLoss()),
    "train mode": Method(inner=PGDInner(steps=2, mode="train"), loss=AdversarialLoss()),
    "awp": Method(inner=PGDInner(steps=2), loss=AdversarialLoss(), parameters=(WeightPerturbation(gamma=0.05),)),
}


def net(channels: int = 3, side: int = 8) -> nn.Module:
    """A network with batch norm and dropout."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(4 * (side - 2) ** 2, 10))


def trained_weights(method: Method, folder: Path, runtime: RuntimeConfig) -> bytes:
    """The file of weights after two epochs in batches of 32 and 8 images."""
    splits = digits(72)
    folder.mkdir()
    job = Job(
        method=method,
        model=net(1, 16),
        train=splits.train,
        validation=splits.validation,
        threats=(ThreatModel("linf", 0.1),),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.05),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=2, batch_size=32, validation_steps=1, epsilon_ramp=1.0),
        augmentation=Augmentation(pad_crop=2),
    )
    train(job, Runtime(runtime), folder, config_digest="")
    return (folder / FINAL).read_bytes()
