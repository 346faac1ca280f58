"""Models with what their use requires: classes and image size; from runs, and from files that were exported."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from robustly.data import ImageData, load_test
from robustly.documents import parse_json, read_json
from robustly.evidence import EvidenceError, Summary, read_summary
from robustly.evidence.schema import SUMMARY
from robustly.evidence.storage import read_pictures
from robustly.experiments.configuration import RunConfig
from robustly.experiments.run_folder import (
    CONFIG,
    EVALUATION,
    RunError,
    Trusts,
    build_network,
    evaluation_data,
    load_trained,
    open_run,
)
from robustly.memory import check_bytes, check_pixels
from robustly.models import ModelConfig, load_weights, weights_hash
from robustly.settings import build, check, check_keys

FORMAT = 1
"""Version of the descriptions that exported files hold."""
KEY = "robustly"
"""Key of the description in the metadata of a safetensors file, and in `config.json`."""
HF_CONFIG, HF_WEIGHTS = "config.json", "model.safetensors"
_FACTS = ("format", "model", "classes", "shape", "weights_sha256", "recipe", "threat", "source", "results")


@dataclass(frozen=True)
class Description:
    """The facts that the use of a model requires, and its results.

    Args:
        model: architecture; without a file of weights.
        classes: names of the classes.
        shape: channels, height and width of the images, whose values lie in [0, 1].
        weights_sha256: hash of the weights, as in the evidence.
        recipe: recipe of the training.
        threat: the threat of the training.
        source: source of its data.
        results: numbers of the first evaluation by name, such as `clean` and `robust`; empty without one.
    """

    model: ModelConfig
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    weights_sha256: str
    recipe: str = ""
    threat: str = ""
    source: str = ""
    results: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The description as plain values of JSON."""
        return {**asdict(self), "format": FORMAT}


