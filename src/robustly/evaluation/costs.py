"""Costs of confusions under attack: a targeted attack at every costly class that is worse than those reached."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustly.attacks import APGD, Attack, AttackResult
from robustly.cost_matrix import CostMatrix
from robustly.data import ImageData
from robustly.evaluation.costs_8bit import PairImages, images_of_pairs, saved_by_evaluation
from robustly.evaluation.parts import Arrays, Task, as_bytes, from_bytes
from robustly.evaluation.recording import as_array, stored_images
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.suites.suite import settings
from robustly.evaluation.target import EvaluationTarget, Progress, no_progress
from robustly.evidence import Evidence, StoredImages
from robustly.evidence.cost_pairs import (
    CLEAN,
    OF_EVALUATION,
    TARGETED,
    CostPairs,
    check_applicable,
    cost_numbers,
    pair_mask,
)
from robustly.evidence.costs import CostEvidence, CostSummary
from robustly.evidence.schema import EvidenceTable, Flags, Whole
from robustly.models import weights_hash
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats import Threat

COSTS = "costs"
"""Kind of the tasks whose parts are batches of pairs of an example and a class."""
TARGETED_ATTACK = APGD(steps=100)
"""The attack at a costly class: it maximises log p_j, which leads past every other class."""


def evaluate_costs(
    target: EvaluationTarget,
    evidence: Evidence,
    costs: CostMatrix,
    *,
    evaluation: str,
    attack: Attack = TARGETED_ATTACK,
    progress: Progress = no_progress,
) -> CostEvidence:
    """Search for the costliest confusion of each example (Zhang and Evans, ICLR 2019, with attacks for bounds).

    A class counts as reached if it is predicted for the clean image, for a stored image of the evaluation inside
    the threat set (also one of 8 bits), or for one of the targeted attack. The attack takes the classes of an
    example from the costliest to the cheapest and leaves out those that cost no more than one that is reached. Its
    random numbers depend on the seed, the example and the class alone: a verdict on a class does not depend on the
    other costs. Of each class that an attack reached, an 8-bit image is then searched, as for the accuracy as 8-bit
    files.

    Args:
        target: model, data and threat of the evaluation.
        evidence: the evaluation.
        costs: the cost matrix.
        evaluation: SHA-256 of the summary of the evaluation.
        attack: a targeted attack.
        progress: callback.

    Raises:
        EvaluationError: the evaluation is of another model or other images, the costs are of another number of
            classes, or the attack is not defined for the threat.
        EvidenceError: no example is of a class with costs.
    """
    check_target(target, evidence, costs, attack)
    table = evidence.table
    saved = saved_by_evaluation(target, evidence)
    pairs = known_pairs(table, evidence, costs, saved)
    ids = table.examples.id
    cost_numbers(costs, ids, table.examples.label, table.examples.clean_prediction, pairs, None)  # refuses early
    place = np.repeat(np.arange(len(ids)), (costs.array[table.examples.label] > 0).sum(axis=1))
    cost = costs.array[table.examples.label[place], pairs.target]
    images, targets = [stored_images(target.data.ids[:0], target.data.floats(target.data.ids[:0]))], [ids[:0]]
    done = 0
    for turn in turns(place, cost):
        worst = worst_costs(place, cost, pairs.reached, len(ids))
        chosen = turn[cost[turn] > worst[place[turn]]]
        for kept, reached in _attacked(target, attack, pairs, target.chunks(chosen), place, evaluation):
            images.append(kept)
            targets.append(reached)
        done += len(turn)
        progress("costs", done, len(pairs))
    own, classes = StoredImages.joined(images), np.concatenate(targets)
    files = images_of_pairs(target, evidence, pairs, saved, own, classes, evaluation)
    target.crew.forget_parts()
    has_image = pair_mask(pairs, files.images.ids, files.targets)
    numbers = cost_numbers(costs, ids, table.examples.label, table.examples.clean_prediction, pairs, has_image)
    summary = CostSummary(costs.text, costs.digest, costs.rows, settings(attack), numbers, evaluation)
    return CostEvidence(pairs, own, classes, summary, files.images, files.targets)


def check_target(target: EvaluationTarget, evidence: Evidence, costs: CostMatrix, attack: Attack) -> None:
    """Refuse a target, costs or an attack that do not fit an evaluation.

    Raises:
        EvaluationError: see `evaluate_costs`.
    """
    summary = evidence.summary
    if weights_hash(target.model) != summary.model.weights_sha256:
        raise EvaluationError("the costs need the model of the evaluation, but its weights differ")
    if target.data.digest() != summary.data.sha256:
        raise EvaluationError(
            f"the costs need the {summary.data.count} images of the evaluation, but these {len(target.data)} "
            "differ: give the same settings again"
        )
    if str(target.threat) != summary.threat.text:
        raise EvaluationError(
            f"the costs need the threat {summary.threat.text} of the evaluation, not {target.threat}"
        )
    check_costs_fit(target.data, target.threat, costs, attack)


def check_costs_fit(data: ImageData, threat: Threat, costs: CostMatrix, attack: Attack = TARGETED_ATTACK) -> None:
    """Refuse costs that fit neither images nor threat, before the evaluation that they are for.

    Raises:
        EvaluationError: costs of another number of classes; a threat that the targeted attack is not defined for.
        EvidenceError: no image is of a class with costs.
    """
    if costs.classes != data.num_classes:
        raise EvaluationError(f"the costs are of {costs.classes} classes, the data of {data.num_classes}")
    if not attack.needs.accept(threat):
        raise EvaluationError(f"the targeted attack of the costs is {attack.needs.refusal(threat)}")
    check_applicable(costs, as_array(data.labels))


def known_pairs(
    table: EvidenceTable, evidence: Evidence, costs: CostMatrix, saved: Mapping[str, PairImages]
) -> CostPairs:
    """The rows of the costs with the classes that the clean images and the evaluation's attacks reach.

    Args:
        table: the rows of the evaluation.
        evidence: the evaluation.
        costs: the cost matrix.
        saved: its images of 8 bits by attack, with their predicted classes; none in schema 1.
    """
    examples, matrix = table.examples, costs.array
    row, target = np.nonzero(matrix[examples.label] > 0)
    count, longest = len(row), max(map(len, [TARGETED, CLEAN, *(OF_EVALUATION + name for name in table.attacks)]))
    pairs = CostPairs(
        id=examples.id[row].copy(),
        target=target.astype(np.int64),
        tried=np.zeros(count, dtype=bool),
        reached=np.zeros(count, dtype=bool),
        origin=np.zeros(count, dtype=f"<U{longest}"),
        invalid=np.zeros(count, dtype=bool),
        forwards=np.zeros(count, dtype=np.int64),
        backwards=np.zeros(count, dtype=np.int64),
        passes_8bit=np.zeros(count, dtype=np.int64),
    )
    cost = matrix[examples.label[row], target]
    _mark(pairs, examples.clean_prediction[row] == target, CLEAN)
    costliest = np.zeros(count, dtype=bool)
    costliest[turns(row, cost)[0] if count else []] = True
    for name, columns in table.attacks.items():
        inside = np.isin(examples.id, evidence.images.attacks[name].ids) & columns.broken & columns.tried
        _mark(pairs, (inside & ~columns.invalid)[row] & (columns.prediction[row] == target), OF_EVALUATION + name)
        without_output = columns.invalid[row] & costliest
        pairs.invalid[without_output & ~pairs.reached] = True
        _mark(pairs, without_output, OF_EVALUATION + name)
    for name, images in saved.items():
        _mark(pairs, pair_mask(pairs, images.images.ids, images.targets), OF_EVALUATION + name)
    return pairs


def _mark(pairs: CostPairs, found: Flags, origin: str) -> None:
    new = found & ~pairs.reached
    pairs.reached[new] = True
    pairs.origin[new] = origin


def turns(place: Whole, cost: NDArray[np.float64]) -> list[Whole]:
    """Rows of the pairs in turns: the costliest class of each example, then the next; equal ones by number."""
    order = np.lexsort((np.arange(len(place)), -cost, place))
    first = np.searchsorted(place[order], place[order], side="left")
    rank = np.arange(len(order)) - first
    return [np.sort(order[rank == turn]) for turn in range(int(rank.max(initial=-1)) + 1)]


def worst_costs(place: Whole, cost: NDArray[np.float64], reached: Flags, count: int) -> NDArray[np.float64]:
    """Largest cost reached of each example, `(N,)`."""
    worst = np.zeros(count)
    np.maximum.at(worst, place[reached], cost[reached])
    return worst


@dataclass(frozen=True)
class TargetedResult:
    """A targeted attack on some pairs, with its successes confirmed by a second forward pass.

    Args:
        found: the result of the attack.
        reached: True where the class is predicted for an image inside the threat set, `(M,)`.
    """

    found: AttackResult
    reached: Tensor


def attack_pairs(target: EvaluationTarget, attack: Attack, rows: Whole, classes: Whole) -> TargetedResult:
    """Attack some examples, each at one class.

    Args:
        target: model, data and threat.
        attack: a targeted attack.
        rows: rows of the data, `(M,)`.
        classes: the class of each, another than its label, `(M,)`.
    """
    data = target.data
    device = data.device
    chosen, wanted = (torch.from_numpy(np.ascontiguousarray(one)).to(device) for one in (rows, classes))
    seeds = tuple(derive_seed(target.seed, "evaluation", "costs", j) for j in range(data.num_classes))
    x, label = data.floats(chosen), data.labels[chosen]
    found = attack(
        target.model,
        x,
        ClassificationGoal(label, wanted),
        threat=target.threat,
        generator=KeyedGenerator(seeds, data.ids[chosen], wanted),
    )
    allowed = target.threat.around(x)
    inside = allowed.contains(found.x_adv if found.theta is None else found.theta)
    low, high = target.threat.box
    inside &= ((found.x_adv >= low) & (found.x_adv <= high)).flatten(1).all(1)
    predicted = target.verdict(found.x_adv, label).argmax(1)
    return TargetedResult(found, found.broken & ~found.invalid & inside & (predicted == wanted))


def cost_part(target: EvaluationTarget, attack: Attack, part: Arrays) -> Arrays:
    """Attack one batch of pairs: `rows` of the data, their `classes`, and the `seed` of the evaluation."""
    rows = part["rows"]
    target = replace(target, seed=from_bytes(part["seed"]))
    result = attack_pairs(target, attack, rows, part["classes"])
    found, reached = result.found, result.reached
    ids = target.data.ids[torch.from_numpy(rows).to(reached.device)]
    theta = None if found.theta is None else found.theta[reached]
    kept = stored_images(ids[reached], found.x_adv[reached], theta)
    return {
        "invalid": as_array(found.invalid),
        "reached": as_array(reached),
        "forwards": as_array(found.forwards),
        "backwards": as_array(found.backwards),
        "ids": kept.ids,
        "images": kept.images,
        **({} if kept.theta is None else {"theta": kept.theta}),
    }


def _attacked(
    target: EvaluationTarget,
    attack: Attack,
    pairs: CostPairs,
    batches: Sequence[Whole],
    place: Whole,
    evaluation: str,
) -> Iterator[tuple[StoredImages, Whole]]:
    """Attack batches of pairs and fill in their rows; yields the images to store, and their classes."""
    seed = as_bytes(target.seed)
    parts: list[Arrays] = [{"rows": place[here], "classes": pairs.target[here], "seed": seed} for here in batches]
    task = Task(COSTS, evaluation, target.threat.extent_text)
    results = target.crew.share(task, parts, lambda part: cost_part(target, attack, part))
    for here, found in zip(batches, results, strict=True):
        invalid, holds = found["invalid"], found["reached"]
        pairs.tried[here] = True
        pairs.invalid[here] = invalid
        pairs.reached[here] = holds | invalid
        pairs.origin[here[holds | invalid]] = TARGETED
        pairs.forwards[here], pairs.backwards[here] = found["forwards"], found["backwards"]
        yield StoredImages(found["ids"], found["images"], found.get("theta")), pairs.target[here[holds]]


def as_evaluated(target: EvaluationTarget, evidence: Evidence) -> EvaluationTarget:
    """The target with the seed and the batch size of an evaluation."""
    return replace(target, seed=evidence.summary.suite.seed, batch_size=evidence.summary.suite.batch_size)
