"""The gate of a pipeline: every condition, the files, and the exit code."""

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_results import result_of, standing

from robustly.api import Result
from robustly.api.gate import ANY, AT_LEAST, Condition, Limits, audit_condition, gate
from robustly.attacks import PGD
from robustly.cli import main
from robustly.evaluation import SUITES, Suite
from robustly.evaluation.recording import threat_record
from robustly.evidence.audit_record import AuditRecord
from robustly.evidence.summary import Summary
from robustly.threats import parse_threat

SHARE = standing(0.1) / 24


@pytest.fixture(scope="module")
def result() -> Result:
    return result_of("single_step")


def conditions(folder: Path, limits: Limits) -> dict[str, Condition]:
    return {one.name: one for one in gate(folder, limits).conditions}


def saved(result: Result, folder: Path, **fields: Any) -> Path:
    return replace(result, summary=replace(result.summary, **fields)).save(folder)


def test_the_point_estimate_decides_or_the_lower_end(result: Result, tmp_path: Path) -> None:
    folder, share = result.save(tmp_path / "kept"), result.summary.metrics.worst_case.robust
    assert share.share == SHARE
    for value, confident, passed in (
        (SHARE, False, True),
        (SHARE + 0.001, False, False),
        (share.low, True, True),
        (share.low + 0.001, True, False),
    ):
        found = gate(folder, Limits(robust=value, confident=confident, suite="single_step"))
        assert found.passed is passed, found
        assert found.conditions[-1].limit == value
        assert found.conditions[-1].value == (share.low if confident else SHARE)


def test_a_missing_certificate_fails_its_limit(result: Result, tmp_path: Path) -> None:
    found = conditions(result.save(tmp_path / "kept"), Limits(certified=0.0, suite=ANY))
    assert found["certified accuracy"].words == "not measured; at least 0 % is required"
    assert not found["certified accuracy"].passed


def test_a_weaker_suite_fails_unless_it_is_allowed(result: Result, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "kept")
    found = conditions(folder, Limits(clean=0.5))["suite"]
    assert not found.passed
    assert found.words == (
        "the numbers are those of suite single_step, which is weaker; at least standard is required "
        "(--suite any allows it)"
    )
    for allowed in (ANY, "single_step"):
        assert conditions(folder, Limits(clean=0.5, suite=allowed))["suite"].passed
    assert "not known" in conditions(folder, Limits(clean=0.5, suite="aa_rand"))["suite"].words
    with pytest.raises(ValueError, match="unknown suite 'stanard': allowed are quick, standard"):
        gate(folder, Limits(clean=0.5, suite="stanard"))


def test_a_suite_under_a_known_name_must_have_its_attacks(tmp_path: Path) -> None:
    weak = result_of(Suite("standard", {"screen": PGD(1)}))
    found = conditions(weak.save(tmp_path / "weak"), Limits(clean=0.5, suite=ANY))["suite"]
    assert not found.passed
    assert "standard, but its attacks differ" in found.words


def test_a_suite_under_a_known_name_must_select_its_examples(tmp_path: Path) -> None:
    full = result_of("quick")
    assert conditions(full.save(tmp_path / "full"), Limits(clean=0.5, suite="dynat"))["suite"].passed
    attacks = tuple(replace(one, plan=replace(one.plan, sample=1)) for one in full.summary.suite.attacks)
    folder = saved(full, tmp_path / "few", suite=replace(full.summary.suite, attacks=attacks))
    assert "other examples were selected for" in conditions(folder, Limits(clean=0.5, suite="quick"))["suite"].words


def test_own_suites_pass_only_under_their_own_name(tmp_path: Path) -> None:
    folder = result_of(Suite("mine", {"pgd": PGD(2)})).save(tmp_path / "kept")
    assert not conditions(folder, Limits(clean=0.5))["suite"].passed
    assert conditions(folder, Limits(clean=0.5, suite="mine"))["suite"].passed


