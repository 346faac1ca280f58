"""Audit of the costs of an evaluation: matrix, rows, images, numbers, and a sample of the classes not reached."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from robustly.attacks import Attack
from robustly.cost_matrix import CostError, CostMatrix, is_file, read_costs
from robustly.evaluation.audit.check import Check, Placed
from robustly.evaluation.audit.costs_8bit import has_image, saved_again, saved_checks
from robustly.evaluation.audit.rounding import Rounding, too_many_ties
from robustly.evaluation.audit.sampling import Sampling, drawn
from robustly.evaluation.costs import TARGETED_ATTACK, attack_pairs, known_pairs, turns, worst_costs
from robustly.evaluation.costs_8bit import PairImages
from robustly.evaluation.recording import as_array
from robustly.evaluation.suites.suite import settings
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence, EvidenceError
from robustly.evidence.cost_pairs import TARGETED, CostPairs, cost_numbers, rows_of
from robustly.evidence.costs import (
    COSTS,
    PAIR_IMAGES,
    PAIRS,
    CostEvidence,
    read_cost_summary,
    read_costs_of,
)
from robustly.evidence.records import to_json
from robustly.evidence.schema import Double, Flags, Whole
from robustly.files import file_sha256

_OTHER_PASSES = 0.1  # share of the repeated searches that may take another number of passes


def costs_checks(
    folder: Path,
    evidence: Evidence,
    target: EvaluationTarget,
    sampling: Sampling,
    rounding: Rounding,
    attack: Attack = TARGETED_ATTACK,
) -> Iterator[Check]:
    """All checks of the costs beside an evaluation; none if there are no costs.

    Args:
        folder: folder of the evaluation.
        evidence: the evaluation.
        target: the model, the data and the threat, with seed and batch size of the evaluation.
        sampling: the guarantee, for examples with classes that were tried and not reached.
        rounding: rounding of the network.
        attack: the targeted attack that the costs should state.
    """
    if not (folder / COSTS).is_file():
        return
    try:
        summary = read_cost_summary(folder)
        if summary is None:
            yield Check("costs: of this evaluation", "they are of an earlier one: evaluate the costs again")
            return
        missing = [name for name in (PAIRS, PAIR_IMAGES) if not (folder / name).is_file()]
        if missing:
            yield Check("costs: the files are those named", f"missing: {', '.join(missing)}")
            return
        names = {name: file_sha256(folder / name) for name in (PAIRS, PAIR_IMAGES)}
        changed = [name for name in {**names, **summary.files} if names.get(name) != summary.files.get(name)]
        yield Check("costs: the files are those named", f"changed: {', '.join(changed)}" if changed else "")
        costs = read_costs_of(folder, summary)
        yield from _contents(evidence, costs, target, sampling, rounding, attack)
    except EvidenceError as error:
        yield Check("costs: complete and readable", str(error))


def _contents(
    evidence: Evidence,
    found: CostEvidence,
    target: EvaluationTarget,
    sampling: Sampling,
    rounding: Rounding,
    attack: Attack,
) -> Iterator[Check]:
    """The checks of readable costs."""
    examples, matrix = evidence.table.examples, found.summary.costs()
    wrong = ""
    if matrix.classes != target.data.num_classes:
        wrong = f"it is of {matrix.classes} classes, the data of {target.data.num_classes}"
    yield Check(f"costs: the matrix is the one named ({matrix.digest[:12]}...)", wrong)
    yield _text_check(matrix)
    same = dict(found.summary.attack) == settings(attack)
    yield Check("costs: the targeted attack is the one of this version", "" if same else "its settings differ")
    if wrong or not same:
        return
    cost = _cost_of(matrix.array, evidence, found.pairs)
    saved = saved_again(evidence, found, target, rounding)
    problem = _row_problem(evidence, found, cost, saved)
    yield Check("costs: rows follow from the matrix, the evaluation and each other", problem)
    if problem:
        return
    yield Check("costs: images reach the classes stated", _image_problem(evidence, found, target, rounding))
    yield from saved_checks(evidence, found, target, saved, rounding)
    own = cost_numbers(
        matrix, examples.id, examples.label, examples.clean_prediction, found.pairs, has_image(found)
    )
    differs = to_json(own) != to_json(found.summary.numbers)
    yield Check("costs: numbers follow from the rows", "they differ" if differs else "")
    yield from _again(evidence, found.pairs, target, sampling, rounding, attack)


def _text_check(costs: CostMatrix) -> Check:
    """Check that the text of the costs, such as "all", makes the matrix. Names of files are stated alone."""
    name = "costs: the text makes the matrix"
    if is_file(costs.text):
        return Check(name, note=f"the name of the file {costs.text[:60]!r} is stated, not checked")
    try:
        own = read_costs(costs.text, costs.classes)
    except CostError:
        return Check(name, note=f"{costs.text[:60]!r} is stated, not checked")
    return Check(name, "" if own.digest == costs.digest else f"{costs.text[:60]!r} makes another one")


def _cost_of(matrix: Double, evidence: Evidence, pairs: CostPairs) -> Double:
    """The cost of each pair; 0 for classes that do not exist."""
    row, exists = rows_of(evidence.table.examples.id, pairs.id), (pairs.target >= 0) & (pairs.target < len(matrix))
    found: Double = np.where(exists, matrix[evidence.table.examples.label[row], pairs.target * exists], 0.0)
    return found


def _row_problem(evidence: Evidence, found: CostEvidence, cost: Double, saved: Mapping[str, PairImages]) -> str:
    """The problem with the rows, or an empty text."""
    pairs, ids = found.pairs, evidence.table.examples.id
    known = known_pairs(evidence.table, evidence, found.summary.costs(), saved)
    if not (np.array_equal(pairs.id, known.id) and np.array_equal(pairs.target, known.target)):
        return "they are not the costly classes of the examples"
    place, tried, reached = rows_of(ids, pairs.id), np.zeros(len(pairs), dtype=bool), known.reached.copy()
    for turn in turns(place, cost):
        worst = worst_costs(place, cost, reached, len(ids))
        chosen = turn[cost[turn] > worst[place[turn]]]
        tried[chosen] = True
        reached[chosen] = pairs.reached[chosen]
    origin = np.where(pairs.reached & tried, TARGETED, known.origin)
    spent, lost = pairs.forwards + pairs.backwards, pairs.invalid
    wrong = {
        "the classes tried are not those that cost more than the ones reached": pairs.tried != tried,
        "classes are reached, or not, against the images of the evaluation": pairs.reached != reached,
        "the origins of the classes reached differ": (pairs.origin != origin) | (~tried & (lost != known.invalid)),
        "outputs without a number must count as reached": lost & ~pairs.reached,
        "passes are negative": (pairs.forwards < 0) | (pairs.backwards < 0),
        "passes are stated where none were taken, or none where there were": (spent > 0) != tried,
    }
    return next((problem for problem, where in wrong.items() if where.any()), "")


def _image_problem(evidence: Evidence, found: CostEvidence, target: EvaluationTarget, rounding: Rounding) -> str:
    """The problem with the stored images, or an empty text."""
    pairs, stored, ids = found.pairs, found.images, evidence.table.examples.id
    shown = pairs.reached & pairs.tried & ~pairs.invalid
    expected = list(zip(pairs.id[shown].tolist(), pairs.target[shown].tolist(), strict=True))
    stated = list(zip(stored.ids.tolist(), found.targets.tolist(), strict=True))
    if sorted(expected) != sorted(stated):
        return "they are not those of the classes that the targeted attack reached"
    if not len(stored):
        return ""
    if stored.images.shape[1:] != tuple(target.data.images.shape[1:]):
        return f"they have the shape {stored.images.shape[1:]}"
    device, here = target.data.device, rows_of(ids, stored.ids)
    theta = None if stored.theta is None else torch.from_numpy(stored.theta).to(device)
    shot = Placed(torch.from_numpy(here).to(device), here, torch.from_numpy(stored.images).to(device), theta)
    allowed = target.threat.around(target.data.floats(shot.rows))
    problem = shot.rendering_problem(allowed)
    if problem:
        return problem
    stray = ~(as_array(allowed.contains(shot.points)) & shot.in_box(target))
    missed = rounding.disagree(shot.logits(target), found.targets)
    words = f"{int(stray.sum())} lie outside the threat set" if stray.any() else ""
    return words or (f"{int(missed.sum())} are not predicted as their class" if missed.any() else "")


def _again(
    evidence: Evidence,
    pairs: CostPairs,
    target: EvaluationTarget,
    sampling: Sampling,
    rounding: Rounding,
    attack: Attack,
) -> Iterator[Check]:
    """Attack all open classes of a sample of the examples again, and all pairs without an output."""
    ids = evidence.table.examples.id
    place, standing = rows_of(ids, pairs.id), pairs.tried & ~pairs.reached
    population: Flags = np.zeros(len(ids), dtype=bool)
    population[place[standing]] = True
    sample = drawn(sampling.order(len(ids), target.crew), population, sampling.size(int(population.sum())))
    here = np.flatnonzero(standing & np.isin(place, sample))
    fallen, ties, other = 0, 0, 0
    for part, reached, clear, spent in _repeated(target, attack, pairs, place, here, rounding):
        fallen += int((reached & clear).sum())
        ties += int((reached & ~clear).sum())
        other += int((~reached & (np.abs(spent - (pairs.forwards + pairs.backwards)[part]) > 1)).sum())
    title = f"costs: {len(here)} classes of {len(sample)} examples attacked again, of {int(population.sum())}"
    problem = f"{fallen} were reached" if fallen else ""
    if not problem and too_many_ties(ties, len(here)):
        problem = f"{ties} were reached by no more than rounding: so many ties prove nothing"
    if not problem and other > _OTHER_PASSES * len(here):
        problem = f"{other} took another number of passes"
    yield Check(title, problem, f"{ties} were reached by no more than rounding" if ties else "")
    lost = np.flatnonzero(pairs.invalid & pairs.tried)
    if len(lost):
        again = [attack_pairs(target, attack, place[one], pairs.target[one]) for one in target.chunks(lost)]
        same = all(bool(one.found.invalid.all()) for one in again)
        yield Check(f"costs: {len(lost)} classes without an output attacked again", "" if same else "some have one")


def _repeated(
    target: EvaluationTarget, attack: Attack, pairs: CostPairs, place: Whole, here: Whole, rounding: Rounding
) -> Iterator[tuple[Whole, Flags, Flags, Whole]]:
    """Batches of pairs: their rows, whether the class was reached, whether clearly so, and the passes."""
    for part in target.chunks(here):
        result = attack_pairs(target, attack, place[part], pairs.target[part])
        found = result.found
        rows = torch.from_numpy(place[part]).to(found.x_adv.device)
        logits = target.verdict(found.x_adv, target.data.labels[rows])
        wanted = torch.from_numpy(pairs.target[part]).to(logits.device)[:, None]
        others = logits.scatter(1, wanted, -torch.inf).amax(1)
        clear = logits.gather(1, wanted)[:, 0] - others > rounding.tolerance(logits)
        reached = result.reached | found.invalid
        yield part, as_array(reached), as_array(clear | found.invalid), as_array(found.forwards + found.backwards)
