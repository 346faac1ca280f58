"""Audit of the security curve."""

import numpy as np
import torch

from robustly.evaluation.audit.check import Check, Placed, placed
from robustly.evaluation.audit.rounding import Rounding
from robustly.evaluation.curve import curve_by_distances, curve_points, curve_radii
from robustly.evaluation.recording import as_array
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence, StoredImages
from robustly.evidence.schema import CurveColumns, EvidenceTable, Flags

_NAME = "security curve"


def curve_check(
    evidence: Evidence, target: EvaluationTarget, suite: Suite | None, rounding: Rounding
) -> Check | None:
    """Check the curve against the suite, the rows of its attack and its images; None if there should be none.

    Args:
        evidence: the evidence.
        target: the model, the data and the threat.
        suite: the suite of the evaluation; None if it is not known.
        rounding: rounding of the network.
    """
    curve, table, stored = evidence.summary.metrics.security_curve, evidence.table, evidence.images.curve
    parts = [curve is not None, table.curve is not None, stored is not None]
    if suite is not None:
        radii = curve_radii(target.threat, suite)
        expected = bool(radii) and suite.curve not in evidence.summary.failures
        if any(part is not expected for part in parts):
            return Check(_NAME, "it is missing" if expected else "the suite has none")
        if curve is not None and curve_points(radii) != list(zip(curve.epsilon_text, curve.epsilon, strict=True)):
            return Check(_NAME, "its sizes are not those of the suite")
    if curve is None or table.curve is None or stored is None:
        return Check(_NAME, "its column or its images are missing") if any(parts) else None
    sizes = list(curve.epsilon[1:])
    problem = "" if suite is None else _derived_problem(evidence, table.curve, stored, target, suite)
    problem = problem or _row_problem(evidence, table.curve, stored, sizes)
    if problem:
        return Check(_NAME, problem)
    shown = placed(stored, table, target)
    return Check(_NAME, _image_problem(table, shown, target, sizes, rounding))


def _derived_problem(
    evidence: Evidence, curve: CurveColumns, stored: StoredImages, target: EvaluationTarget, suite: Suite
) -> str:
    """The problem with a curve that follows from the distances of a minimum-norm attack, or an empty text."""
    table, name = evidence.table, suite.curve or ""
    columns, wrong = table.attacks[name], ~table.correct
    if not suite.attacks[name].minimum_norm or not bool((columns.tried | wrong).all()):
        return ""
    radii, images = curve_radii(target.threat, suite), evidence.images.attacks[name]
    expected = curve_by_distances(columns, images, table.examples.id, wrong, radii)
    same = np.array_equal(curve.distance, expected.columns.distance)
    same = same and np.array_equal(stored.images, expected.images.images)
    return "" if same else "it does not follow from the distances of its attack"


def _row_problem(evidence: Evidence, curve: CurveColumns, stored: StoredImages, sizes: list[float]) -> str:
    table, distance, correct = evidence.table, curve.distance, evidence.table.correct
    tried: Flags = ~np.isnan(distance)
    count = int(tried.sum())
    if count == 0 or tried[count:].any():
        return "it is not of the first examples"
    attack = table.attacks[evidence.summary.suite.curve or ""]
    grid = np.array([*sizes, np.inf])
    known = np.nan_to_num(attack.distance.astype(np.float64), nan=np.inf, posinf=np.inf)
    place = np.searchsorted(grid, known * (1 - 1e-5) - 1e-6, side="left")
    reached = grid[np.minimum(place, len(sizes))]
    same_size = np.abs(grid - evidence.summary.threat.limit).min() < 1e-9
    if same_size and (distance[tried].astype(np.float64) > reached[tried] + 1e-6).any():
        return "examples are unbroken at a size at which they are broken in the table"
    if (tried & ~correct & (distance != 0)).any() or (tried & correct & (distance == 0)).any():
        return "exactly the misclassified images must have distance 0"
    shown = np.isin(table.examples.id, stored.ids)
    if not np.array_equal(shown, tried & correct & np.isfinite(distance)):
        return "rows do not agree with the images"
    return ""


def _image_problem(
    table: EvidenceTable, shown: Placed, target: EvaluationTarget, sizes: list[float], rounding: Rounding
) -> str:
    assert table.curve is not None
    own = table.curve.distance[shown.here]
    on_grid = np.isin(own, np.array(sizes, dtype=own.dtype))
    inside = np.zeros(len(own), dtype=bool)
    for size in sizes:
        here = torch.from_numpy(own == np.array(size, dtype=own.dtype)).to(shown.images.device)
        if bool(here.any()):
            part = shown.only(here)
            allowed = target.threat.with_extent(size).around(target.data.floats(part.rows))
            problem = part.rendering_problem(allowed)
            if problem:
                return problem
            inside[as_array(here)] = as_array(allowed.contains(part.points))
    logits = shown.logits(target)
    # an exact tie counts as misclassified: rounding differs between machines
    fooled = (as_array(logits.argmax(1)) != table.examples.label[shown.here]) | rounding.tied(logits)
    bad = ~(on_grid & inside & fooled)
    return f"{int(bad.sum())} images do not break the model at the size stated" if bad.any() else ""