def test_every_suite_is_ordered_and_the_order_has_no_circle() -> None:
    assert set(AT_LEAST) == set(SUITES)
    for name, stronger in AT_LEAST.items():
        for other in stronger:
            assert name not in AT_LEAST[other]
            assert set(AT_LEAST[other]) <= set(stronger), f"{other} is above {name}, and so is all above {other}"


@pytest.mark.parametrize(
    ("threat", "passed"),
    [("linf:0.1", True), ("linf:0.05", True), ("linf:0.11", False), ("l2:0.1", False), ("rotation:1", False)],
)
def test_the_threat_is_at_least_the_required_one(result: Result, tmp_path: Path, threat: str, passed: bool) -> None:
    found = conditions(result.save(tmp_path / "kept"), Limits(clean=0.5, threat=threat))["threat"]
    assert found.passed is passed
    assert found.words == f"the threat is linf:0.1; at least {threat} is required"


def test_a_masked_threat_is_smaller_than_any_other(result: Result, tmp_path: Path) -> None:
    masked = replace(result.summary.threat, text="linf:0.1@3f2a9c81d0e4")
    folder = saved(result, tmp_path / "kept", threat=masked)
    assert not conditions(folder, Limits(clean=0.5, threat="linf:0.001"))["threat"].passed


@pytest.mark.parametrize(
    ("own", "least", "passed"),
    [
        ("rotation:30", "rotation:10", True),
        ("rotation:10", "rotation:30", False),
        ("rotation:30", "shift:3", False),
        ("patch:5", "patch:3", True),
        ("corruption:3", "corruption:2", True),
        ("physical_patch:8", "physical_patch:8,rotation=5", False),
        ("affine:rotation=30,shift=3", "affine:rotation=10", False),
        ("rotation:30+linf:0.1", "rotation:10", False),
    ],
)
def test_a_larger_limit_of_the_same_kind_contains_a_smaller_one(
    result: Result, tmp_path: Path, own: str, least: str, passed: bool
) -> None:
    folder = saved(result, tmp_path / "kept", threat=threat_record(parse_threat(own)))
    assert conditions(folder, Limits(clean=0.5, threat=least))["threat"].passed is passed


@pytest.mark.parametrize(
    ("fields", "name", "allow"),
    [
        ({"masking": ("Square broke more.",)}, "gradient masking", "allow_masking"),
        ({"failures": {"fgsm": "out of memory"}}, "attacks", "allow_failed"),
    ],
)
def test_masking_and_failed_attacks_fail(
    result: Result, tmp_path: Path, fields: dict[str, Any], name: str, allow: str
) -> None:
    folder = saved(result, tmp_path / "kept", **fields)
    assert not conditions(folder, Limits(clean=0.5, suite=ANY))[name].passed
    found = conditions(folder, Limits(clean=0.5, suite=ANY, **{allow: True}))[name]  # type: ignore[arg-type]
    assert found.passed
    assert "allowed" in found.words


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "summary.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return edit


def swapped_rows(folder: Path) -> None:
    other = result_of("single_step", count=25).save(folder.parent / "other")
    shutil.copy(other / "evidence.parquet", folder / "evidence.parquet")


@pytest.mark.parametrize(
    "damage",
    [
        edited(lambda values: values["worst_case"].update(robust=24, accuracy=1.0)),
        edited(lambda values: (values.pop("masking"), values.pop("findings"))),
        swapped_rows,
    ],
)
def test_changed_files_fail(result: Result, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = result.save(tmp_path / "kept")
    assert conditions(folder, Limits(clean=0.5))["evidence"].passed
    damage(folder)
    assert not conditions(folder, Limits(clean=0.5))["evidence"].passed


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "at least one of --clean, --robust and --certified"),
        ({"clean": 85.0}, "between 0 and 1, got 85: write 0.85"),
        ({"robust": float("nan")}, "between 0 and 1, got nan$"),
        ({"certified": -0.1}, "got -0.1$"),
        ({"clean": 0.5, "threat": "l9:1"}, "unknown threat 'l9'"),
    ],
)
def test_wrong_limits_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**limits)


