"""Costs of confusions under attack, on a model whose reachable classes are known in closed form."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from robustly.attacks import APGD, PGD
from robustly.cost_matrix import CostMatrix, read_costs
from robustly.data import ImageData
from robustly.evaluation import EvaluationError, EvaluationTarget, Suite, evaluate
from robustly.evaluation.audit.costs import costs_checks
from robustly.evaluation.audit.costs_8bit import has_image
from robustly.evaluation.audit.rounding import Rounding
from robustly.evaluation.audit.sampling import Sampling
from robustly.evaluation.costs import evaluate_costs
from robustly.evidence import EightBitImages, Evidence, EvidenceError, write_evidence
from robustly.evidence.cost_pairs import OF_EVALUATION, TARGETED, cost_numbers
from robustly.evidence.costs import CostEvidence, read_cost_summary, read_costs_of, write_costs
from robustly.evidence.schema import SUMMARY
from robustly.files import file_sha256
from robustly.threats import parse_threat

K, EPSILON = 4, 0.1
ATTACK = APGD(steps=20)
THREAT = parse_threat(f"linf:{EPSILON}")


def data(count: int = 24) -> ImageData:
    """Images of K pixels, which are the logits, away from black and white; most labels are the largest."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, 196, (count, 1, 2, 2), generator=draws)
    labels = pixels.flatten(1).argmax(1)
    labels[::6] = (labels[::6] + 1) % K
    return ImageData(pixels.to(torch.uint8), labels, torch.arange(count) + 100, ("a", "b", "c", "d"), "pixels")


@pytest.fixture(scope="module")
def target() -> EvaluationTarget:
    return EvaluationTarget(nn.Flatten(), data(), THREAT, batch_size=7)


@pytest.fixture(scope="module")
def evidence(target: EvaluationTarget) -> Evidence:
    suite = Suite("test", {"pgd": PGD(steps=10)}, curve=None)
    return evaluate(target.model, target.data, THREAT, suite, batch_size=7)


def within_reach(target: EvaluationTarget) -> np.ndarray:
    """Classes that some change reaches: j rises and all others fall by epsilon, `(N, K)`."""
    z = target.data.floats().flatten(1)
    found: np.ndarray = (z.amax(1, keepdim=True) - z < 2 * EPSILON).numpy()
    return found


def costs_of(target: EvaluationTarget, evidence: Evidence, costs: CostMatrix) -> CostEvidence:
    return evaluate_costs(target, evidence, costs, evaluation="0" * 64, attack=ATTACK)


RANDOM = CostMatrix.of(np.random.default_rng(0).uniform(0.1, 3, (K, K)) * (1 - np.eye(K)), "random")


@pytest.mark.parametrize(
    "costs",
    [read_costs(text, K) for text in ("all", "classes:2", "0>1:5,0>2:2,3>0")] + [RANDOM],
    ids=["all", "class", "pairs", "random"],
)
def test_numbers_are_those_of_the_closed_form(
    target: EvaluationTarget, evidence: Evidence, costs: CostMatrix
) -> None:
    found, matrix, labels = costs_of(target, evidence, costs), costs.array, target.data.labels.numpy()
    reach = within_reach(target)
    worst = (matrix[labels] * reach).max(axis=1)
    applicable = (matrix[labels] > 0).any(axis=1)
    numbers = found.summary.numbers
    assert (numbers.robust.hits, numbers.robust.count) == (int((worst[applicable] == 0).sum()), applicable.sum())
    assert numbers.worst.mean == pytest.approx(worst.mean())
    assert numbers.not_applicable == (~applicable).sum()
    clean = target.data.floats().flatten(1).argmax(1).numpy()
    assert numbers.clean_cost.mean == pytest.approx(matrix[labels, clean].mean())
    assert numbers.clean_cost.mean < numbers.worst.mean
    assert sum(one.cost * one.count for one in numbers.confusions) == pytest.approx(worst.sum())
    low, high = numbers.worst.interval
    assert 0 <= low <= numbers.worst.mean <= high <= costs.largest


