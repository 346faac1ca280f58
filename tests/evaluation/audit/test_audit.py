"""The audit passes unchanged evidence and fails on tampering."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forging import Tensors, edit_images, edit_table, problems, reseal
from numpy.typing import NDArray
from torch import nn

from robustly.attacks import ATTACKS
from robustly.data import ImageData, Splits
from robustly.evaluation import EvaluationTarget, Sampling, Suite, audit, evaluate
from robustly.evidence import Evidence, EvidenceError, EvidenceTable, read_evidence, write_evidence
from robustly.evidence.schema import IMAGES, SUMMARY, TABLE
from robustly.files import write_json
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.slow

THREAT = ThreatModel("linf", 0.08)
SUITE = Suite("test", {"pgd_10": ATTACKS["pgd_10"], "cw_20": ATTACKS["cw_20"]}, curve="pgd_10")
BOTH = ("pgd_10", "cw_20")


@pytest.fixture(scope="module")
def few(digits: Splits) -> ImageData:
    return digits.test.select(torch.arange(100))


@pytest.fixture(scope="module")
def evidence(digit_net: nn.Module, few: ImageData) -> Evidence:
    return evaluate(digit_net, few, THREAT, SUITE, curve_count=40)


@pytest.fixture
def folder(evidence: Evidence, tmp_path: Path) -> Path:
    write_evidence(evidence, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def target(digit_net: nn.Module, few: ImageData) -> EvaluationTarget:
    return EvaluationTarget(digit_net, few, THREAT)


def test_honest_evidence_passes(folder: Path, target: EvaluationTarget) -> None:
    result = audit(folder, target, SUITE)
    assert result.passed, problems(result)
    assert any("attacked again" in check.name for check in result.checks)


def first(mask: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])


def first_broken(table: EvidenceTable) -> int:
    return first(table.attacks["pgd_10"].broken & table.attacks["pgd_10"].tried)


def hide_a_broken_row(table: EvidenceTable) -> None:
    row = first_broken(table)
    for columns in (table.attacks["pgd_10"], table.attacks["cw_20"], table.worst_case):
        columns.broken[row] = False


def claim_a_broken_row(table: EvidenceTable) -> None:
    pgd = table.attacks["pgd_10"]
    row = first(pgd.tried & ~pgd.broken)
    pgd.broken[row] = table.worst_case.broken[row] = True


def better_clean(table: EvidenceTable) -> None:
    row = first(~table.correct)
    table.examples.clean_prediction[row] = table.examples.label[row]


def other_label(table: EvidenceTable) -> None:
    table.examples.label[0] = (table.examples.label[0] + 1) % 10


def kinder_worst_case(table: EvidenceTable) -> None:
    table.worst_case.broken[first_broken(table)] = False


def kinder_rounding(table: EvidenceTable) -> None:
    pgd = table.attacks["pgd_10"]
    pgd.broken_8bit[first(pgd.broken_8bit & pgd.tried)] = False


def shorter_distance(table: EvidenceTable) -> None:
    table.attacks["pgd_10"].distance[first_broken(table)] *= 0.5


def curve_distance(table: EvidenceTable) -> NDArray[np.float32]:
    assert table.curve is not None
    return table.curve.distance


def later_on_the_curve(table: EvidenceTable) -> None:
    distance = curve_distance(table)
    distance[first((distance > 0) & np.isfinite(distance))] = np.inf


def earlier_on_the_curve(table: EvidenceTable) -> None:
    distance = curve_distance(table)
    distance[(distance > 0.05) & np.isfinite(distance)] = distance[distance > 0].min()


@pytest.mark.parametrize(
    "change",
    [
        hide_a_broken_row,
        claim_a_broken_row,
        better_clean,
        other_label,
        kinder_worst_case,
        kinder_rounding,
        shorter_distance,
        later_on_the_curve,
        earlier_on_the_curve,
    ],
)
def test_a_forged_row_fails_even_when_resealed(
    folder: Path, target: EvaluationTarget, change: Callable[[EvidenceTable], None]
) -> None:
    edit_table(folder, change)
    reseal(folder)
    result = audit(folder, target, SUITE)
    assert not result.passed


def out_of_the_ball(images: Tensors) -> None:
    images["pgd_10.images"][0, 0, 10, 10] = 1 - images["pgd_10.images"][0, 0, 10, 10].round()


def out_of_the_box(images: Tensors) -> None:
    images["pgd_10.images"][0, 0, 0, 0] = -0.05


def one_image_gone(images: Tensors) -> None:
    for name in ("pgd_10.images", "pgd_10.ids"):
        images[name] = images[name][1:]


def one_image_twice(images: Tensors) -> None:
    for name in ("pgd_10.images", "pgd_10.ids"):
        images[name] = np.concatenate([images[name], images[name][:1]])


@pytest.mark.parametrize("change", [out_of_the_ball, out_of_the_box, one_image_gone, one_image_twice])
def test_a_forged_image_fails_even_when_resealed(
    folder: Path, target: EvaluationTarget, change: Callable[[Tensors], None]
) -> None:
    edit_images(folder, change)
    reseal(folder)
    result = audit(folder, target, SUITE)
    assert not result.passed


def test_the_originals_in_place_of_adversarial_images_fail(
    folder: Path, target: EvaluationTarget, few: ImageData
) -> None:
    place = {int(i): row for row, i in enumerate(few.ids)}

    def change(images: Tensors) -> None:
        rows = torch.tensor([place[int(i)] for i in images["pgd_10.ids"]])
        images["pgd_10.images"] = few.floats(rows).numpy()

    edit_images(folder, change)
    reseal(folder)
    assert "misclassified" in problems(audit(folder, target, SUITE))


def empty_images(images: Tensors) -> None:
    for name in BOTH:
        images[f"{name}.ids"] = images[f"{name}.ids"][:0]
        images[f"{name}.images"] = images[f"{name}.images"][:0]


def test_hiding_everything_an_attack_broke_is_found_by_attacking_again(
    folder: Path, target: EvaluationTarget
) -> None:
    def robust(table: EvidenceTable) -> None:
        for attack in table.attacks.values():
            for columns in (attack, table.worst_case):
                columns.broken[attack.tried] = columns.broken_8bit[attack.tried] = False

    edit_table(folder, robust)
    edit_images(folder, empty_images)
    reseal(folder)
    assert "attacked again" in problems(audit(folder, target, SUITE))


def untried(table: EvidenceTable) -> None:
    wrong = ~table.correct
    for attack in table.attacks.values():
        attack.tried[:] = False
        attack.distance[:] = np.nan
    for columns in (*table.attacks.values(), table.worst_case):
        columns.broken[:] = columns.broken_8bit[:] = wrong


def slandered(table: EvidenceTable) -> None:
    for attack in table.attacks.values():
        for column in (attack.broken, attack.broken_8bit, attack.invalid):
            column[attack.tried] = True
        attack.distance[:] = np.nan
    table.worst_case.broken[:] = table.worst_case.broken_8bit[:] = True


@pytest.mark.parametrize("change", [untried, slandered])
@pytest.mark.parametrize("mode", ["every", "worst_case"])
def test_rows_that_were_never_attacked_or_never_answered_fail(
    folder: Path, target: EvaluationTarget, change: Callable[[EvidenceTable], None], mode: str
) -> None:
    edit_table(folder, change)
    edit_images(folder, empty_images)
    summary = json.loads((folder / SUMMARY).read_text())
    summary["suite"]["mode"] = mode
    write_json(folder / SUMMARY, summary)
    reseal(folder)
    assert not audit(folder, target, SUITE).passed


def test_the_sample_that_is_attacked_again_cannot_be_foreseen(folder: Path, target: EvaluationTarget) -> None:
    """Whatever rows are hidden, some audit attacks them again."""

    def hide_half(table: EvidenceTable) -> None:
        rows = np.flatnonzero(table.attacks["pgd_10"].broken & table.attacks["pgd_10"].tried)[::2]
        for columns in (*table.attacks.values(), table.worst_case):
            columns.broken[rows] = columns.broken_8bit[rows] = False
        for attack in table.attacks.values():
            attack.distance[rows] = np.nan
        hidden.extend(table.examples.id[rows].tolist())

    def drop(images: Tensors) -> None:
        for name in BOTH:
            kept = ~np.isin(images[f"{name}.ids"], hidden)
            for part in (f"{name}.ids", f"{name}.images"):
                images[part] = images[part][kept]

    hidden: list[int] = []
    edit_table(folder, hide_half)
    edit_images(folder, drop)
    reseal(folder)
    assert not audit(folder, target, SUITE, sampling=Sampling(everything=True)).passed
    assert not all(audit(folder, target, SUITE, sampling=Sampling(share=0.2)).passed for _ in range(4))


def curve_untried(table: EvidenceTable) -> None:
    curve_distance(table)[curve_distance(table) > 0] = np.nan


def curve_kept_up(table: EvidenceTable) -> None:
    curve_distance(table)[curve_distance(table) > 0] = np.inf


@pytest.mark.parametrize("change", [curve_untried, curve_kept_up])
def test_a_nicer_curve_fails(
    folder: Path, target: EvaluationTarget, change: Callable[[EvidenceTable], None]
) -> None:
    def drop(images: Tensors) -> None:
        images["curve.ids"], images["curve.images"] = images["curve.ids"][:0], images["curve.images"][:0]

    edit_table(folder, change)
    edit_images(folder, drop)
    reseal(folder)
    assert not audit(folder, target, SUITE).passed


def test_what_the_report_prints_is_derived_anew(folder: Path, target: EvaluationTarget) -> None:
    original = (folder / SUMMARY).read_text()
    for path in (("threat", "words"), ("threat", "limit_text"), ("data", "classes"), ("suite", "attacks")):
        summary = json.loads(original)
        value = summary[path[0]][path[1]]
        if path[1] == "attacks":
            value[0]["title"] = "AutoAttack"
        else:
            summary[path[0]][path[1]] = "0.3" if isinstance(value, str) else ["cat", *value[1:]]
        write_json(folder / SUMMARY, summary)
        reseal(folder)
        assert "the record of threat" in problems(audit(folder, target, SUITE)), path


@pytest.mark.parametrize("key", ["clean", "worst_case"])
def test_a_nicer_number_fails(folder: Path, target: EvaluationTarget, key: str) -> None:
    summary = json.loads((folder / SUMMARY).read_text())
    summary[key]["accuracy"] += 0.01
    write_json(folder / SUMMARY, summary)
    assert f"{key}.accuracy" in problems(audit(folder, target, SUITE))


def test_a_wider_ball_than_the_one_evaluated_fails(folder: Path, target: EvaluationTarget) -> None:
    summary = json.loads((folder / SUMMARY).read_text())
    summary["threat"]["text"] = "linf:0.05"
    write_json(folder / SUMMARY, summary)
    assert "inside the threat set" in problems(audit(folder, target, SUITE))


def test_other_weights_fail(folder: Path, few: ImageData, digit_net: nn.Module) -> None:
    other = nn.Sequential(digit_net, nn.Linear(10, 10))
    result = audit(folder, EvaluationTarget(other.eval(), few, THREAT), SUITE)
    assert "weights" in problems(result)


def test_other_images_fail(folder: Path, digits: Splits, digit_net: nn.Module) -> None:
    result = audit(folder, EvaluationTarget(digit_net, digits.validation, THREAT), SUITE)
    assert "images are those named" in problems(result)


@pytest.mark.parametrize("name", [SUMMARY, TABLE, IMAGES])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_truncated_or_missing_file_fails_with_its_name(
    folder: Path, target: EvaluationTarget, name: str, keep: float
) -> None:
    content = (folder / name).read_bytes()
    if keep:
        (folder / name).write_bytes(content[: int(len(content) * keep)])
    else:
        (folder / name).unlink()
    result = audit(folder, target, SUITE)
    assert name in problems(result)


def test_a_flipped_byte_fails(folder: Path, target: EvaluationTarget) -> None:
    content = bytearray((folder / IMAGES).read_bytes())
    content[-100] ^= 0x40
    (folder / IMAGES).write_bytes(bytes(content))
    assert "the files are those" in problems(audit(folder, target, SUITE))


def test_another_schema_is_refused(folder: Path) -> None:
    summary = json.loads((folder / SUMMARY).read_text())
    write_json(folder / SUMMARY, summary | {"schema": 99})
    with pytest.raises(EvidenceError, match="schema 99"):
        read_evidence(folder)
