"""Audit of accuracies under corruptions: numbers from predictions, and predictions of a sample from images."""

from dataclasses import replace

import numpy as np
import torch

from robustly.data import ImageData
from robustly.evaluation.audit.check import Check
from robustly.evaluation.audit.sampling import Sampling
from robustly.evaluation.corrupted import (
    CorruptionSource,
    corruption_identity,
    corruption_result,
    predicted_classes,
)
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import EvidenceError
from robustly.evidence.corruption_predictions import CorruptionPredictions
from robustly.evidence.corruption_result import CorruptionResult, MeanAccuracy, compared


def audit_corruptions(
    stated: CorruptionResult,
    found: CorruptionPredictions,
    target: EvaluationTarget,
    source: CorruptionSource,
    sampling: Sampling | None = None,
    reference: CorruptionResult | None = None,
    name: str | None = None,
) -> tuple[Check, ...]:
    """Check a result against its stored predictions, and a sample of these against images and weights.

    Every audit draws other images. If a share of the predictions under a corruption at a severity is false, it
    fails with the probability of the sampling.

    Args:
        stated: the result.
        found: its predictions.
        target: the model and the clean images.
        source: the corrupted images.
        sampling: the guarantee; None for the default, 2 % with 99 %.
        reference: the result of the reference model, from which the errors relative to it are computed again; None
            leaves them unchecked, with a note.
        name: name of the network in the run; None takes that of the result.
    """
    again = corruption_result(found, target, source, stated.model.name if name is None else name)
    same_inputs = corruption_identity(target, source) == found.identity
    checks = [
        Check(
            "weights, clean images and corrupted images are those of the predictions",
            "" if same_inputs else "the identities differ: run robustly corruptions again",
        ),
        Check(
            "the numbers follow from the predictions",
            _difference(replace(again, created=stated.created, reference=stated.reference), stated),
        ),
    ]
    if stated.reference is not None:
        checks.append(_reference(stated, reference))
    if same_inputs:
        checks += [_clean(found, target), *_cells(found, target, source, sampling or Sampling())]
    return tuple(checks)


def _reference(stated: CorruptionResult, reference: CorruptionResult | None) -> Check:
    """Check the errors relative to another model."""
    own = stated.reference
    assert own is not None
    title = f"the errors relative to {own.name} follow from both results"
    if reference is None:
        return Check(title, note="stated, not checked: --reference RUN names the run that they are relative to")
    try:
        again = compared(stated, reference, own.name)
    except EvidenceError as error:
        return Check(title, str(error))
    if again.weights_sha256 != own.weights_sha256:
        return Check(title, "the reference has other weights")
    pairs = ((again.mce, own.mce), (again.relative_mce, own.relative_mce))
    same = all(
        one == other or (one is not None and other is not None and abs(one - other) <= 1e-9) for one, other in pairs
    )
    return Check(
        title,
        "" if same else f"they are {own.mce} and {own.relative_mce}, again {again.mce} and {again.relative_mce}",
    )


def _difference(again: CorruptionResult, stated: CorruptionResult) -> str:
    """The first field that differs; means may differ by rounding."""
    for name in ("model", "data", "images", "clean"):
        if getattr(again, name) != getattr(stated, name):
            return f"{name} is {getattr(stated, name)}, computed again {getattr(again, name)}"
    blank = MeanAccuracy(0.0, (0.0, 0.0))  # means are compared below
    if [replace(row, mean=blank) for row in again.rows] != [replace(row, mean=blank) for row in stated.rows]:
        return "the rows are not those of the predictions"
    means = [(row.mean, other.mean) for row, other in zip(again.rows, stated.rows, strict=True)]
    if (again.mean is None) != (stated.mean is None):
        return "the mean corruption accuracy is stated without all corruptions, or missing"
    if again.mean is not None and stated.mean is not None:
        means.append((again.mean, stated.mean))
    for one, other in means:
        if not np.allclose([one.accuracy, *one.interval], [other.accuracy, *other.interval], atol=1e-9):
            return f"a mean is {other.accuracy:.6f}, computed again {one.accuracy:.6f}"
    return ""


def _clean(found: CorruptionPredictions, target: EvaluationTarget) -> Check:
    name = "labels of the clean images, and predictions on them"
    if not np.array_equal(found.clean_labels, as_array(target.data.labels)):
        return Check(name, "the labels are not those of the data")
    different = int((predicted_classes(target) != found.clean).sum())
    return Check(name, f"{different} predictions differ" if different else "")


def _cells(
    found: CorruptionPredictions, target: EvaluationTarget, source: CorruptionSource, sampling: Sampling
) -> list[Check]:
    """Labels and hashes of the corrupted images, and predictions on a sample."""
    count = len(found.labels)
    chosen = np.sort(sampling.order(count)[: sampling.size(count)])
    rows = torch.from_numpy(chosen).to(target.data.device)
    unknown = [f"{name} {severity}" for name, severity in found.cells if not _exists(name, severity, source)]
    if unknown:
        return [Check("the corruptions exist", f"{_shortened(unknown)} does not")]
    labels, images, predictions = [], [], []
    for (name, severity), predicted in found.cells.items():
        corrupted = source.read(name, severity).to(target.data.device)
        if not _is_of(found, corrupted):
            labels.append(f"{name} {severity}")
            continue
        if corrupted.digest() != found.hashes[name, severity]:
            images.append(f"{name} {severity}")
        again = predicted_classes(replace(target, data=corrupted.select(rows)))
        different = int((again != predicted[chosen]).sum())
        if different:
            predictions.append(f"{name} {severity}: {different} of {len(rows)}")
    return [
        Check(
            "labels and ids of the corrupted images",
            f"not those of the data: {_shortened(labels)}" if labels else "",
        ),
        Check("the corrupted images are the same", _shortened(images)),
        Check(f"predictions on {len(rows)} images under every corruption", _shortened(predictions)),
    ]


def _exists(name: str, severity: int, source: CorruptionSource) -> bool:
    return name in source.names and severity in source.images.severities


def _is_of(found: CorruptionPredictions, corrupted: ImageData) -> bool:
    """True if labels and ids of the predictions are those of the images."""
    return np.array_equal(found.ids, as_array(corrupted.ids)) and np.array_equal(
        found.labels, as_array(corrupted.labels)
    )


def _shortened(problems: list[str]) -> str:
    shown = ", ".join(problems[:5])
    return shown if len(problems) <= 5 else f"{shown} and {len(problems) - 5} more"
