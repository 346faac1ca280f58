"""The audit passes honest evidence and fails every kind of tampering that we could think of."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustly.attacks import ATTACKS
from robustly.data import Splits
from robustly.evaluation import (
    Audit,
    EvaluationTarget,
    Evidence,
    Suite,
    audit,
    evaluate,
    read_evidence,
    write_evidence,
)
from robustly.evaluation.evidence import IMAGES, SUMMARY, TABLE, EvidenceError
from robustly.evaluation.metrics import metrics
from robustly.files import file_sha256, write_json
from robustly.threats.lp import ThreatModel

THREAT = ThreatModel("linf", 0.08)
SUITE = Suite("test", {"pgd_10": ATTACKS["pgd_10"], "cw_20": ATTACKS["cw_20"]}, curve="pgd_10")


@pytest.fixture(scope="module")
def evidence(digit_net: nn.Module, digits: Splits) -> Evidence:
    return evaluate(digit_net, digits.test, THREAT, SUITE, curve_count=60)


@pytest.fixture
def folder(evidence: Evidence, tmp_path: Path) -> Path:
    write_evidence(evidence, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def target(digit_net: nn.Module, digits: Splits) -> EvaluationTarget:
    return EvaluationTarget(digit_net, digits.test, THREAT)


def problems(result: Audit) -> str:
    return "; ".join(f"{check.name}: {check.problem}" for check in result.checks if not check.passed)


def test_honest_evidence_passes(folder: Path, target: EvaluationTarget) -> None:
    result = audit(folder, target, SUITE)
    assert result.passed, problems(result)
    assert any("attacked again" in check.name for check in result.checks)


def test_evidence_survives_the_disk(folder: Path, evidence: Evidence) -> None:
    back = read_evidence(folder)
    assert back.table.keys() == evidence.table.keys()
    for name, values in evidence.table.items():
        assert torch.equal(back.table[name].nan_to_num(-1), values.nan_to_num(-1))
    assert {name: value.shape for name, value in back.images.items()} == {
        name: value.shape for name, value in evidence.images.items()
    }


def reseal(folder: Path) -> None:
    """What a careful forger does: new hashes, and numbers that follow from the forged rows."""
    summary = json.loads((folder / SUMMARY).read_text())
    table = {
        name: torch.from_numpy(pq.read_table(folder / TABLE)[name].to_numpy().copy())
        for name in pq.read_table(folder / TABLE).column_names
    }
    numbers = metrics(
        table,
        attacks=list(SUITE.attacks),
        certificates={},
        classes=summary["data"]["classes"],
        epsilon=summary["threat"]["epsilon"],
        curve=summary["security_curve"]["epsilon"][1:],
    )
    for name, entry in numbers["attacks"].items():
        summary["attacks"][name] |= entry
    summary["security_curve"] |= numbers["security_curve"]
    summary |= {key: numbers[key] for key in ("clean", "worst_case", "per_class")}
    summary["files"] = {name: file_sha256(folder / name) for name in (TABLE, IMAGES)}
    write_json(folder / SUMMARY, summary)


def edit_table(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    back = read_evidence(folder)
    table = dict(back.table)
    change(table)
    write_evidence(Evidence(table, back.images, back.summary), folder)


def edit_images(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    images = load_file(folder / IMAGES)
    change(images)
    save_file({name: value.contiguous() for name, value in images.items()}, folder / IMAGES)


def first_broken(table: dict[str, torch.Tensor]) -> int:
    return int((table["pgd_10.broken"] & table["pgd_10.tried"]).nonzero()[0, 0])


def hide_a_broken_row(table: dict[str, torch.Tensor]) -> None:
    row = first_broken(table)
    for name in ("pgd_10.broken", "cw_20.broken", "worst_case.broken"):
        table[name][row] = False


def claim_a_broken_row(table: dict[str, torch.Tensor]) -> None:
    row = int((table["pgd_10.tried"] & ~table["pgd_10.broken"]).nonzero()[0, 0])
    table["pgd_10.broken"][row] = table["worst_case.broken"][row] = True


def better_clean(table: dict[str, torch.Tensor]) -> None:
    row = int((table["clean_prediction"] != table["label"]).nonzero()[0, 0])
    table["clean_prediction"][row] = table["label"][row]


def other_label(table: dict[str, torch.Tensor]) -> None:
    table["label"][0] = (table["label"][0] + 1) % 10


def kinder_worst_case(table: dict[str, torch.Tensor]) -> None:
    table["worst_case.broken"][first_broken(table)] = False


def kinder_rounding(table: dict[str, torch.Tensor]) -> None:
    row = int((table["pgd_10.broken_8bit"] & table["pgd_10.tried"]).nonzero()[0, 0])
    table["pgd_10.broken_8bit"][row] = False


def shorter_distance(table: dict[str, torch.Tensor]) -> None:
    table["pgd_10.distance"][first_broken(table)] *= 0.5


def later_on_the_curve(table: dict[str, torch.Tensor]) -> None:
    hit = ((table["curve.distance"] > 0) & table["curve.distance"].isfinite()).nonzero()[0, 0]
    table["curve.distance"][hit] = torch.inf


def earlier_on_the_curve(table: dict[str, torch.Tensor]) -> None:
    hit = (table["curve.distance"] > 0.05) & table["curve.distance"].isfinite()
    table["curve.distance"][hit] = table["curve.distance"][table["curve.distance"] > 0].min()


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
    folder: Path, target: EvaluationTarget, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    edit_table(folder, change)
    reseal(folder)
    result = audit(folder, target, SUITE)
    assert not result.passed


def out_of_the_ball(images: dict[str, torch.Tensor]) -> None:
    images["pgd_10.images"][0, 0, 10, 10] = 1 - images["pgd_10.images"][0, 0, 10, 10].round()


def out_of_the_box(images: dict[str, torch.Tensor]) -> None:
    images["pgd_10.images"][0, 0, 0, 0] = -0.05


def one_image_gone(images: dict[str, torch.Tensor]) -> None:
    for name in ("pgd_10.images", "pgd_10.ids"):
        images[name] = images[name][1:]


def one_image_twice(images: dict[str, torch.Tensor]) -> None:
    for name in ("pgd_10.images", "pgd_10.ids"):
        images[name] = torch.cat([images[name], images[name][:1]])


@pytest.mark.parametrize("change", [out_of_the_ball, out_of_the_box, one_image_gone, one_image_twice])
def test_a_forged_image_fails_even_when_resealed(
    folder: Path, target: EvaluationTarget, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    edit_images(folder, change)
    reseal(folder)
    result = audit(folder, target, SUITE)
    assert not result.passed


def test_the_originals_in_place_of_adversarial_images_fail(
    folder: Path, target: EvaluationTarget, digits: Splits
) -> None:
    place = {int(i): row for row, i in enumerate(digits.test.ids)}

    def change(images: dict[str, torch.Tensor]) -> None:
        rows = torch.tensor([place[int(i)] for i in images["pgd_10.ids"]])
        images["pgd_10.images"] = digits.test.floats(rows)

    edit_images(folder, change)
    reseal(folder)
    assert "misclassified" in problems(audit(folder, target, SUITE))


def test_hiding_everything_an_attack_broke_is_found_by_attacking_again(
    folder: Path, target: EvaluationTarget
) -> None:
    def nothing(images: dict[str, torch.Tensor]) -> None:
        for name in ("pgd_10", "cw_20"):
            images[f"{name}.ids"] = images[f"{name}.ids"][:0]
            images[f"{name}.images"] = images[f"{name}.images"][:0]

    def robust(table: dict[str, torch.Tensor]) -> None:
        for name in ("pgd_10", "cw_20"):
            for column in ("broken", "broken_8bit"):
                table[f"{name}.{column}"] &= ~table[f"{name}.tried"]
                table[f"worst_case.{column}"] &= ~table[f"{name}.tried"]

    edit_table(folder, robust)
    edit_images(folder, nothing)
    reseal(folder)
    assert "attacked again" in problems(audit(folder, target, SUITE))


def empty_images(images: dict[str, torch.Tensor]) -> None:
    for name in ("pgd_10", "cw_20"):
        images[f"{name}.ids"] = images[f"{name}.ids"][:0]
        images[f"{name}.images"] = images[f"{name}.images"][:0]


def untried(table: dict[str, torch.Tensor]) -> None:
    wrong = table["clean_prediction"] != table["label"]
    for name in ("pgd_10", "cw_20"):
        table[f"{name}.tried"][:] = False
        for column in (f"{name}.broken", f"{name}.broken_8bit"):
            table[column] = wrong.clone()
        table[f"{name}.distance"][:] = torch.nan
    for column in ("worst_case.broken", "worst_case.broken_8bit"):
        table[column] = wrong.clone()


def slandered(table: dict[str, torch.Tensor]) -> None:
    for name in ("pgd_10", "cw_20"):
        tried = table[f"{name}.tried"]
        for column in ("broken", "broken_8bit", "invalid"):
            table[f"{name}.{column}"] |= tried
        table[f"{name}.distance"][:] = torch.nan
    for column in ("worst_case.broken", "worst_case.broken_8bit"):
        table[column][:] = True


@pytest.mark.parametrize("change", [untried, slandered])
@pytest.mark.parametrize("mode", ["every", "worst_case"])
def test_rows_that_were_never_attacked_or_never_answered_fail(
    folder: Path, target: EvaluationTarget, change: Callable[[dict[str, torch.Tensor]], None], mode: str
) -> None:
    edit_table(folder, change)
    edit_images(folder, empty_images)
    summary = json.loads((folder / SUMMARY).read_text())
    summary["suite"]["mode"] = mode
    write_json(folder / SUMMARY, summary)
    reseal(folder)
    assert not audit(folder, target, SUITE).passed


def test_the_sample_that_is_attacked_again_cannot_be_foreseen(folder: Path, target: EvaluationTarget) -> None:
    """Whatever rows are hidden, some audit looks at them."""

    def hide_half(table: dict[str, torch.Tensor]) -> None:
        rows = (table["pgd_10.broken"] & table["pgd_10.tried"]).nonzero()[::2, 0]
        for name in ("pgd_10", "cw_20"):
            for column in ("broken", "broken_8bit"):
                table[f"{name}.{column}"][rows] = False
                table[f"worst_case.{column}"][rows] = False
            table[f"{name}.distance"][rows] = torch.nan
        hidden.extend(table["id"][rows].tolist())

    def drop(images: dict[str, torch.Tensor]) -> None:
        for name in ("pgd_10", "cw_20"):
            kept = ~torch.isin(images[f"{name}.ids"], torch.tensor(hidden))
            images[f"{name}.ids"], images[f"{name}.images"] = (
                images[f"{name}.ids"][kept],
                images[f"{name}.images"][kept],
            )

    hidden: list[int] = []
    edit_table(folder, hide_half)
    edit_images(folder, drop)
    reseal(folder)
    assert not audit(folder, target, SUITE, rerun=1000).passed
    assert not all(audit(folder, target, SUITE, rerun=20).passed for _ in range(4))


def curve_untried(table: dict[str, torch.Tensor]) -> None:
    table["curve.distance"][table["curve.distance"] > 0] = torch.nan


def curve_kept_up(table: dict[str, torch.Tensor]) -> None:
    table["curve.distance"][table["curve.distance"] > 0] = torch.inf


@pytest.mark.parametrize("change", [curve_untried, curve_kept_up])
def test_a_nicer_curve_fails(
    folder: Path, target: EvaluationTarget, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    def drop(images: dict[str, torch.Tensor]) -> None:
        images["curve.ids"], images["curve.images"] = images["curve.ids"][:0], images["curve.images"][:0]

    edit_table(folder, change)
    edit_images(folder, drop)
    reseal(folder)
    assert not audit(folder, target, SUITE).passed


def test_what_the_report_prints_is_derived_anew(folder: Path, target: EvaluationTarget) -> None:
    original = (folder / SUMMARY).read_text()
    for path in (("threat", "words"), ("threat", "epsilon_text"), ("data", "classes"), ("suite", "attacks")):
        summary = json.loads(original)
        value = summary[path[0]][path[1]]
        if path[1] == "attacks":
            value[0]["title"] = "AutoAttack"
        else:
            summary[path[0]][path[1]] = "0.3" if isinstance(value, str) else ["cat", *value[1:]]
        write_json(folder / SUMMARY, summary)
        reseal(folder)
        assert "what is said of" in problems(audit(folder, target, SUITE)), path


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


def test_other_weights_fail(folder: Path, digits: Splits, digit_net: nn.Module) -> None:
    other = nn.Sequential(digit_net, nn.Linear(10, 10))
    result = audit(folder, EvaluationTarget(other.eval(), digits.test, THREAT), SUITE)
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
