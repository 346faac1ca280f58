"""Costs of confusions as 8-bit files: for each class that an attack reached, the search for an 8-bit image."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustly.evaluation.eight_bit import Searched, nothing_saved, search_for
from robustly.evaluation.parts import Arrays, Task, as_bytes, from_bytes
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import EightBitImages, Evidence, EvidenceError, StoredImages
from robustly.evidence.cost_pairs import CLEAN, OF_EVALUATION, CostPairs, pair_rows, rows_of
from robustly.evidence.schema import Flags, Whole
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator, derive_seed

COSTS_8BIT = "costs as 8-bit files"
"""Kind of the tasks whose parts are batches of pairs that an attack reached."""


@dataclass(frozen=True)
class PairImages:
    """Adversarial images of 8 bits with the classes that the model predicts for them, `(M,)`."""

    images: EightBitImages
    targets: Whole


def saved_by_evaluation(target: EvaluationTarget, evidence: Evidence) -> dict[str, PairImages]:
    """The 8-bit images of each attack of an evaluation, with the classes that the model predicts for them."""
    found, ids, device = {}, evidence.table.examples.id, target.data.device
    for name, saved in evidence.images.eight_bit.items():
        rows = torch.from_numpy(rows_of(ids, saved.ids)).to(device)
        predicted = logits_of_inputs(target, torch.from_numpy(saved.inputs().images).to(device), rows).argmax(1)
        found[name] = PairImages(saved, as_array(predicted))
    return found


def logits_of_inputs(target: EvaluationTarget, inputs: Tensor, rows: Tensor) -> Tensor:
    """Logits of inputs `(M, ...)` of the examples at some rows `(M,)`, batch by batch."""
    places = target.chunks(torch.arange(len(rows), device=rows.device))
    parts = [target.verdict(inputs[some], target.data.labels[rows[some]]) for some in places]
    return torch.cat(parts) if parts else inputs.new_zeros(0, 2)


def is_searched(pairs: CostPairs) -> Flags:
    """Mask of the pairs of which there may be an 8-bit image: reached by an attack, with an output, `(P,)`."""
    wanted: Flags = pairs.reached & ~pairs.invalid & (pairs.origin != CLEAN)
    return wanted


def images_of_pairs(
    target: EvaluationTarget,
    evidence: Evidence,
    pairs: CostPairs,
    saved: dict[str, PairImages],
    successes: StoredImages,
    classes: Whole,
    evaluation: str = "",
) -> PairImages:
    """An 8-bit image of each class that an attack reached, as far as one is found; fills in the passes.

    An 8-bit image of the evaluation that is predicted as the class is taken. Otherwise the search starts at the
    success of the attack, see `save_in_8_bits`; an image counts if the class is predicted for it.

    Args:
        target: model, data and threat, with the seed and the batch size of the evaluation.
        evidence: the evaluation.
        pairs: the rows of the costs.
        saved: 8-bit images of the evaluation.
        successes: images of the targeted attack.
        classes: their classes, `(M,)`.
        evaluation: SHA-256 of the summary of the evaluation.
    """
    parts, targets, left = [nothing_saved(target)], [np.zeros(0, np.int64)], is_searched(pairs)
    for one in saved.values():
        rows = pair_rows(pairs, one.images.ids, one.targets)
        kept = np.flatnonzero((rows >= 0) & left[rows])
        parts.append(_only(one.images, kept))
        targets.append(one.targets[kept])
        left[rows[kept]] = False
    for rows, found in searches(target, evidence, pairs, successes, classes, np.flatnonzero(left), evaluation):
        pairs.passes_8bit[rows] = found.passes
        hit = rows[found.found]
        parts.append(EightBitImages(pairs.id[hit], found.levels, found.theta))
        targets.append(pairs.target[hit])
    return PairImages(EightBitImages.joined(parts), np.concatenate(targets))


def searches(
    target: EvaluationTarget,
    evidence: Evidence,
    pairs: CostPairs,
    successes: StoredImages,
    classes: Whole,
    rows: Whole,
    evaluation: str = "",
) -> Iterator[tuple[Whole, Searched]]:
    """The searches for 8-bit images of some pairs, batch by batch, with their rows.

    Random numbers depend on the seed, the example and the class alone.

    Args:
        target: as in `images_of_pairs`, like the four that follow.
        evidence: the evaluation.
        pairs: the rows of the costs.
        successes: images of the targeted attack.
        classes: their classes, `(M,)`.
        rows: rows of the pairs, `(Q,)`.
        evaluation: SHA-256 of the summary of the evaluation.
    """
    batches, seed = target.chunks(rows), as_bytes(target.seed)
    parts: list[Arrays] = [
        {
            "rows": rows_of(evidence.table.examples.id, pairs.id[here]),
            "classes": pairs.target[here],
            "points": _points(evidence, pairs, successes, classes, here),
            "seed": seed,
        }
        for here in batches
    ]
    task = Task(COSTS_8BIT, evaluation, target.threat.extent_text)
    results = target.crew.share(task, parts, lambda part: cost_search_part(target, part))
    for here, found in zip(batches, results, strict=True):
        yield here, Searched(found["found"], found["passes"], found["levels"], found.get("theta"))


def cost_search_part(target: EvaluationTarget, part: Arrays) -> Arrays:
    """Search for the 8-bit images of one batch: `rows`, `classes`, `points` to start from, and the `seed`."""
    data, device = target.data, target.data.device
    seed = from_bytes(part["seed"])
    seeds = tuple(derive_seed(seed, "evaluation", "costs", j) for j in range(data.num_classes))
    rows, wanted, start = (torch.from_numpy(part[key]).to(device) for key in ("rows", "classes", "points"))
    draws = KeyedGenerator(seeds, data.ids[rows], wanted).fold("8bit")
    found = search_for(target, rows, start, ClassificationGoal(data.labels[rows], wanted), draws)
    return {
        "found": found.found,
        "passes": found.passes,
        "levels": found.levels,
        **({} if found.theta is None else {"theta": found.theta}),
    }


def _points(
    evidence: Evidence, pairs: CostPairs, successes: StoredImages, classes: Whole, rows: Whole
) -> NDArray[np.float32]:
    """Parameters of the successes that reached some pairs: of the targeted attack, or of one of the evaluation.

    Raises:
        EvidenceError: a success is not stored.
    """
    own = {pair: place for place, pair in enumerate(zip(successes.ids.tolist(), classes.tolist(), strict=True))}
    of_attack = {
        name: {identity: place for place, identity in enumerate(one.ids.tolist())}
        for name, one in evidence.images.attacks.items()
    }
    points = []
    for row in rows.tolist():
        identity, wanted, origin = int(pairs.id[row]), int(pairs.target[row]), str(pairs.origin[row])
        name = origin.removeprefix(OF_EVALUATION)
        targeted = name == origin
        place = own.get((identity, wanted)) if targeted else of_attack.get(name, {}).get(identity)
        if place is None:
            raise EvidenceError(f"costs: no image of example {identity} as class {wanted} is stored")
        stored = successes if targeted else evidence.images.attacks[name]
        points.append((stored.images if stored.theta is None else stored.theta)[place])
    return np.stack(points)


def _only(images: EightBitImages, kept: Whole) -> EightBitImages:
    theta = None if images.theta is None else images.theta[kept]
    return EightBitImages(images.ids[kept], images.levels[kept], theta)
