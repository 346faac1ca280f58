"""The security curve: accuracy against epsilon."""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from robustly.attacks import Attack
from robustly.evaluation.confirmation import attack_rows
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, Progress, no_progress
from robustly.evidence import StoredImages
from robustly.evidence.schema import AttackColumns, CurveColumns, Flags, Whole
from robustly.threats.contract import Threat
from robustly.threats.exact_size import fraction_text


@dataclass(frozen=True)
class Curve:
    """The column of the security curve, and its adversarial images."""

    columns: CurveColumns
    images: StoredImages


def curve_radii(threat: Threat, suite: Suite) -> list[Fraction]:
    """Extents of the threat at the points of the security curve; none without a curve."""
    return [] if suite.curve is None else threat.extents_at(suite.curve_factors)


def curve_points(radii: list[Fraction]) -> list[tuple[str, float]]:
    """Text and size of each point of the curve, from 0; none without radii."""
    return [("0", 0.0), *((fraction_text(radius), float(radius)) for radius in radii)] if radii else []


def curve_by_attack(
    target: EvaluationTarget,
    name: str,
    attack: Attack,
    wrong: Flags,
    *,
    radii: list[Fraction],
    count: int | None,
    progress: Progress,
) -> Curve:
    """Run an attack at ascending radii. An example broken at one radius counts as broken at all larger ones.

    Args:
        target: the model, the data and the threat.
        name: name of the attack.
        attack: the attack.
        wrong: examples that are misclassified without an attack.
        radii: at least one radius, ascending.
        count: number of examples, from the first; None for all.
        progress: callback.
    """
    distance = np.full(len(wrong), np.nan, dtype=np.float32)
    distance[:count] = np.where(wrong[:count], 0.0, np.inf)
    images = []
    for done, radius in enumerate(radii):
        progress("security curve", done, len(radii))
        rows = torch.from_numpy(np.flatnonzero(distance == np.inf)).to(target.data.images.device)
        at_radius = replace(target, threat=target.threat.with_extent(radius))
        found = attack_rows(at_radius, attack, rows, name, no_progress)
        distance[found.columns.broken & (distance == np.inf)] = float(radius)
        images.append(found.images)
    progress("security curve", len(radii), len(radii))
    return Curve(CurveColumns(distance), StoredImages.joined(images))


def curve_by_distances(
    columns: AttackColumns, images: StoredImages, ids: Whole, wrong: Flags, radii: list[Fraction]
) -> Curve:
    """The curve from one run of a minimum-norm attack; each distance is rounded up to a radius of the grid.

    Args:
        columns: columns of the attack.
        images: images of the attack.
        ids: ids of all examples.
        wrong: examples that are misclassified without an attack.
        radii: at least one radius, ascending.
    """
    grid = np.array([float(radius) for radius in radii], dtype=np.float32)
    found = np.nan_to_num(columns.distance, nan=np.inf, posinf=np.inf)
    place = np.searchsorted(grid * np.float32(1 + 1e-6), found, side="left")
    distance = np.append(grid, np.float32(np.inf))[place]
    distance = np.where(wrong, np.float32(0), distance)
    reached = ids[np.isfinite(distance) & ~wrong]
    return Curve(CurveColumns(distance), images.only(np.isin(images.ids, reached)))