@dataclass(frozen=True)
class PortableModel:
    """A network in eval mode on the CPU, and its description."""

    model: nn.Module
    description: Description

    def logits(self, images: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
        """Outputs `(N, K)` for images `(N, C, H, W)` in [0, 1], in float32, without gradients."""
        with torch.no_grad():
            parts = [self.model(part).float() for part in torch.split(images, batch_size)]
        return torch.cat(parts)


def open_portable(path: Path, trusts: Trusts) -> PortableModel:
    """The model of a run, of an exported `.safetensors` file, or of an exported Hugging Face folder.

    Args:
        path: the run, file or folder.
        trusts: whether a model named `package.module:factory` may be imported.

    Raises:
        ValueError: there is no such model, or its files are damaged.
        OSError: a file cannot be read.
    """
    if (path / CONFIG).is_file():
        return _of_run(path, trusts)
    if (path / HF_CONFIG).is_file():
        content = read_json(path / HF_CONFIG)
        found = content.get(KEY) if isinstance(content, dict) else None
        where, weights = path / HF_CONFIG, path / HF_WEIGHTS
    elif path.is_file() and path.suffix == ".safetensors":
        where, weights, found = path, path, stored_description(path)
    elif not path.exists():
        raise RunError(f"there is no file or folder {path}")
    else:
        raise RunError(f"{path} is neither a run (it has no {CONFIG}) nor an exported model: see `robustly export`")
    if found is None:
        raise RunError(
            f"{where} does not state the architecture, classes and image size: name a run, or a file or folder of "
            "`robustly export`"
        )
    description = description_from(found, str(where))
    blank = _blank(description.classes, description.shape, str(path))
    model = build_network(description.model, blank, 0, trusts)
    load_weights(model, weights)
    if weights_hash(model) != description.weights_sha256:
        raise RunError(f"{weights} holds other weights than {where} states: export the model again")
    return PortableModel(model.eval(), description)


def exported_description(path: Path) -> Description | None:
    """The description in a file or Hugging Face folder that `robustly export` wrote; None in any other.

    Raises:
        ValueError: the description is damaged.
    """
    if (path / HF_CONFIG).is_file():
        content = read_json(path / HF_CONFIG)
        found = content.get(KEY) if isinstance(content, dict) else None
    else:
        found = stored_description(path) if path.is_file() and path.suffix == ".safetensors" else None
    return None if found is None else description_from(found, str(path))


def stored_description(file: Path) -> Any:
    """The description in the metadata of a safetensors file; None without one.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with safe_open(file, framework="np") as content:
            text = (content.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{file} is damaged or not a safetensors file: {error}") from error
    return None if text is None else parse_json(text, str(file))


def description_from(values: Any, where: str) -> Description:
    """A description from plain values of a file.

    Raises:
        SettingsError: a key is missing, unknown, or has a value of another type.
        RunError: another version of the format.
    """
    given = check_keys(values, _FACTS, where)
    if given.get("format") != FORMAT:
        raise RunError(
            f"{where}: its description is of format {str(given.get('format'))[:20]}, this version reads {FORMAT}"
        )
    plain = {key: value for key, value in given.items() if key not in ("format", "model")}
    model = build(ModelConfig, given.get("model"), f"{where}: model")
    hints: dict[str, Any] = {
        "classes": tuple[str, ...],
        "shape": tuple[int, int, int],
        "results": dict[str, Any] | None,
    }
    facts = {key: check(hints.get(key, str), value, f"{where}: {key}") for key, value in plain.items()}
    for key in ("classes", "shape", "weights_sha256"):
        if key not in facts:
            raise RunError(f"{where}: {key} is missing")
    channels, height, width = facts["shape"]
    if min(facts["shape"]) < 1 or len(facts["classes"]) < 2:
        raise RunError(f"{where}: an image has at least one pixel, and a classifier two classes")
    check_pixels(width, height)
    check_bytes(channels * height * width, where)
    return Description(model=replace(model, weights=None), **facts)


def results_of(summary: Summary) -> dict[str, Any]:
    """The numbers of an evaluation that a description holds."""
    metrics = summary.metrics
    certified = None if metrics.certified is None else metrics.certified.robust.share
    return {
        "clean": metrics.clean.share,
        "robust": metrics.worst_case.robust.share,
        "certified": certified,
        "threat": summary.threat.text,
        "suite": summary.suite.name,
        "count": summary.data.count,
        "masking_suspected": bool(summary.masking),
    }


def first_summary(folder: Path) -> Summary | None:
    """The summary of the evaluation of a run; None without a complete one."""
    try:
        return read_summary(folder / EVALUATION) if (folder / EVALUATION / SUMMARY).is_file() else None
    except EvidenceError:
        return None


def _of_run(folder: Path, trusts: Trusts) -> PortableModel:
    config = open_run(folder)
    summary = first_summary(folder)
    classes, shape = _images_of(folder, config, summary)
    model, _, _ = load_trained(folder, config, _blank(classes, shape, str(folder)), trusts)
    channels, height, width = shape
    own = replace(config.model, weights=None).for_images(len(classes), channels, (height, width))
    digest = weights_hash(model)
    is_evaluated = summary is not None and summary.model.weights_sha256 == digest
    results = results_of(summary) if summary is not None and is_evaluated else None
    description = Description(
        own, classes, shape, digest, config.recipe, config.threats_text, config.data.source, results
    )
    return PortableModel(model, description)


def _images_of(
    folder: Path, config: RunConfig, summary: Summary | None
) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """Classes and image shape of a run: from its evidence, so that its data need not be there, or from the data."""
    if summary is not None:
        try:
            _, channels, height, width = read_pictures(folder / EVALUATION).originals.shape
            return summary.data.classes, (channels, height, width)
        except EvidenceError:
            pass  # the data has the same facts
    data = load_test(replace(evaluation_data(config), test_limit=1, subset="first"))
    return data.classes, data.shape


def _blank(classes: tuple[str, ...], shape: tuple[int, int, int], source: str) -> ImageData:
    """A grey image, with which a network of this shape is tested."""
    images = torch.full((1, *shape), 128, dtype=torch.uint8)
    zero = torch.zeros(1, dtype=torch.int64)
    return ImageData(images, zero, zero.clone(), classes, source)


def description_text(description: Description) -> str:
    """The description as text of JSON."""
    return json.dumps(description.as_json(), allow_nan=False)
