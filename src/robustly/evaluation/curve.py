"""The security curve: accuracy against epsilon."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from robustly.attacks import Attack
from robustly.evaluation.confirmation import attack_rows
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, Progress, no_progress
from robustly.evidence import StoredImages
from robustly.evidence.provenance import SuiteRecord
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
    if suite.curve is None:
        return []
    if suite.curve_sizes is None:
        return threat.extents_at(suite.curve_factors)
    return [Fraction(threat.with_extent(size).extent) for size in suite.curve_sizes]  # type: ignore[arg-type]


OFF, ON = "off", "on"
"""Words that switch the security curve off, and on in suites without one."""


GivenCurve = str | bool | float | Sequence[str | float | Fraction] | None
"""A security curve as users give it; see `with_curve`."""
_WANTED = (
    "curve: give 'off', or sizes of the threat such as '1/255, 2/255', or shares of its size such as '50%, 100%', "
    "or 'on' for the usual shares"
)


def with_curve(suite: Suite, curve: GivenCurve, threat: Threat) -> Suite:
    """The suite with another security curve than its own.

    Args:
        suite: the suite.
        curve: "off" (or False) for none; "on" (or True) for the usual shares of the threat's size
            (`Suite.curve_factors`); sizes of the threat in any order, as a list or a text with commas
            ("1/255, 2/255"), or shares of its size ("50%, 100%, 150%"), of which those that the threat cannot have
            are left out; None for the curve of the suite. The attack is that of the suite's curve, or its first one
            if it has no curve.
        threat: the threat of the evaluation.

    Raises:
        ValueError: a size that the threat cannot have, no size, or a suite without attacks.
    """
    if curve is None:
        return suite
    if curve is False or curve == OFF:
        return replace(suite, curve=None)
    attack = suite.curve or next(iter(suite.attacks), None)
    if attack is None:
        raise ValueError(f"curve: the suite {suite.name!r} has no attack that could draw one")
    if curve is True or curve == ON:
        if suite.curve is not None:
            return suite
        sizes = set(threat.extents_at(suite.curve_factors))
    else:
        given = _listed(curve)
        if not given:
            raise ValueError(f"{_WANTED}, got {curve!r}")
        sizes = {size for one in given for size in _sizes(one, threat)}
    sizes.discard(Fraction(0))  # the accuracy at 0 is always part of the curve
    if not sizes:
        raise ValueError(f"{_WANTED}, of which one is larger than 0 and possible under {threat}")
    return replace(suite, curve=attack, curve_sizes=tuple(fraction_text(size) for size in sorted(sizes)))


def has_own_sizes(curve: GivenCurve) -> bool:
    """Return True for a curve with sizes in the unit of a threat, which other kinds of threats do not share."""
    if curve is None or isinstance(curve, bool) or curve in (OFF, ON):
        return False
    return any(not str(one).strip().endswith("%") for one in _listed(curve))


def _listed(curve: str | float | Sequence[str | float | Fraction]) -> list[str | float | Fraction]:
    if isinstance(curve, str):
        return list(curve.split(","))
    return [curve] if isinstance(curve, float | int) else [*curve]


def _sizes(given: str | float | Fraction, threat: Threat) -> list[Fraction]:
    """The size that a user gave; none for a share of the threat's size that the threat cannot have."""
    try:
        if isinstance(given, str) and given.strip().endswith("%"):
            share = Fraction(given.strip()[:-1].strip()) / 100
            if share < 0:
                raise ValueError("a share must be at least 0%")
            return threat.extents_at([float(share)])
        size = threat.with_extent(given.strip() if isinstance(given, str) else given).extent
        return [Fraction(size)]  # type: ignore[arg-type]
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{_WANTED}, got {str(given)[:40]!r}: {error}") from None


def recorded_curve(suite: Suite, record: SuiteRecord) -> Suite:
    """A suite with the curve of an evaluation, which its user may have switched off or given sizes.

    Args:
        suite: the suite of the name in the record.
        record: the record of the evaluation.
    """
    if record.curve is None:
        return replace(suite, curve=None)
    if record.curve_sizes is None or record.curve not in suite.attacks:
        return suite
    return replace(suite, curve=record.curve, curve_sizes=tuple(record.curve_sizes))


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
        rows = torch.from_numpy(np.flatnonzero(distance == np.inf)).to(target.data.device)
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