def test_equal_costs_give_ordinary_robust_accuracy(target: EvaluationTarget, evidence: Evidence) -> None:
    numbers = costs_of(target, evidence, read_costs("all", K)).summary.numbers
    assert numbers.robust == evidence.summary.metrics.worst_case.robust
    assert numbers.clean == evidence.summary.metrics.clean
    assert numbers.worst.mean == pytest.approx(1 - numbers.robust.share)
    low, high = numbers.robust.interval
    assert numbers.worst.interval == pytest.approx((1 - high, 1 - low))
    assert 0 < numbers.robust.hits < numbers.robust.count


@pytest.mark.parametrize("costs", [read_costs("all", K), RANDOM], ids=["all", "random"])
def test_images_of_8_bits_reach_what_files_can_hold(
    target: EvaluationTarget, evidence: Evidence, costs: CostMatrix
) -> None:
    found = costs_of(target, evidence, costs)
    assert found.saved is not None
    assert found.saved_targets is not None
    logits = torch.from_numpy(found.saved.levels).flatten(1).numpy()
    assert (logits.argmax(1) == found.saved_targets).all(), "the pixels are the logits"
    clean = target.data.images[torch.from_numpy(found.saved.ids - 100)].numpy().astype(int)
    assert np.abs(found.saved.levels.astype(int) - clean).max() <= 25, "0.1 is 25.5 levels"
    # a class is reached if it is above all others after changes of 25 levels; equal levels go to the first
    pixels = target.data.images.flatten(1).numpy().astype(int)
    high, low = pixels + 25, pixels - 25
    reach = np.array(
        [[all(high[i, j] > low[i, k] or (high[i, j] == low[i, k] and j < k) for k in range(K) if k != j)
          for j in range(K)] for i in range(len(pixels))]
    )  # fmt: skip
    matrix, labels = costs.array, target.data.labels.numpy()
    worst = (matrix[labels] * reach).max(axis=1)
    numbers = found.summary.numbers
    assert numbers.eight_bit is not None
    assert numbers.eight_bit.robust.hits == int((worst == 0).sum())
    assert numbers.eight_bit.worst.mean == pytest.approx(worst.mean())
    assert numbers.eight_bit.robust.hits >= numbers.robust.hits
    if costs is not RANDOM:
        assert numbers.eight_bit.robust == evidence.summary.metrics.worst_case.robust_8bit


def test_more_costly_classes_never_raise_robust_accuracy(target: EvaluationTarget, evidence: Evidence) -> None:
    robust: list[set[int]] = []
    for text in ("0>1", "0>1,0>3:2", "0>1,0>3:2,0>2:0.5"):
        pairs = costs_of(target, evidence, read_costs(text, K)).pairs
        broken = set(pairs.id[pairs.reached].tolist())
        robust.append(set(pairs.id.tolist()) - broken)
    assert robust[0] > robust[1] >= robust[2]


@pytest.mark.parametrize("factor", [0.125, 7.0])
def test_a_factor_of_all_costs_changes_no_verdict(
    target: EvaluationTarget, evidence: Evidence, factor: float
) -> None:
    one = costs_of(target, evidence, RANDOM)
    two = costs_of(target, evidence, CostMatrix.of(factor * RANDOM.array, "scaled"))
    for name in ("id", "target", "tried", "reached", "forwards"):
        assert np.array_equal(getattr(one.pairs, name), getattr(two.pairs, name))
    mine, scaled = one.summary.numbers, two.summary.numbers
    assert scaled.robust == mine.robust
    assert scaled.worst.mean == pytest.approx(factor * mine.worst.mean)
    assert scaled.worst.interval == pytest.approx([factor * end for end in mine.worst.interval])


def test_verdicts_do_not_depend_on_the_batch_size(target: EvaluationTarget, evidence: Evidence) -> None:
    one = costs_of(target, evidence, RANDOM)
    two = costs_of(replace(target, batch_size=100), evidence, RANDOM)
    assert np.array_equal(one.pairs.reached, two.pairs.reached)
    assert np.array_equal(one.pairs.forwards, two.pairs.forwards)


def test_cheaper_classes_than_the_one_reached_are_not_tried(target: EvaluationTarget, evidence: Evidence) -> None:
    pairs = costs_of(target, evidence, RANDOM).pairs
    cost = RANDOM.array[target.data.labels.numpy()[pairs.id - 100], pairs.target]
    for identity in set(pairs.id.tolist()):
        own = pairs.id == identity
        worst = cost[own & pairs.reached].max(initial=0.0)
        assert pairs.tried[own & (cost > worst)].all()
        assert not (pairs.tried & ~pairs.reached)[own & (cost < worst)].any()
    assert {TARGETED, "clean", OF_EVALUATION + "pgd"} <= set(pairs.origin.tolist())