def test_the_audit_is_a_condition() -> None:
    record = AuditRecord(False, 9, ("one", "two"), "G.", (), "", "", "")
    assert audit_condition(record) == Condition("audit", False, "2 checks failed: one; two")
    assert audit_condition(replace(record, passed=True, failed=())) == Condition("audit", True, "9 checks; G.")
    assert not audit_condition(None).passed


def test_the_command_prints_conditions_and_writes_files(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary: Summary = result.summary
    name = "evil & <x>\x1b\uffff"
    folder = saved(
        result, tmp_path / "kept", masking=(name,), data=replace(summary.data, trained_on=3, selected_on=0)
    )
    files = [tmp_path / "new" / "gate.xml", tmp_path / "gate.json"]
    words = ["gate", str(folder), "--clean", "0.9", "--robust", "0.999", "--suite", "single_step"]
    assert main([*words, "--junit", str(files[0]), "--json", str(files[1])]) == 1
    said = capsys.readouterr().out
    assert "ok     clean accuracy: 100.0 %" in said
    assert "FAILED robust accuracy: " in said
    assert "note   3 of 24 test images were trained on" in said
    assert "GATE FAILED: 4 of 6 conditions" in said
    assert "\x1b" not in said
    root = ET.parse(files[0]).getroot()
    cases = {one.get("name"): one for one in root.iter("testcase")}
    assert len(cases) == 6
    assert {name for name, one in cases.items() if one.find("failure") is not None} == {
        "gradient masking",
        "robust accuracy",
    }
    assert (root[0].get("tests"), root[0].get("failures")) == ("6", "2")
    values = json.loads(files[1].read_text())
    assert [one["name"] for one in values["conditions"]] == list(cases)
    assert values["passed"] is False
    assert values["conditions"][-1]["value"] == SHARE
    assert main(["gate", str(folder), "--clean", "0.9", "--suite", "single_step", "--allow-masking"]) == 0
    assert "gate passed: 5 of 5 conditions" in capsys.readouterr().out


def test_wrong_input_is_one_sentence(result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = result.save(tmp_path / "kept")
    for words, message in (
        (["--clean", "0.5", "--audit"], "--audit needs the run with its weights"),
        (["--clean", "0.5", "--json", str(tmp_path)], "is a folder: name a file"),
        (["--clean", "0.5", "--as", "../x"], "--as takes letters, digits and _"),
        (["--clean", "0.5", "--threat", "linf:0.1"], "gate takes no settings, got --threat"),
    ):
        assert main(["gate", str(folder), *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


@pytest.mark.slow
def test_a_run_is_audited_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small = ["--data.train_limit", "100", "--data.validation", "20", "--data.test", "12", "--model.width", "0.25"]
    small += ["--training.epochs", "1", "--training.epsilon_ramp", "0", "--training.validation_steps", "1"]
    small += ["--threat", "linf:0.05", "--evaluation.curve_count", "2", "--evaluation.suite", "single_step"]
    assert main(["train", "mnist5k/standard", "--out", str(run), *small]) == 0
    assert main(["evaluate", str(run)]) == 0
    words = ["gate", str(run), "--clean", "0", "--suite", "single_step", "--audit"]
    assert main(words) == 0, capsys.readouterr().out
    assert "ok     audit: " in capsys.readouterr().out
    edited(lambda values: values["model"].update(name="other"))(run / "evaluation")
    assert main(words) == 1
    assert "FAILED audit: 1 checks failed: names of model and data" in capsys.readouterr().out


def test_a_changed_number_of_images_and_a_removed_sentence_fail(result: Result, tmp_path: Path) -> None:
    limits = Limits(robust=0.1, suite=ANY)
    more = saved(result, tmp_path / "more", data=replace(result.summary.data, count=10_000))
    assert "24 rows for 10000 images" in conditions(more, limits)["evidence"].words
    findings = tuple(
        replace(one, passed=False) if one.id == "zero_gradient" else one for one in result.summary.findings
    )
    silent = saved(result, tmp_path / "silent", findings=findings)
    assert "is not among the sentences on masked gradients" in conditions(silent, limits)["evidence"].words
