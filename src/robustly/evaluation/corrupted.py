"""Accuracy of a model under common corruptions, by corruption and severity."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from robustly.corruptions import (
    CORRUPTIONS,
    EXTRA,
    STANDARD,
    check_shape,
    corrupt,
    corruption,
    table_for,
)
from robustly.corruptions.mnist_c import FAMILIES, MNIST_C, PROCEDURAL, check_digits, corrupt_digits
from robustly.data import ImageData
from robustly.data.corrupted_files import CorruptedFiles
from robustly.evaluation.recording import as_array
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.target import EvaluationTarget, Progress, no_progress
from robustly.evidence.corruption_predictions import (
    Classes,
    CorruptionKind,
    CorruptionPredictions,
    mean_of,
    rows_of,
)
from robustly.evidence.corruption_result import (
    SCHEMA,
    CorruptedData,
    CorruptedImages,
    CorruptedModel,
    CorruptionResult,
)
from robustly.evidence.provenance import now, software_versions
from robustly.models import weights_hash


@dataclass(frozen=True)
class CorruptionSource:
    """Corrupted test images.

    Args:
        images: their origin, which fixes the severities.
        names: the corruptions that there are, in the order of tables.
        kinds: all corruptions of the set with their properties.
        read: from a corruption and a severity to its images, on the CPU or the device of the clean ones.
    """

    images: CorruptedImages
    names: tuple[str, ...]
    kinds: tuple[CorruptionKind, ...]
    read: Callable[[str, int], ImageData]


def computed_source(data: ImageData, seed: int) -> CorruptionSource:
    """Corruptions of the clean images, computed here; those that need colour are left out for grey images.

    Raises:
        CorruptionError: images that no corruption is defined for, because of their channels or their size.
    """
    for name in STANDARD:
        check_shape(name, data.shape)
    names = tuple(name for name, one in CORRUPTIONS.items() if data.shape[0] == 3 or not one.colour)
    table = table_for(*data.shape[1:])

    def read(name: str, severity: int) -> ImageData:
        images = data.images.to(data.device)
        made = corrupt(images, name, severity, seed=seed, ids=data.ids, constants=table)
        return replace(data, images=made, on_disk=False)

    images = CorruptedImages("C-proc", None, data.digest(), table, seed)
    return CorruptionSource(images, names, _kinds(computed=True), read)


def digit_source(data: ImageData, seed: int) -> CorruptionSource:
    """The corruptions of MNIST-C, computed here.

    Raises:
        CorruptionError: images that are not grey, or not 28 x 28 pixels.
    """
    check_digits(data.shape)

    def read(name: str, severity: int) -> ImageData:
        return replace(data, images=corrupt_digits(data.images, name, seed=seed, ids=data.ids))

    images = CorruptedImages("MNIST-C", None, data.digest(), "mnist", seed)
    kinds = tuple(CorruptionKind(name, family, name in PROCEDURAL, False) for name, family in FAMILIES.items())
    return CorruptionSource(images, tuple(FAMILIES), kinds, read)


def file_source(files: CorruptedFiles) -> CorruptionSource:
    """Corrupted images of a folder, as they are."""
    images = CorruptedImages("files", str(files.root.resolve()), files.digest, None, None)
    return CorruptionSource(images, files.names, _kinds(computed=False), files.read)


def chosen_names(
    source: CorruptionSource, only: Sequence[str] | None, extra: bool, shape: Sequence[int]
) -> list[str]:
    """The corruptions to evaluate, in the order of the paper.

    Args:
        source: the corrupted images.
        only: names of corruptions; None for the 15 of the set that there are.
        extra: whether the four further ones are added, as far as there are any.
        shape: channels, height and width of the images.

    Raises:
        CorruptionError: a name that does not exist, or a corruption that needs colour.
        EvaluationError: the set has no such corruption, or no further ones.
    """
    if source.images.set == "MNIST-C":
        return _chosen_digits(source, only, extra)
    for name in only or ():
        corruption(name)
        if source.images.set == "C-proc":
            check_shape(name, shape)
        if name not in source.names:
            raise EvaluationError(
                f"{source.images.source} has no images of {name}: it has {', '.join(source.names)}"
            )
    wanted = set(STANDARD if only is None else only) | set(EXTRA if extra else ())
    found = [name for name in source.names if name in wanted]
    if not found:
        raise EvaluationError(
            f"{source.images.source} has none of the 15 corruptions, only {', '.join(source.names)}: add --extra"
        )
    return found


def _chosen_digits(source: CorruptionSource, only: Sequence[str] | None, extra: bool) -> list[str]:
    """Corruptions of MNIST-C; see `chosen_names`."""
    if extra:
        raise EvaluationError("MNIST-C has no further corruptions: leave out --extra")
    unknown = [name for name in only or () if name not in MNIST_C]
    if unknown:
        raise EvaluationError(f"MNIST-C has no corruption {unknown[0]!r}: it has {', '.join(source.names)}")
    return [name for name in source.names if only is None or name in only]


def predict_corrupted(
    target: EvaluationTarget,
    source: CorruptionSource,
    names: Sequence[str],
    *,
    earlier: CorruptionPredictions | None = None,
    keep: Callable[[CorruptionPredictions], None] | None = None,
    progress: Progress = no_progress,
) -> CorruptionPredictions:
    """Predicted classes on the clean images and under each corruption at each severity.

    Args:
        target: the model and the clean images; its threat is not used.
        source: the corrupted images.
        names: corruptions.
        earlier: predictions that may be continued; those of another identity are left out.
        keep: called with the predictions so far after each severity.
        progress: callback with (name, done, total).

    Raises:
        EvaluationError: the number of outputs is not that of the classes.
    """
    identity = corruption_identity(target, source)
    if earlier is not None and earlier.identity == identity:
        found = earlier
    else:
        first = source.read(names[0], source.images.severities[0])
        found = CorruptionPredictions(
            identity,
            _classes(target.data.labels),
            predicted_classes(target),
            as_array(first.ids),
            _classes(first.labels),
        )
    cells = [(name, severity) for name in names for severity in source.images.severities]
    for number, (name, severity) in enumerate(cells, 1):
        if (name, severity) not in found.cells:
            images = source.read(name, severity).to(target.data.device)
            found = found.with_cell(
                (name, severity), predicted_classes(replace(target, data=images)), images.digest()
            )
            if keep is not None:
                keep(found)
        progress("corruptions", number, len(cells))
    return found


def predicted_classes(target: EvaluationTarget) -> Classes:
    """Predicted classes `(N,)` in full precision; -1 where a logit is not finite.

    Raises:
        EvaluationError: the number of outputs is not that of the classes.
    """
    data = target.data
    logits = target.logits(data.floats, torch.arange(len(data), device=data.device))
    if logits.shape[1] != data.num_classes:
        raise EvaluationError(f"the model has {logits.shape[1]} outputs, the data {data.num_classes} classes")
    return _classes(torch.where(logits.isfinite().all(1), logits.argmax(1), -1))


def corruption_identity(target: EvaluationTarget, source: CorruptionSource) -> str:
    """Everything that predictions depend on, as JSON text."""
    images = source.images
    return json.dumps(
        {
            "weights": weights_hash(target.model),
            "data": target.data.digest(),
            "set": images.set,
            "source": images.sha256,
            "constants": images.constants,
            "seed": images.seed,
            "version of robustly": software_versions()["robustly"],
        },
        sort_keys=True,
    )


def corruption_result(
    found: CorruptionPredictions, target: EvaluationTarget, source: CorruptionSource, name: str
) -> CorruptionResult:
    """The numbers that follow from predictions.

    Args:
        found: the predictions.
        target: the model and the clean images.
        source: the corrupted images.
        name: name of the network.
    """
    data = target.data
    rows = rows_of(found, source.kinds)
    return CorruptionResult(
        schema=SCHEMA,
        created=now(),
        model=CorruptedModel(name, weights_hash(target.model)),
        data=CorruptedData(data.source, len(data), data.digest()),
        images=source.images,
        clean=found.clean_accuracy,
        rows=rows,
        mean=mean_of(found, rows, source.images.severities),
    )


def _kinds(computed: bool) -> tuple[CorruptionKind, ...]:
    """The corruptions of CIFAR-10-C and ImageNet-C; files are never procedural."""
    return tuple(
        CorruptionKind(one.name, one.family, one.procedural and computed, one.extra) for one in CORRUPTIONS.values()
    )


def _classes(values: Tensor) -> Classes:
    return as_array(values).astype(np.int32)
