"""Runs for models that were trained elsewhere: their settings from a command line, and their folders."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from robustly.documents import read_json
from robustly.experiments.configuration import RunConfig, build_config, with_absolute_paths
from robustly.experiments.keys import UNTRAINED, Settings
from robustly.experiments.overrides import apply_overrides, pairs_of
from robustly.experiments.portable import HF_CONFIG, HF_WEIGHTS, exported_description
from robustly.experiments.run_data import data_of_weights
from robustly.experiments.run_folder import CONFIG, RunError, open_run, refuse_existing
from robustly.model_names import TORCHSCRIPT, is_published
from robustly.models import (
    MODELS,
    ModelConfig,
    WeightsError,
    expected_images,
    is_torchscript,
    recognised,
    weights_file,
)

_NAME, _WEIGHTS = "model.name", "model.weights"
_SPLITTING = {"evaluation_only", "test", "test_split", "train_split"}
_USUAL_NAMES = ("model", "best", "last", "final", "checkpoint", "pytorch_model", "weights", "ckpt")


@dataclass(frozen=True)
class GivenRun:
    """A run whose model is evaluated.

    Args:
        folder: its folder, which does not exist yet if it is new.
        config: its settings.
        overrides: the words of the command line that name its model and change its settings.
        is_new: whether the folder has to be made for a model that was trained elsewhere.
    """

    folder: Path
    config: RunConfig
    overrides: tuple[str, ...]
    is_new: bool


def given_run(place: Path | None, overrides: Sequence[str]) -> GivenRun:
    """The run that a command line names, or a new one for a model that was trained elsewhere.

    Args:
        place: a run folder; a new folder, with a model in the overrides; a file of weights or of TorchScript; a
            folder of a Hugging Face model; or None, with a model in the overrides. Where it names no run folder,
            the folder is named after the model, in `runs`.
        overrides: settings.

    Raises:
        RunError: there is no run, or other files are in the place of a new one.
        ValueError: settings or a model that are wrong.
        FileNotFoundError: a file of weights that does not exist.
    """
    words = list(overrides)
    given = dict(pairs_of(words))
    names = {value for key, value in pairs_of(words) if key == _NAME}
    if len(names) > 1:
        raise RunError(f"the command names several models ({', '.join(sorted(names))}): name one")
    if place is not None and (named := _model_in(place)):
        key, value = named
        if key in given:
            raise RunError(f"{place} is a model of its own: leave out --{key}, or name a new folder instead")
        words, place = [f"--{key}", value, *words], None
        given[key] = value
    _refuse_export(given.get(_NAME, ""))
    names_model = _NAME in given or _WEIGHTS in given
    if place is None:
        if not names_model:
            raise RunError(
                "name a run folder, a file of weights, or a model with --model NAME, --timm NAME or --hf-model "
                "FOLDER"
            )
        place = Path("runs") / _folder_name(given)
    if (place / CONFIG).is_file():
        return GivenRun(place, _changed(place, words), tuple(words), is_new=False)
    if not names_model:
        open_run(place)  # raises
    refuse_existing(place, "name another folder, or remove it")
    return GivenRun(place, _new(words), tuple(words), is_new=True)


def _model_in(place: Path) -> tuple[str, str] | None:
    """Key and value of the setting that names the model in a file or folder; None for a run folder."""
    if place.is_file():
        return (_NAME, f"{TORCHSCRIPT}{place}") if is_torchscript(place) else (_WEIGHTS, str(place))
    if (place / CONFIG).is_file() or not (place / HF_CONFIG).is_file():
        return None
    content = read_json(place / HF_CONFIG)
    is_exported = isinstance(content, Mapping) and content.get("model_type") == "robustly"
    return (_WEIGHTS, str(place)) if is_exported else (_NAME, f"hf:{place}")


def _refuse_export(name: str) -> None:
    """Refuse a folder that `robustly export` wrote as one of Hugging Face, whose library has no such network."""
    folder = Path(name.removeprefix("hf:"))
    if name.startswith("hf:") and exported_description(folder) is not None:
        raise RunError(f"{folder} was written by robustly export: give it as --weights {folder / HF_WEIGHTS}")


def _folder_name(given: Mapping[str, str]) -> str:
    """Name of a new run folder, after the model or its file of weights."""
    weights, (_, _, short) = given.get(_WEIGHTS), given.get(_NAME, "").rpartition(":")
    name = Path(short).name
    if given.get(_NAME, "").startswith(TORCHSCRIPT):
        name = Path(short).stem
    if weights is not None and (":" not in given.get(_NAME, "") or not name):
        path = Path(weights).absolute()
        usual = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        stem = path.name.partition(".")[0]
        name = usual.name if stem in _USUAL_NAMES else stem
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "model"


def _new(words: Sequence[str]) -> RunConfig:
    """Settings of a new run, with those of the model's file and of the images that the model expects."""
    settings = apply_overrides({"recipe": UNTRAINED}, words)
    model = settings.get("model")
    if isinstance(model, Mapping) and isinstance(model.get("weights"), str):
        settings["model"] = {**_recognised(model), **model}
    config = with_absolute_paths(_with_expected_images(build_config(settings)))
    data = settings.get("data", {})
    # all rows are for tests, unless the weights were trained here on some of them
    if (
        {"source", "domains"} & data.keys()
        and not _SPLITTING & data.keys()
        and not data_of_weights(config.model.weights).parts
    ):
        config = replace(config, data=replace(config.data, evaluation_only=True))
    return config


def _changed(folder: Path, words: Sequence[str]) -> RunConfig:
    return with_absolute_paths(build_config(apply_overrides(open_run(folder).as_plain(), words)))


def _recognised(model: Settings) -> dict[str, Any]:
    """Settings of the network whose weights are given, where a name or a width is missing."""
    name, weights, key = model.get("name"), Path(model["weights"]).expanduser(), model.get("weights_key")
    if not isinstance(key, str | None) or (name is not None and (name not in MODELS or "width" in model)):
        return {}
    try:
        found = _settings_of(weights, key) if name is None else recognised(weights, key, among=(name,))
    except WeightsError:
        if name is None:
            raise
        return {}  # loading names what does not fit
    default = asdict(ModelConfig())
    return {key: value for key, value in asdict(found).items() if value != default[key] or key == "name"}


def _settings_of(weights: Path, key: str | None) -> ModelConfig:
    """Settings of a network from the run folder with its weights, or from the file."""
    file = weights_file(weights)
    folders = (file.absolute().parent, file.absolute().parent.parent)
    run = next((folder for folder in folders if (folder / CONFIG).is_file()), None)
    if run is None:
        described = exported_description(file) or exported_description(file.parent)
        found = recognised(file, key) if described is None else described.model
        return found if described is None else replace(found, weights=str(file), weights_key=key)
    return replace(open_run(run).model, weights=str(file), weights_key=key)


def _with_expected_images(config: RunConfig) -> RunConfig:
    """The settings with the size and channels of the images that a published network expects, unless given."""
    if not is_published(config.model.name):
        return config
    expected, data = expected_images(config.model.name), config.data
    if data.image_size is None and expected.side is not None:
        data = replace(data, image_size=expected.side)
    if data.channels is None and expected.channels in (1, 3):
        data = replace(data, channels=expected.channels)
    return replace(config, data=data)
