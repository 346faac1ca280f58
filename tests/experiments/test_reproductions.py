"""Reproductions: outlines, their runs at each scale, and the time that they take."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustly.cli.recipes import read_recipe, recipe_names
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.reproduction_cost import (
    DataSize,
    before_and_between,
    evaluation_seconds,
    seconds_of,
    timed_pass,
    training_seconds,
)
from robustly.experiments.reproduction_plan import Plan, planned
from robustly.experiments.reproductions import Outline, outline_from, read_outline
from robustly.experiments.run_folder import evaluation_folder
from robustly.models import ModelConfig
from robustly.reports.tables.paper_tables import published_in
from robustly.settings import SettingsError

FOLDER = Path("/reproduction")
TINY = {
    "title": "A method",
    "source": "A paper",
    "paper": {},
    "data": {"mnist5k": {"classes": 10, "shape": [1, 28, 28], "train": 3500, "test": 1000}},
    "tables": {
        "table1": {
            "title": "T1",
            "columns": ["clean", "pgd_20", "aa"],
            "rows": [["", "AT", "at"], ["", "D", "dynat"]],
        },
        "table4": {"title": "T4", "columns": ["clean", "apgd", "cw"], "rows": [["", "AT", "other_at"]]},
    },
    "curves": {"D": "dynat"},
    "clean": ["table1"],
    "hybrid": "table1",
    "controls": {"at_ce": "at"},
    "repeated": "dynat",
    "scales": {
        "tiny": {
            "about": "",
            "epochs": 1,
            "images": 30,
            "autoattack_images": 10,
            "runs": {"at": "mnist5k/pgd_at", "other_at": "mnist5k/pgd_at", "dynat": "mnist5k/dynat"},
        }
    },
}


def plan_of(outline: Outline, scale: str, seeds: int = 1, sources: dict[str, str] | None = None) -> Plan:
    chosen = outline.scales[scale]
    tables = chosen.tables or tuple(outline.tables)
    return planned(outline, chosen, FOLDER, read_recipe, seeds=seeds, tables=tables, sources=sources or {})


def test_runs_of_equal_recipe_and_settings_are_one_run_with_the_columns_of_all_rows() -> None:
    plan = plan_of(outline_from("tiny", TINY), "tiny", seeds=2)
    names = [cell.name for cell in plan.cells]
    assert names == ["at__seed=0", "dynat__seed=0", "at__seed=1", "dynat__seed=1", "dynat__again"]
    assert plan.folders["other_at"] == plan.folders["at"] == (FOLDER / "at__seed=0", FOLDER / "at__seed=1")
    assert plan.repetition == (FOLDER / "dynat__seed=0", FOLDER / "dynat__again")
    columns, autoattack = plan.cells[0].evaluations
    assert columns.words[:2] == ("--suite", "pgd_20,apgd,cw_20")
    assert columns.words[2:6] == ("--evaluation.mode", "every", "--evaluation.count", "30")
    assert (autoattack.words[:2], autoattack.label) == (("--suite", "aa_standard"), "aa")
    assert plan.cells[1].overrides == plan.cells[-1].overrides
    assert plan.cells[-1].evaluations == ()


def test_settings_of_the_data_are_another_run() -> None:
    outline = outline_from("tiny", TINY)
    here, there = (plan_of(outline, "tiny", sources=sources) for sources in ({}, {"mnist5k": "/data"}))
    assert "--data.source=/data" in there.cells[0].overrides
    assert "--data.expected_classes=10" in there.cells[0].overrides
    assert not any("data.source" in word for word in here.cells[0].overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curves": {"D": "lost"}}, "no recipe for the run 'lost'"),
        ({"unknown": 1}, "unknown key 'tiny.unknown'"),
        ({"tables": {"table1": {"title": "T", "columns": ["clear"], "rows": []}}}, "unknown name 'clear'"),
    ],
)
def test_a_wrong_outline_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        outline_from("tiny", {**TINY, **change})


@pytest.mark.slow
def test_every_run_of_dynat_has_a_recipe_and_attacks_in_evaluation_mode_at_every_scale() -> None:
    outline, known = read_outline("dynat"), recipe_names()
    for name, scale in outline.scales.items():
        assert all(run.recipe in known for run in scale.runs.values()), name
        for cell in plan_of(outline, name).cells:
            config = cell.config(read_recipe)
            mode = getattr(config.method.inner, "mode", "eval")
            assert mode == "eval", f"{name}: {cell.name}"
            frozen = config.frozen_networks
            assert not frozen, f"{name}: {cell.name}"


@pytest.mark.parametrize("scale", ["mnist", "small", "paper"])
def test_controls_differ_in_their_attack_and_labels_only(scale: str) -> None:
    outline = read_outline("dynat")
    plan = plan_of(outline, scale)
    configs = {cell.folder: cell.planned_config(read_recipe) for cell in plan.cells}
    ce, kl, guided = (configs[plan.folders[outline.controls[role]][0]] for role in ("at_ce", "at_kl", "guided"))
    for section in ("data", "model", "optimizer", "schedule", "training", "threat", "runtime"):
        assert getattr(ce, section) == getattr(kl, section) == getattr(guided, section), section
    assert kl.method.inner == guided.method.inner
    assert replace(ce.method.inner, objective="kl", start="gaussian") == kl.method.inner
    assert (ce.method.loss, ce.method.labels) == (kl.method.loss, kl.method.labels)


def test_every_row_of_the_paper_has_its_published_numbers() -> None:
    outline = read_outline("dynat")
    for key in ("table1", "table2", "table3", "table4"):
        table = outline.tables[key]
        for row in table.rows:
            numbers = published_in(table.published, row.name, row.group if table.heading else "")
            assert set(table.columns) - {"all"} <= set(numbers), f"{key}: {row.name}"
    upper, lower = (
        published_in("arXiv 2408.13102, table 3", "GAIRAT", name)["clean"] for name in ("WRN", "ResNet")
    )
    assert lower == pytest.approx(0.8227)
    assert upper == pytest.approx(0.8630)


def test_the_time_of_a_run_is_its_passes_times_the_time_of_one() -> None:
    outline = outline_from("tiny", TINY)
    [at, *_] = plan_of(outline, "tiny").cells
    config, data = at.config(read_recipe), outline.data["mnist5k"]
    # PGD-7 and the step on its result: eight forward and eight backward passes
    assert training_seconds(config, data, lambda model: 1.0) == 3500 * 8
    assert timed_pass(ModelConfig("small_cnn", width=0.25), data, torch.device("cpu")) > 0
    one = seconds_of([at], {at.name: config}, outline.data, torch.device("cpu"))
    assert one > 0


def test_the_time_has_the_epochs_of_a_guide_before_the_run_and_the_validation() -> None:
    data = DataSize(10, (1, 28, 28), 3500, 1000)
    config = build_config(
        apply_overrides(read_recipe("mnist5k/dynat_guided"), ["--training.epochs=6", "--guide.pretrain=4"])
    )
    held_out = 500 * 6 * (0.5 * 10 + 1)  # PGD-10, of which half of the images leave early
    assert before_and_between(config, data, lambda model: 1.0) == 3500 * 4 + held_out
    of_model = replace(config, pretrain=10, model=replace(config.model, name="resnet18"))
    seconds = before_and_between(of_model, data, lambda model: 2.0 if model.name == "resnet18" else 1.0)
    assert seconds == 3500 * (4 + 2 * 10) + 2 * held_out


def test_what_a_run_has_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outline = outline_from("tiny", TINY)
    [at, *_] = (replace(cell, sweep=tmp_path) for cell in plan_of(outline, "tiny").cells)
    config, data = at.planned_config(read_recipe), outline.data["mnist5k"]
    monkeypatch.setattr("robustly.experiments.reproduction_cost.timed_pass", lambda *_: 1.0)

    def seconds() -> float:
        return seconds_of([at], {at.name: config}, outline.data, torch.device("cpu"))

    whole, tests = seconds(), evaluation_seconds(at, config, data, lambda model: 1.0)
    at.folder.mkdir(parents=True)
    (at.folder / "model.safetensors").touch()
    assert seconds() == tests + 3.0 * len(at.evaluations)
    assert whole > seconds() + 3500 * 8
    for one in at.evaluations:
        place = evaluation_folder(at.folder, one.label)
        place.mkdir()
        (place / "summary.json").touch()
    assert seconds() == 0


def test_passes_are_timed_with_the_threads_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    outline, seen = outline_from("tiny", TINY), []

    def timed(*_: object) -> float:
        seen.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr("robustly.experiments.reproduction_cost.timed_pass", timed)
    [at, *_] = plan_of(outline, "tiny").cells
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seconds_of([at], {at.name: at.config(read_recipe)}, outline.data, torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_sizes_of_the_data_are_those_of_the_recipes() -> None:
    for name, size in read_outline("dynat").data.items():
        assert isinstance(size, DataSize)
        assert size.classes == (100 if name == "cifar100" else 10)