def test_a_class_without_costs_is_not_applicable_and_none_is_refused(
    target: EvaluationTarget, evidence: Evidence
) -> None:
    few = target.data.select((target.data.labels == 1).nonzero()[:, 0])
    own = replace(target, data=few)
    suite = Suite("test", {"pgd": PGD(steps=2)}, curve=None)
    other = evaluate(own.model, few, THREAT, suite, batch_size=7)
    with pytest.raises(EvidenceError, match=r"none of the .* examples is of a class whose"):
        costs_of(own, other, read_costs("classes:0", K))
    numbers = costs_of(target, evidence, read_costs("classes:0,2,3", K)).summary.numbers
    assert numbers.not_applicable == len(few)


def test_another_model_other_images_threat_or_classes_are_refused(
    target: EvaluationTarget, evidence: Evidence
) -> None:
    costs = read_costs("all", K)
    weights = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    for own, words in (
        (replace(target, model=weights), "weights differ"),
        (replace(target, data=data(20)), "need the 24 images of the evaluation, but these 20 differ"),
        (replace(target, threat=parse_threat("linf:0.2")), "need the threat linf:0.1"),
        (replace(target, threat=parse_threat("l2:0.1")), "need the threat linf:0.1"),
    ):
        with pytest.raises(EvaluationError, match=words):
            costs_of(own, evidence, costs)
    with pytest.raises(EvaluationError, match="of 5 classes, the data of 4"):
        costs_of(target, evidence, read_costs("all", 5))


