"""Accuracy against epsilon: the security curve."""

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from robustly.attacks import Attack
from robustly.evaluation.confirmation import attack_rows
from robustly.evaluation.evidence import CURVE
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, Progress, no_progress
from robustly.threats.lp import ThreatModel


def curve_radii(threat: ThreatModel, suite: Suite) -> list[Fraction]:
    """Radii of the security curve that make sense for the threat."""
    if suite.curve is None or isinstance(threat.epsilon, Tensor) or threat.epsilon == 0:
        return []
    radii = [threat.epsilon * Fraction(factor).limit_denominator(1000) for factor in suite.curve_factors]
    if threat.norm == "l0":
        radii = [Fraction(round(radius)) for radius in radii if round(radius) > 0]
    width = Fraction(threat.box[1]) - Fraction(threat.box[0])
    return sorted({radius for radius in radii if threat.norm != "linf" or radius <= width})


def curve_by_attack(
    target: EvaluationTarget,
    name: str,
    attack: Attack,
    wrong: Tensor,
    *,
    radii: list[Fraction],
    count: int | None,
    progress: Progress,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Accuracy against epsilon: ascending radii, and what broke once stays broken."""
    data = target.data
    distance = torch.full((len(data),), torch.nan, device=wrong.device)
    distance[:count] = torch.where(wrong[:count], 0.0, torch.inf)
    ids, images = [], []
    for done, radius in enumerate(radii):
        progress("security curve", done, len(radii))
        rows = (distance == torch.inf).nonzero()[:, 0]
        at_radius = replace(target, threat=target.threat.with_epsilon(radius))
        columns, kept, _ = attack_rows(at_radius, attack, rows, name, no_progress, column=CURVE)
        distance[columns[f"{CURVE}.broken"] & (distance == torch.inf)] = float(radius)
        ids.append(kept[f"{CURVE}.ids"])
        images.append(kept[f"{CURVE}.images"])
    progress("security curve", len(radii), len(radii))
    return {f"{CURVE}.distance": distance}, {f"{CURVE}.ids": torch.cat(ids), f"{CURVE}.images": torch.cat(images)}


def curve_by_distances(
    table: dict[str, Tensor], images: dict[str, Tensor], name: str, wrong: Tensor, radii: list[Fraction]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One run of a minimum-norm attack is the whole curve: each example breaks at the next radius of the grid."""
    found = table[f"{name}.distance"]
    grid = torch.tensor([float(radius) for radius in radii], device=found.device)
    place = torch.bucketize(found.nan_to_num(torch.inf), grid * (1 + 1e-6))
    distance = torch.cat([grid, grid.new_tensor([torch.inf])])[place.clamp_max(len(grid))]
    distance = torch.where(wrong, 0.0, distance)
    reached = table["id"][distance.isfinite() & ~wrong]
    stored = torch.isin(images[f"{name}.ids"], reached)
    return {f"{CURVE}.distance": distance}, {
        f"{CURVE}.ids": images[f"{name}.ids"][stored],
        f"{CURVE}.images": images[f"{name}.images"][stored],
    }
