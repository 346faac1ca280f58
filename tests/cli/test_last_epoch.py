"""`robustly evaluate --checkpoint last`: the weights after the last epoch, audited, and compared in a row apart."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_tools import refusal
from safetensors.torch import load_file

from robustly.cli import main
from robustly.cli.recipes import read_recipe
from robustly.evaluation import suite_named
from robustly.evidence.provenance import LAST_CHECKPOINT
from robustly.experiments.configuration import build_config
from robustly.experiments.last_epoch import last_weights
from robustly.experiments.run_folder import open_run
from robustly.experiments.seen_attacks import seen_attacks
from robustly.models import save_weights
from robustly.reports.tables.evaluations import read_evaluated, read_rows
from robustly.reports.tables.method_tables import method_tables
from robustly.training.engine.loop import BEST, FINAL, LAST

SMALL = [
    "--data.train_limit", "300", "--data.validation", "60", "--data.test", "40", "--data.image_size", "16",
    "--model.width", "0.25", "--training.epochs", "3", "--training.epsilon_ramp", "0", "--threat", "linf:0.1",
    "--training.validation_steps", "1", "--evaluation.curve_count", "20", "--evaluation.stages.pgd.attack",
    "pgd_10",
    "--evaluation.suite", "mine", "--method.inner.steps", "1", "--method.parameters.ema.decay", "0.9",
    "--runtime.device", "cpu", "--optimizer.learning_rate", "0.02",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "mnist5k/pgd_at", "--out", str(folder), *SMALL]) == 0
    return folder


def test_the_name_of_the_file_is_that_of_training() -> None:
    assert LAST_CHECKPOINT == LAST


def test_the_weights_are_those_that_the_last_epoch_would_release(run: Path) -> None:
    state = torch.load(run / LAST, weights_only=True)
    found = last_weights(run, open_run(run))
    average = next(iter(state["memory"].values()))
    assert found.keys() == state["networks"]["model"].keys()
    assert any(not torch.equal(found[name], state["networks"]["model"][name]) for name in found), "the average"
    assert all(any(torch.equal(found[name], value) for value in average.values()) for name in found)
    if state["best_epoch"] == state["epoch"] - 1:
        assert all(torch.equal(value, found[name]) for name, value in load_file(run / FINAL).items())


@pytest.mark.slow
def test_the_last_epoch_is_evaluated_audited_and_compared_apart(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = load_file(run / FINAL)  # selected weights that are not those of the last epoch, whichever was selected
    first = next(iter(other))
    other[first] = other[first] * 0.5
    for name in (FINAL, BEST):
        save_weights(other, run / name)
    assert main(["evaluate", str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--checkpoint", "last"]) == 0
    out = capsys.readouterr().out
    assert "run (last epoch): 40 images" in out
    assert "robustly report" in out
    assert "--as last" in out
    best, last = (
        json.loads((run / name / "summary.json").read_text()) for name in ("evaluation", "evaluation_last")
    )
    assert (best["model"]["checkpoint"], last["model"]["checkpoint"]) == (FINAL, LAST)
    assert (best["seen_attacks"], last["seen_attacks"]) == ({"pgd": "training"}, {"pgd": "training"})
    assert best["model"]["weights_sha256"] != last["model"]["weights_sha256"]
    assert main(["audit", str(run), "--as", "last", "--share", "0.5", "--confidence", "0.5"]) == 0
    assert main(["audit", str(run), "--share", "0.5", "--confidence", "0.5"]) == 0
    assert main(["report", str(run), "--as", "last"]) == 0
    assert f"{LAST} checkpoint" in (run / "report_last.html").read_text()
    capsys.readouterr()
    assert main(["compare", str(run), "--csv", str(tmp_path / "rows.csv")]) == 0
    out = capsys.readouterr().out
    assert "run (last epoch)" in out
    assert main(["info", str(run)]) == 0
    assert capsys.readouterr().out.count("weights: after the last epoch") == 1
    rows = read_rows(run)
    assert [row.last_epoch for row in rows] == [False, True]
    assert read_evaluated(run) == rows[0]
    (table,) = method_tables(rows)
    assert [row.name for row in table.rows] == ["run", "run (last epoch)"]
    shares = [cell.value.share for cell in (row.cells[0] for row in table.rows) if cell.value is not None]
    assert shares == [summary["clean"]["accuracy"] for summary in (best, last)]
    summary = run / "evaluation_last" / "summary.json"
    summary.write_text(json.dumps(last | {"model": last["model"] | {"checkpoint": FINAL}}))
    assert main(["audit", str(run), "--as", "last", "--share", "0.5", "--confidence", "0.5"]) == 1


def test_no_attack_selects_the_last_epoch_unless_one_ends_the_run(run: Path) -> None:
    """Of a run that is trained with another attack."""
    trades = build_config(read_recipe("mnist5k/trades"))
    patient = replace(trades, training=replace(trades.training, patience=2))
    suite = suite_named("dynat", "linf")
    selected = seen_attacks(run, trades, "linf", suite)
    assert selected
    assert set(selected.values()) == {"selection"}
    assert seen_attacks(run, trades, "linf", suite, last_epoch=True) == {}
    assert seen_attacks(run, patient, "linf", suite, last_epoch=True) == selected


def test_an_evaluation_of_other_weights_is_not_kept_in_place_of_the_one_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation*"))
    words = ["evaluate", str(folder), "--suite", "fgsm", "--evaluation.count", "10", "--as", "last"]
    assert main(words) == 0
    said = refusal(capsys, *words, "--keep", "--checkpoint", "last")
    assert "evaluation_last is of the weights that the run selected: --as NAME gives another name" in said
    assert main([*words, "--overwrite", "--checkpoint", "last"]) == 0
    assert main([*words, "--keep", "--checkpoint", "last"]) == 0
    assert "is of the weights after the last epoch" in refusal(capsys, *words, "--keep")


def test_weights_without_a_run_have_no_last_epoch(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(tmp_path / "new"), "--weights", str(run / FINAL), "--data", "mnist5k"]
    said = refusal(capsys, *words, "--checkpoint", "last")
    assert "--checkpoint last is for runs that were trained here" in said
    assert not (tmp_path / "new").exists()


def test_a_run_without_such_a_state_is_refused_in_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    (tmp_path / FINAL).write_bytes((run / FINAL).read_bytes())
    assert f"has no {LAST}" in refusal(capsys, "evaluate", str(tmp_path), "--checkpoint", "last")
    assert not (tmp_path / "evaluation_last").exists()
    (tmp_path / LAST).parent.mkdir()
    (tmp_path / LAST).write_bytes((run / LAST).read_bytes()[:-100])
    assert "truncated or not a checkpoint" in refusal(capsys, "evaluate", str(tmp_path), "--checkpoint", "last")