class NeverNumber(nn.Module):
    """Identity, with NaN where the first pixel is far below where it was: an output that only an attack meets."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1)
        odd = (z * 255 - (z * 255).round()).abs().amax(1, keepdim=True) > 0.01
        return torch.where(odd & (z.amax(1, keepdim=True) < 0.6), z / 0 * 0, z)


# files and their audit


def stored(target: EvaluationTarget, evidence: Evidence, folder: Path, costs: CostMatrix = RANDOM) -> None:
    write_evidence(evidence, folder)
    found = costs_of(target, evidence, costs)
    write_costs(replace(found, summary=replace(found.summary, evaluation=file_sha256(folder / SUMMARY))), folder)


def problems(target: EvaluationTarget, evidence: Evidence, folder: Path) -> list[str]:
    clean = target.logits(target.data.floats, torch.arange(len(target.data)))
    rounding, sampling = Rounding.of(clean, target.data.labels), Sampling(everything=True)
    checks = list(costs_checks(folder, evidence, target, sampling, rounding, ATTACK))
    return [f"{one.name}: {one.problem}" for one in checks if not one.passed] if checks else ["no checks"]


@pytest.mark.slow
def test_files_come_back_and_an_honest_audit_passes(
    target: EvaluationTarget, evidence: Evidence, tmp_path: Path
) -> None:
    stored(target, evidence, tmp_path)
    summary = read_cost_summary(tmp_path)
    assert summary is not None
    assert summary.costs().rows == RANDOM.rows
    back = read_costs_of(tmp_path, summary)
    assert np.array_equal(back.pairs.origin, costs_of(target, evidence, RANDOM).pairs.origin)
    assert len(back.images) == len(back.targets) > 0
    assert problems(target, evidence, tmp_path) == []


@pytest.mark.slow
def test_costs_of_schema_1_have_no_images_of_8_bits(
    target: EvaluationTarget, evidence: Evidence, tmp_path: Path
) -> None:
    stored(target, evidence, tmp_path)
    summary = read_cost_summary(tmp_path)
    assert summary is not None
    older = without_8bit(read_costs_of(tmp_path, summary))
    write_costs(older, tmp_path)
    table = pq.read_table(tmp_path / "costs.parquet")
    pq.write_table(table.drop_columns(["passes_8bit"]), tmp_path / "costs.parquet")
    content = json.loads((tmp_path / "costs.json").read_text())
    content["files"]["costs.parquet"] = file_sha256(tmp_path / "costs.parquet")
    del content["numbers"]["eight_bit"]
    (tmp_path / "costs.json").write_text(json.dumps(content))
    summary = read_cost_summary(tmp_path)
    assert summary is not None
    assert read_costs_of(tmp_path, summary).saved is None
    assert problems(target, evidence, tmp_path) == []
    content["schema"] = 2
    (tmp_path / "costs.json").write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match="numbers of 8-bit files belong to schema 2"):
        read_cost_summary(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["shift:1", "brightness:0.2+linf:0.05", "l2:0.15"])
def test_images_of_8_bits_under_other_threats_pass_the_audit(tmp_path: Path, text: str) -> None:
    threat = parse_threat(text)
    own = EvaluationTarget(nn.Flatten(), data(12), threat, batch_size=5)
    suite = Suite("test", {"pgd": PGD(steps=5)}, curve=None)
    found = evaluate(own.model, own.data, threat, suite, batch_size=5)
    stored(own, found, tmp_path)
    summary = read_cost_summary(tmp_path)
    assert summary is not None
    saved = read_costs_of(tmp_path, summary).saved
    assert saved is not None
    assert len(saved) > 0
    assert (saved.theta is None) is (text == "l2:0.15")
    assert problems(own, found, tmp_path) == []


@pytest.mark.slow
def test_outputs_that_are_no_numbers_count_as_the_costliest_class(tmp_path: Path) -> None:
    own = EvaluationTarget(NeverNumber(), data(), THREAT, batch_size=7)
    suite = Suite("test", {"pgd": PGD(steps=2)}, curve=None)
    with pytest.warns(UserWarning, match="NaN"):
        found = evaluate(own.model, own.data, THREAT, suite, batch_size=7)
    lost = found.table.attacks["pgd"].invalid
    assert lost.any()
    stored(own, found, tmp_path)
    summary = read_cost_summary(tmp_path)
    assert summary is not None
    pairs = read_costs_of(tmp_path, summary).pairs
    cost = RANDOM.array[own.data.labels.numpy()[pairs.id - 100], pairs.target]
    for identity in found.table.examples.id[lost].tolist():
        here = pairs.id == identity
        assert cost[here & pairs.reached].max() == cost[here].max()
    assert problems(own, found, tmp_path) == []


def forget(found: CostEvidence) -> CostEvidence:
    """A class reached by the targeted attack becomes one that stands, without an image."""
    place = np.flatnonzero(found.pairs.origin == TARGETED)[0]
    found.pairs.reached[place], found.pairs.origin[place] = False, ""
    return forget_images(found)


def forget_and_try(found: CostEvidence) -> CostEvidence:
    """The same, with passes of attacks at the cheaper classes, which would then have been tried."""
    own = found.pairs.id == found.pairs.id[np.flatnonzero(found.pairs.origin == TARGETED)[0]]
    pairs = forget(found).pairs
    cost = RANDOM.array[data().labels.numpy()[pairs.id - 100], pairs.target]
    tried = own & (cost > cost[own & pairs.reached].max(initial=0.0))
    pairs.tried[tried], pairs.forwards[tried], pairs.backwards[tried] = True, 22, 21
    return forget_images(found)


def forget_images(found: CostEvidence) -> CostEvidence:
    """Leave out images of classes that are stated to stand."""
    standing = found.pairs.tried & ~found.pairs.reached
    names = set(zip(found.pairs.id[standing].tolist(), found.pairs.target[standing].tolist(), strict=True))
    shown = zip(found.images.ids.tolist(), found.targets.tolist(), strict=True)
    keep = np.array([one not in names for one in shown])
    return replace(found, images=found.images.only(keep), targets=found.targets[keep])


def forget_clean(found: CostEvidence) -> CostEvidence:
    place = np.flatnonzero(found.pairs.origin == "clean")[0]
    found.pairs.reached[place], found.pairs.origin[place] = False, ""
    return found


def brighter(found: CostEvidence) -> CostEvidence:
    found.images.images[0] = np.minimum(found.images.images[0] + 0.3, 1)
    return found


def cheaper(found: CostEvidence) -> CostEvidence:
    rows = tuple(tuple(value / 2 for value in row) for row in found.summary.matrix)
    return replace(found, summary=replace(found.summary, matrix=rows))


def weaker(found: CostEvidence) -> CostEvidence:
    return replace(found, summary=replace(found.summary, attack={**found.summary.attack, "steps": 1}))


def better(found: CostEvidence) -> CostEvidence:
    numbers = replace(found.summary.numbers, worst=replace(found.summary.numbers.worst, mean=0.0))
    return replace(found, summary=replace(found.summary, numbers=numbers))


def renamed(found: CostEvidence) -> CostEvidence:
    """The text of another matrix."""
    return replace(found, summary=replace(found.summary, text="all"))


def lose_8bit(found: CostEvidence) -> CostEvidence:
    """One image of 8 bits less, and its numbers."""
    assert found.saved is not None
    assert found.saved_targets is not None
    own = found.saved
    return replace(found, saved=EightBitImages(own.ids[1:], own.levels[1:]), saved_targets=found.saved_targets[1:])


def brighten_8bit(found: CostEvidence) -> CostEvidence:
    """Images of 8 bits that are far outside the threat set."""
    assert found.saved is not None
    return replace(found, saved=EightBitImages(found.saved.ids, np.clip(found.saved.levels, 200, 255)))


def relabel_8bit(found: CostEvidence) -> CostEvidence:
    """Another class for every image of 8 bits."""
    assert found.saved_targets is not None
    return replace(found, saved_targets=(found.saved_targets + 1) % K)


def without_8bit(found: CostEvidence) -> CostEvidence:
    """Costs of schema 1, which had no such images."""
    numbers = replace(found.summary.numbers, eight_bit=None)
    summary = replace(found.summary, schema=1, numbers=numbers)
    return replace(found, saved=None, saved_targets=None, summary=summary)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forged", "words"),
    [
        (renamed, "the text makes the matrix: 'all' makes another one"),
        (lose_8bit, "left out|searched again|passes"),
        (brighten_8bit, "outside the threat set|not predicted"),
        (relabel_8bit, "not those of classes|not predicted|left out"),
        (forget, "tried are not those|attacked again"),
        (forget_and_try, "attacked again"),
        (forget_clean, "tried are not those|against the images"),
        (brighter, "outside the threat set"),
        (cheaper, "matrix hashes to"),
        (weaker, "settings differ"),
        (better, "numbers follow from the rows: they differ"),
    ],
)
def test_a_forgery_with_new_hashes_is_found(
    target: EvaluationTarget,
    evidence: Evidence,
    tmp_path: Path,
    forged: Callable[[CostEvidence], CostEvidence],
    words: str,
) -> None:
    stored(target, evidence, tmp_path)
    summary = read_cost_summary(tmp_path)
    assert summary is not None
    changed = forged(read_costs_of(tmp_path, summary))
    examples = evidence.table.examples
    if forged in (forget, forget_and_try, forget_clean, lose_8bit):
        mask = has_image(changed)
        numbers = cost_numbers(RANDOM, examples.id, examples.label, examples.clean_prediction, changed.pairs, mask)
        changed = replace(changed, summary=replace(changed.summary, numbers=numbers))
    write_costs(changed, tmp_path)
    found = "; ".join(problems(target, evidence, tmp_path))
    assert found
    assert any(part in found for part in words.split("|")), found


@pytest.mark.slow
def test_changed_files_and_costs_of_an_earlier_evaluation_are_found(
    target: EvaluationTarget, evidence: Evidence, tmp_path: Path
) -> None:
    stored(target, evidence, tmp_path)
    with (tmp_path / "costs.parquet").open("ab") as file:
        file.write(b"x")
    assert "changed: costs.parquet" in problems(target, evidence, tmp_path)[0]
    stored(target, evidence, tmp_path)
    (tmp_path / SUMMARY).write_text((tmp_path / SUMMARY).read_text() + "\n")
    assert read_cost_summary(tmp_path) is None
    assert "an earlier one" in problems(target, evidence, tmp_path)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["costs.parquet", "costs.safetensors"])
def test_a_file_that_was_removed_fails_the_audit(
    target: EvaluationTarget, evidence: Evidence, tmp_path: Path, name: str
) -> None:
    stored(target, evidence, tmp_path)
    (tmp_path / name).unlink()
    assert problems(target, evidence, tmp_path) == [f"costs: the files are those named: missing: {name}"]
