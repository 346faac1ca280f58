"""Run folders: settings, networks and data from `config.yaml`."""

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch import nn

from robustly.attacks.core.contract import check_output, frozen
from robustly.data import DataConfig, ImageData, Splits, load_extra, load_splits
from robustly.evaluation.derived import looks_like_probabilities
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.locks import is_own_leftover
from robustly.experiments.overrides import read_yaml
from robustly.files import remove_stale_parts, write_text
from robustly.models import ModelConfig, build_model, load_weights
from robustly.models.lazy import create_parameters, has_lazy_parameters
from robustly.objectives import ClassificationGoal
from robustly.randomness import derive_seed
from robustly.runtime import Runtime
from robustly.training import AuxiliaryNetwork, Job
from robustly.training.engine.job import check_networks
from robustly.training.engine.loop import BEST, FINAL

CONFIG = "config.yaml"
EVALUATION = "evaluation"
REPORT = "report.html"

Trusts = Callable[[str], bool]


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


def refuse_existing(folder: Path) -> None:
    """Refuse a folder that is not empty. A run killed at its beginning leaves an empty one, or locks and parts.

    Raises:
        RunError: the folder has files, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or not all(is_own_leftover(item) for item in folder.iterdir())):
        raise RunError(
            f"{folder} exists already: choose another name with --out, or continue it with --resume {folder}"
        )


def is_begun(folder: Path, config: RunConfig) -> bool:
    """Return True if a folder has a run of the same settings, to be continued; False if it is free for a new run.

    Raises:
        RunError: the folder has a run of other settings, or other files.
    """
    if not (folder / CONFIG).is_file():
        refuse_existing(folder)
        return False
    there, here = open_run(folder).as_plain(), config.as_plain()
    other = [key for key in here if here[key] != there.get(key)]
    if other:
        raise RunError(
            f"{folder} exists already with other settings ({', '.join(other)}): choose another name with --out, or "
            f"continue it with --resume {folder}; to train it for longer, `robustly finetune {folder} --epochs N`"
        )
    return True


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
    splits = load_splits(config.data)
    seed = config.seed
    model = build_network(config.model, splits.train, derive_seed(seed, "model"), trusts)
    networks = {
        name: AuxiliaryNetwork(
            build_network(network.model, splits.train, derive_seed(seed, name), trusts, name),
            network.frozen,
            network.optimizer,
        )
        for name, network in config.networks.items()
    }
    job = Job(
        method=config.method,
        model=model,
        train=splits.train,
        validation=splits.validation,
        threats=(config.threat,),
        optimizer=config.optimizer,
        schedule=config.schedule,
        training=config.training,
        augmentation=config.data.augmentation,
        seed=seed,
        networks=networks,
        extra=load_extra(config.data, splits),
    )
    return job, splits


def build_network(
    config: ModelConfig, data: ImageData, seed: int, trusts: Trusts, role: str = "model"
) -> nn.Module:
    """Build a network for a data set, and test it on a few images.

    Raises:
        ValueError: settings that contradict the data, a number of outputs other than classes, or NaN.
    """
    channels, height, width = data.shape
    try:
        fitted = config.for_images(data.num_classes, channels, (height, width))
        model = build_model(replace(fitted, weights=None), seed, trusts(config.name))
        if has_lazy_parameters(model):
            create_parameters(model, data.floats(torch.arange(min(2, len(data)))), seed)
        if fitted.weights is not None:
            load_weights(model, fitted.weights)
        try_network(model, data)
    except ValueError as error:
        if role == "model":
            raise
        raise RunError(f"{role}: {error}") from None
    return model


def try_network(model: nn.Module, data: ImageData) -> None:
    """Refuse a network that cannot classify a data set; warn if it returns probabilities.

    Raises:
        ValueError: it fails on the images, its number of outputs is not that of the classes, or it returns NaN.
    """
    x, y = data.floats(torch.arange(min(8, len(data)))), data.labels[:8]
    try:
        with frozen(model), torch.no_grad():
            logits = model(x)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:160]
        raise RunError(f"the model fails on images of shape {tuple(x.shape)}: {reason}") from None
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] != data.num_classes:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RunError(
            f"the model returns {shape} for {len(x)} images of {data.num_classes} classes: expected logits of "
            f"shape ({len(x)}, {data.num_classes})"
        )
    check_output(logits, ClassificationGoal(y))
    if not bool(logits.isfinite().all()):
        raise RunError("the model returns NaN or infinite logits")
    if looks_like_probabilities(logits):
        warnings.warn(
            "the model seems to return probabilities, not logits: remove its final softmax, which weakens attacks",
            stacklevel=2,
        )


def load_trained(folder: Path, config: RunConfig, data: ImageData, trusts: Trusts) -> tuple[nn.Module, str]:
    """The network of a run with its selected weights, and the name of their file.

    These are `model.safetensors` of a finished run, the best checkpoint of an unfinished one, and the weights
    named by the settings of a folder without training.

    Raises:
        RunError: there are no weights yet.
        ValueError: weights that are damaged or do not fit.
    """
    seed = derive_seed(config.seed, "model")
    for name in (FINAL, BEST):
        if (folder / name).is_file():
            # the weights from which the run started are not needed, and may be deleted by now
            model = build_network(replace(config.model, weights=None), data, seed, trusts)
            load_weights(model, folder / name)
            try_network(model, data)
            return model.eval(), name
    if config.model.weights is None:
        raise RunError(f"{folder} has no weights yet: train it, or name weights with --model.weights FILE")
    return build_network(config.model, data, seed, trusts).eval(), config.model.weights


def load_on_device(
    folder: Path, config: RunConfig, data: ImageData, trusts: Trusts
) -> tuple[nn.Module, str, torch.device]:
    """The network of `load_trained` on the device of the settings, the name of its file, and the device."""
    model, name = load_trained(folder, config, data, trusts)
    device = Runtime(replace(config.runtime, processes=1, nodes=1)).device
    return model.to(device, memory_format=torch.channels_last), name, device  # type: ignore[call-overload]


def evaluation_data(config: RunConfig) -> DataConfig:
    """Settings of a run's test images, limited to the number that is evaluated."""
    limits = [limit for limit in (config.data.test_limit, config.evaluation.count) if limit is not None]
    return replace(config.data, test_limit=min(limits)) if limits else config.data
