"""A small run on digits for trials of training parts and defences that are not shipped."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from robustly.data import Augmentation, DataConfig, Splits, load_splits
from robustly.models import ModelConfig, build_model
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    Job,
    Method,
    Observer,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TrainingConfig,
    train,
)

LINF = ThreatModel("linf", 0.1)
INNER = PGDInner(steps=4, relative_step_size=0.35)


def digits(train_limit: int = 1000) -> Splits:
    return load_splits(DataConfig(train_limit=train_limit, validation=100, test=100, image_size=16))


def small_job(method: Method, epochs: int = 6, splits: Splits | None = None) -> Job:
    splits = splits or digits()
    return Job(
        method=method,
        model=build_model(ModelConfig(width=0.25, dropout=0.2, image_size=(16, 16)), seed=1),
        train=splits.train,
        validation=splits.validation,
        threats=(LINF,),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.005),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=epochs, batch_size=32, validation_steps=3, epsilon_ramp=2.0),
        augmentation=Augmentation(),
    )


def run(job: Job, folder: Path, observer: Observer | None = None) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    train(job, Runtime(RuntimeConfig(device="cpu")), folder, config_digest="trial", observer=observer)
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
