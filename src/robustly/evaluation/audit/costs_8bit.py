"""Audit of the costs of confusions as 8-bit files: every stored image, and the search for pairs without one."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from robustly.evaluation.audit.check import Check, Placed
from robustly.evaluation.audit.rounding import Rounding
from robustly.evaluation.costs_8bit import PairImages, is_searched, logits_of_inputs, saved_by_evaluation, searches
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import EightBitImages, Evidence
from robustly.evidence.cost_pairs import CostPairs, pair_mask, pair_rows, rows_of
from robustly.evidence.costs import WITHOUT_8_BIT, CostEvidence
from robustly.evidence.schema import Flags, Whole
from robustly.threats import LpBall
from robustly.threats.eight_bit import WHITE

_RENDERING = 0.5 / WHITE + 1e-4  # rounding of a rendered image to the nearest level, and of the rendering
_OTHER_PATHS = 0.1  # share of the searches that may take other passes, by other rounding of the arithmetic


def saved_again(
    evidence: Evidence, found: CostEvidence, target: EvaluationTarget, rounding: Rounding
) -> dict[str, PairImages]:
    """The 8-bit images of an evaluation, with their predicted classes; none for costs of schema 1.

    Where rounding decides on the prediction, the image counts for the class for which the costs store it.
    """
    if found.summary.schema == WITHOUT_8_BIT or found.saved is None or found.saved_targets is None:
        return {}
    known = {name: one for name, one in saved_by_evaluation(target, evidence).items() if len(one.images)}
    stated: dict[tuple[int, bytes], int] = {}
    for identity, levels, wanted in zip(
        found.saved.ids.tolist(), found.saved.levels, found.saved_targets.tolist(), strict=True
    ):
        stated[identity, levels.tobytes()] = wanted
    for name, one in known.items():
        device = target.data.device
        rows = torch.from_numpy(rows_of(evidence.table.examples.id, one.images.ids)).to(device)
        inputs = torch.from_numpy(one.images.inputs().images).to(device)
        tied = rounding.tied(logits_of_inputs(target, inputs, rows))
        targets = one.targets.copy()
        for row in np.flatnonzero(tied).tolist():
            targets[row] = stated.get((int(one.images.ids[row]), one.images.levels[row].tobytes()), -1)
        known[name] = replace(one, targets=targets)
    return known


def has_image(found: CostEvidence) -> Flags | None:
    """Mask of the pairs of which there is an 8-bit image, `(P,)`; None for costs of schema 1."""
    if found.saved is None or found.saved_targets is None:
        return None
    return pair_mask(found.pairs, found.saved.ids, found.saved_targets)


def saved_checks(
    evidence: Evidence,
    found: CostEvidence,
    target: EvaluationTarget,
    saved: dict[str, PairImages],
    rounding: Rounding,
) -> Iterator[Check]:
    """Check the images of 8 bits, and repeat the searches that found none.

    Args:
        evidence: the evaluation.
        found: the costs, whose rows are sound.
        target: model, data and threat, with seed and batch size of the evaluation.
        saved: 8-bit images of the evaluation.
        rounding: rounding of the network.
    """
    mask = has_image(found)
    if mask is None or found.saved is None or found.saved_targets is None:
        yield Check("costs: images of 8 bits", note=f"costs of schema {WITHOUT_8_BIT} have none")
        return
    pairs = found.pairs
    problem = _problem(evidence, found, target, saved, mask, rounding)
    yield Check("costs: images of 8 bits reach the classes stated", problem)
    if problem:
        return
    left = np.flatnonzero(is_searched(pairs) & ~mask)
    fallen, other = 0, 0
    for rows, again in searches(target, evidence, pairs, found.images, found.targets, left):
        fallen += int(again.found.sum())
        other += int((again.passes != pairs.passes_8bit[rows]).sum())
    title = f"costs: 8-bit images of {len(left)} classes that have none searched again"
    words = f"{fallen} found" if fallen else ""
    if not words and other > max(1, _OTHER_PATHS * len(left)):
        words = "the searches took another number of passes"
    yield Check(title, words)


def _problem(
    evidence: Evidence,
    found: CostEvidence,
    target: EvaluationTarget,
    saved: dict[str, PairImages],
    mask: Flags,
    rounding: Rounding,
) -> str:
    """The problem with the images of 8 bits, or an empty text."""
    assert found.saved is not None
    assert found.saved_targets is not None
    pairs, ids, classes = found.pairs, found.saved.ids, found.saved_targets
    rows, wanted, taken = pair_rows(pairs, ids, classes), is_searched(pairs), _taken(pairs, saved)
    own = wanted & ~taken
    problems = {
        "they are not those of classes that an attack reached, one of each": (rows < 0).any()
        or len(set(rows.tolist())) < len(rows)
        or not wanted[rows].all(),
        "some of the evaluation are left out": (taken & ~mask).any(),
        "passes are stated without a search, or a search without passes": ((pairs.passes_8bit > 0) != own).any()
        or (pairs.passes_8bit < 0).any(),
        f"they have the shape {found.saved.levels.shape[1:]}": found.saved.levels.shape[1:]
        != tuple(target.data.images.shape[1:]),
    }
    wrong = next((words for words, is_wrong in problems.items() if is_wrong), "")
    return wrong or _image_problem(evidence, found.saved, classes, target, rounding)


def _image_problem(
    evidence: Evidence, images: EightBitImages, classes: Whole, target: EvaluationTarget, rounding: Rounding
) -> str:
    """The problem with images of the right shape, or an empty text."""
    if not len(images):
        return ""
    device, here = target.data.device, rows_of(evidence.table.examples.id, images.ids)
    theta = None if images.theta is None else torch.from_numpy(images.theta).to(device)
    inputs, rows = torch.from_numpy(images.inputs().images).to(device), torch.from_numpy(here).to(device)
    shown = Placed(rows, here, inputs, theta)
    allowed = target.threat.around(target.data.floats(rows))
    expected = None if isinstance(allowed, LpBall) else allowed.identity().shape
    if (None if theta is None else theta.shape) != expected:
        return "the parameters of the threat are missing, of another shape, or stored without need"
    inside = allowed.contains(shown.points)
    if theta is not None:
        inside &= ((allowed.apply(theta) - inputs).abs() <= _RENDERING).flatten(1).all(1)
    stray = ~(as_array(inside) & shown.in_box(target))
    missed = rounding.disagree(logits_of_inputs(target, inputs, rows), classes)
    words = f"{int(stray.sum())} lie outside the threat set" if stray.any() else ""
    return words or (f"{int(missed.sum())} are not predicted as their class" if missed.any() else "")


def _taken(pairs: CostPairs, saved: dict[str, PairImages]) -> Flags:
    """Mask of the pairs whose image is one of the evaluation, `(P,)`."""
    taken = [pair_mask(pairs, one.images.ids, one.targets) for one in saved.values()]
    found: Flags = is_searched(pairs) & np.any([np.zeros(len(pairs), dtype=bool), *taken], axis=0)
    return found
