"""Audit of the security curve."""

import numpy as np
import torch

from robustly.evaluation.audit.check import Check, placed, tied
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence, StoredImages
from robustly.evidence.schema import CurveColumns, EvidenceTable, Flags, Single

_NAME = "security curve"


def curve_check(evidence: Evidence, target: EvaluationTarget) -> Check | None:
    """Check the curve against the rows of its attack and its images; None without a curve."""
    curve, table, stored = evidence.summary.metrics.security_curve, evidence.table, evidence.images.curve
    if curve is None:
        return None
    if table.curve is None or stored is None:
        return Check(_NAME, "its column or its images are missing")
    sizes = list(curve.epsilon[1:])
    problem = _row_problem(evidence, table.curve, stored, sizes)
    return Check(_NAME, problem or _image_problem(table, table.curve.distance, stored, target, sizes))


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
    table: EvidenceTable, distance: Single, stored: StoredImages, target: EvaluationTarget, sizes: list[float]
) -> str:
    shown = placed(stored, table, target)
    own = distance[shown.here]
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
    fooled = (as_array(logits.argmax(1)) != table.examples.label[shown.here]) | tied(logits)
    bad = ~(on_grid & inside & fooled)
    return f"{int(bad.sum())} images do not break the model at the size stated" if bad.any() else ""
