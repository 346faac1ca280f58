"""Run folders: settings, networks and data from `config.yaml`."""

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from robustly.attacks.core.contract import check_output
from robustly.data import DataConfig, ImageData, Splits, load_extra, load_splits
from robustly.evaluation.derived import looks_like_probabilities
from robustly.evaluation.fitting import first_logits, fitted_data
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.keys import UNTRAINED
from robustly.experiments.last_epoch import last_weights, put_weights
from robustly.experiments.locks import is_own_leftover
from robustly.experiments.overrides import read_yaml
from robustly.experiments.training_threats import check_training_threats
from robustly.files import remove_stale_parts, write_text
from robustly.model_names import is_published
from robustly.models import ModelConfig, about_model, as_classifier, build_model, load_weights
from robustly.models.layout import in_fastest_layout
from robustly.objectives import ClassificationGoal
from robustly.randomness import derive_seed
from robustly.runtime import device_of
from robustly.training import AuxiliaryNetwork, Job
from robustly.training.engine.job import check_networks
from robustly.training.engine.loop import BEST, FINAL, LAST

CONFIG = "config.yaml"
EVALUATION = "evaluation"
CERTIFIED = "certified"
"""Name of the evaluation of `robustly certify`."""
REPORT = "report.html"

OWN_WEIGHTS = "factory's own"
PUBLISHED_WEIGHTS = "published"

Trusts = Callable[[str], bool]
Checkpoint = Literal["best", "last"]
"""Weights of a run: those that it selected, or those after its last epoch."""


class RunError(ValueError):
    """A run folder that is missing, damaged or in use."""


def create_run(folder: Path, config: RunConfig) -> None:
    """Create a run folder with its settings in one atomic step.

    Raises:
        RunError: the folder exists already.
        OSError: the folder cannot be written.
    """
    refuse_existing(folder)
    text = yaml.safe_dump(config.as_plain(), sort_keys=False)
    if folder.is_dir():
        remove_stale_parts(folder)
        write_text(folder / CONFIG, text)
        return
    remove_stale_parts(folder.parent, folder.name)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        staging.mkdir(parents=True)
        write_text(staging / CONFIG, text)
        staging.rename(folder)
    except OSError:
        refuse_existing(folder)  # another process may have made it in the meantime
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_existing(folder: Path, advice: str | None = None) -> None:
    """Refuse a folder that is not empty. A run killed at its beginning leaves an empty one, or locks and parts.

    Args:
        folder: the folder.
        advice: what to do instead; None for the options of training.

    Raises:
        RunError: the folder has files, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or not all(is_own_leftover(item) for item in folder.iterdir())):
        advice = advice or f"choose another name with --out, or continue it with --resume {folder}"
        raise RunError(f"{folder} exists already: {advice}")


def is_begun(folder: Path, config: RunConfig) -> bool:
    """Return True if a folder has a run of the same settings, to be continued; False if it is free for a new run.

    Raises:
        RunError: the folder has a run of other settings, or other files.
    """
    if not (folder / CONFIG).is_file():
        refuse_existing(folder)
        return False
    there, here = (_without_checks(one.as_plain()) for one in (open_run(folder), config))
    other = [key for key in here if here[key] != there.get(key)]
    if other:
        raise RunError(
            f"{folder} exists already with other settings ({', '.join(other)}): choose another name with --out, or "
            f"continue it with --resume {folder}; to train it for longer, `robustly finetune {folder} --epochs N`"
        )
    return True


def _without_checks(plain: dict[str, Any]) -> dict[str, Any]:
    """Plain settings without `data.expected_classes`, which runs begun by earlier versions do not have."""
    return {**plain, "data": {key: value for key, value in plain["data"].items() if key != "expected_classes"}}


def evaluation_folder(run: Path, label: str | None = None) -> Path:
    """Folder of an evaluation: `evaluation` in the run, or `evaluation_LABEL` if it has a label.

    Raises:
        RunError: a label that is not made of letters, digits and `_`.
    """
    if label is None:
        return run / EVALUATION
    if not label.isidentifier():
        raise RunError(f"--as takes letters, digits and _, got {label!r}")
    return run / f"{EVALUATION}_{label}"


def open_run(folder: Path) -> RunConfig:
    """The settings of a run.

    Raises:
        RunError: the folder has no run, or its configuration cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(f"{folder} is not a run folder: it has no {CONFIG}")
    return build_config(read_yaml(path))


def build_job(config: RunConfig, trusts: Trusts) -> Job:
    """Build everything that training needs; see `build_job_and_data`."""
    return build_job_and_data(config, trusts)[0]


def build_job_and_data(config: RunConfig, trusts: Trusts) -> tuple[Job, Splits]:
    """Build everything that training needs, and check it; returns the test images too, which training never uses.

    Args:
        config: the run's settings.
        trusts: whether a model named `package.module:factory` may be imported.

    Raises:
        ValueError: settings, data or model that do not fit together.
        OSError: a file cannot be read.
    """
    check_networks(config.method, {name: network.frozen for name, network in config.networks.items()})
    check_training_threats(config)
    splits = load_splits(config.data)
    seed = config.seed
    model = build_network(config.model, splits.train, derive_seed(seed, "model"), trusts)
    networks = {
        name: AuxiliaryNetwork(
            build_network(network.model, splits.train, derive_seed(seed, name), trusts, name),
            network.frozen,
            network.optimizer,
            network.pretrain,
            has_weights=network.model.weights is not None,
        )
        for name, network in config.networks.items()
    }
    job = Job(
        method=config.method,
        model=model,
        train=splits.train,
        validation=splits.validation,
        threats=config.threats,
        optimizer=config.optimizer,
        schedule=config.schedule,
        training=config.training,
        augmentation=config.data.augmentation,
        seed=seed,
        networks=networks,
        extra=load_extra(config.data, splits),
        about_weights=about_model(_fitted(config.model, splits.train)),
        pretrain=config.pretrain,
    )
    return job, splits


