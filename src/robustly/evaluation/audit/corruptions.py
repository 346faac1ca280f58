"""Audit of accuracies under corruptions: numbers from predictions, and predictions of a sample from images."""

from dataclasses import replace

import numpy as np

from robustly.evaluation.audit.check import Check
from robustly.evaluation.corrupted import (
    CorruptionSource,
    corruption_identity,
    corruption_result,
    predicted_classes,
)
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence.corruption_predictions import CorruptionPredictions
from robustly.evidence.corruption_result import CorruptionResult
from robustly.randomness import derive_seed, shuffled

SAMPLE = 20
"""Number of images whose predictions are computed again under every corruption."""


def audit_corruptions(
    stated: CorruptionResult,
    found: CorruptionPredictions,
    target: EvaluationTarget,
    source: CorruptionSource,
    count: int = SAMPLE,
) -> tuple[Check, ...]:
    """Check a result against its stored predictions, and a sample of these against images and weights.

    Args:
        stated: the result.
        found: its predictions.
        target: the model and the clean images.
        source: the corrupted images.
        count: number of images of the sample, at least 1.
    """
    again = corruption_result(found, target, source, stated.model.name)
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
    if same_inputs:
        checks += [_clean(found, target), *_cells(found, target, source, count)]
    return tuple(checks)


def _difference(again: CorruptionResult, stated: CorruptionResult) -> str:
    """The first field that differs; means may differ by rounding."""
    for name in ("model", "data", "images", "clean"):
        if getattr(again, name) != getattr(stated, name):
            return f"{name} is {getattr(stated, name)}, computed again {getattr(again, name)}"
    if [(row.name, row.cells) for row in again.rows] != [(row.name, row.cells) for row in stated.rows]:
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
    different = int((predicted_classes(target) != found.clean).sum())
    return Check("predictions on the clean images", f"{different} differ" if different else "")


def _cells(
    found: CorruptionPredictions, target: EvaluationTarget, source: CorruptionSource, count: int
) -> list[Check]:
    """Hashes of the corrupted images, and predictions on a sample."""
    rows = shuffled(len(found.labels), derive_seed(found.identity, "audit"))[:count].sort().values
    images, predictions = [], []
    for (name, severity), predicted in found.cells.items():
        corrupted = source.read(name, severity).to(target.data.images.device)
        if corrupted.digest() != found.hashes[name, severity]:
            images.append(f"{name} {severity}")
        again = predicted_classes(replace(target, data=corrupted.select(rows)))
        different = int((again != predicted[rows.numpy()]).sum())
        if different:
            predictions.append(f"{name} {severity}: {different} of {len(rows)}")
    return [
        Check("the corrupted images are the same", _shortened(images)),
        Check(f"predictions on {len(rows)} images under every corruption", _shortened(predictions)),
    ]


def _shortened(problems: list[str]) -> str:
    shown = ", ".join(problems[:5])
    return shown if len(problems) <= 5 else f"{shown} and {len(problems) - 5} more"