def build_network(
    config: ModelConfig, data: ImageData, seed: int, trusts: Trusts, role: str = "model"
) -> nn.Module:
    """Build a network to be trained on a data set, and test it on a few images.

    Raises:
        ValueError: settings that contradict the data, a number of outputs other than classes, or NaN.
    """
    try:
        model = _new_network(config, data, seed, trusts)
        logits = first_logits(model, data)
        if logits.shape[1] != data.num_classes:
            raise RunError(
                f"the model has {logits.shape[1]} outputs but the data {data.num_classes} classes: training needs "
                "as many outputs as classes (a factory of your own gets the number as its argument classes)"
            )
        check_logits(logits, data)
    except ValueError as error:
        if role == "model":
            raise
        raise RunError(f"{role}: {error}") from None
    return model


def _new_network(config: ModelConfig, data: ImageData, seed: int, trusts: Trusts) -> nn.Module:
    images = data.first(8)
    return as_classifier(build_model(_fitted(config, data), seed, trusts(config.name), images), images)


def _fitted(config: ModelConfig, data: ImageData) -> ModelConfig:
    channels, height, width = data.shape
    return config.for_images(data.num_classes, channels, (height, width))


def check_logits(logits: Tensor, data: ImageData) -> None:
    """Refuse a network that cannot classify a data set; warn if it returns probabilities.

    Args:
        logits: its logits of the first images.
        data: the images.

    Raises:
        ValueError: it has fewer outputs than there are classes, or returns NaN.
    """
    check_output(logits, ClassificationGoal(data.labels[: len(logits)]))
    if not bool(logits.isfinite().all()):
        raise RunError("the model returns NaN or infinite logits")
    if looks_like_probabilities(logits):
        warnings.warn(
            "the model seems to return probabilities, not logits: remove its final softmax, which weakens attacks",
            stacklevel=2,
        )


def load_trained(
    folder: Path, config: RunConfig, data: ImageData, trusts: Trusts, checkpoint: Checkpoint = "best"
) -> tuple[nn.Module, ImageData, str]:
    """The network of a run with its weights, the images with its classes, and the name of the file.

    The weights are `model.safetensors` of a finished run, the best checkpoint of an unfinished one, and those named
    by the settings of a folder without training.

    Args:
        folder: the run.
        config: its settings, perhaps with others of the data and the threat.
        data: the images.
        trusts: whether a model named `package.module:factory` may be imported.
        checkpoint: "last" for the weights after the last finished epoch, averaged if the method averages them.

    Raises:
        RunError: there are no weights yet.
        ValueError: weights that are damaged or do not fit, or data with other classes; no finished epoch.
    """
    seed = derive_seed(config.seed, "model")
    if checkpoint == "last":
        weights = last_weights(folder, open_run(folder))
        model = _new_network(replace(config.model, weights=None), data, seed, trusts)
        put_weights(model, weights, folder / LAST)
        return _evaluated(model, data, LAST)
    for name in (FINAL, BEST):
        if (folder / name).is_file():
            # the weights from which the run started are not needed, and may be deleted by now
            model = _new_network(replace(config.model, weights=None), data, seed, trusts)
            load_weights(model, folder / name)
            return _evaluated(model, data, name)
    origin = config.model.weights
    if origin is None and config.recipe == UNTRAINED and ":" in config.model.name:
        origin = PUBLISHED_WEIGHTS if is_published(config.model.name) else OWN_WEIGHTS
    if origin is None:
        raise RunError(f"{folder} has no weights yet: train it, or name weights with --model.weights FILE")
    return _evaluated(_new_network(config.model, data, seed, trusts), data, origin)


def _evaluated(model: nn.Module, data: ImageData, origin: str) -> tuple[nn.Module, ImageData, str]:
    logits = first_logits(model, data)
    data = fitted_data(model, data, logits.shape[1])
    check_logits(logits, data)
    return model.eval(), data, origin


@dataclass(frozen=True)
class Loaded:
    """The network of a run with its weights, and its images, on one device.

    Args:
        model: the network, in evaluation mode.
        data: the images, with one class for each output of the network.
        checkpoint: name of the file of the weights, `PUBLISHED_WEIGHTS` or `OWN_WEIGHTS`.
        device: where they are.
    """

    model: nn.Module
    data: ImageData
    checkpoint: str
    device: torch.device


def load_on_device(
    folder: Path,
    config: RunConfig,
    data: ImageData,
    trusts: Trusts,
    checkpoint: Checkpoint = "best",
    *,
    whole: bool = True,
) -> Loaded:
    """The network of `load_trained` and the images, on the device of the settings.

    Args:
        folder: the run.
        config: its settings.
        data: the images.
        trusts: as for `load_trained`.
        checkpoint: as for `load_trained`.
        whole: False leaves the network on the CPU, from where it is divided among processes.

    Raises:
        ValueError: as `load_trained`.
    """
    model, fitted, name = load_trained(folder, config, data, trusts, checkpoint)
    device = device_of(config.runtime)
    placed = fitted.to(device)
    if not whole:
        return Loaded(in_fastest_layout(model, fitted.first(2)), placed, name, device)
    return Loaded(in_fastest_layout(model.to(device), placed.first(2)), placed, name, device)


def evaluation_data(config: RunConfig) -> DataConfig:
    """Settings of a run's test images, limited to the number that is evaluated."""
    limits = [limit for limit in (config.data.test_limit, config.evaluation.count) if limit is not None]
    return replace(config.data, test_limit=min(limits)) if limits else config.data
