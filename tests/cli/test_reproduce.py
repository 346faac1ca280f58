"""`robustly reproduce`: the runs of a paper's tables, interrupted, failing and repeated, and its page."""

import csv
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cli_tools import in_process, refusal

from robustly.cli import main
from robustly.cli.reproduce import Request
from robustly.experiments.reproductions import outline_from
from robustly.experiments.sweeps import Cell

SMALL = {
    "threat": "linf:0.1",
    "data.train_limit": "64",
    "data.image_size": "16",
    "data.validation": "40",
    "data.test": "40",
    "model.width": "0.25",
    "training.batch_size": "32",
    "training.validation_steps": "1",
    "runtime.device": "cpu",
}
OUTLINE = {
    "title": "Labels <that> move",
    "source": "A paper",
    "paper": {"epochs": "100"},
    "data": {"mnist5k": {"classes": 10, "shape": [1, 16, 16], "train": 64, "test": 40}},
    "tables": {
        "table1": {
            "title": "Table 1",
            "published": "arXiv 2408.13102, table 1",
            "columns": ["clean", "pgd_10", "cw", "all"],
            "rows": [["Others", "PGD-AT", "at"], ["Ours", "DYNAT", "dynat"]],
        }
    },
    "curves": {},
    "clean": ["table1"],
    "hybrid": "table1",
    "controls": {},
    "repeated": "dynat",
    "scales": {
        "tiny": {
            "about": "64 digits.",
            "epochs": 1,
            "steps": 1,
            "images": 20,
            "settings": SMALL,
            "runs": {"at": "mnist5k/pgd_at", "dynat": "mnist5k/dynat"},
        },
        "huge": {"about": "Much.", "large": True, "runs": {"at": "mnist5k/pgd_at", "dynat": "mnist5k/dynat"}},
    },
}
Carried = Callable[[Cell, threading.Event, Mapping[str, str]], str]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robustly.cli.reproduce.read_outline", lambda name: outline_from(name, OUTLINE))
    monkeypatch.setattr("robustly.cli.reproduce.carry_out", in_process)


def reproduce(*words: str, scale: str = "tiny") -> int:
    return main(["reproduce", "paper", "--scale", scale, "--workers", "1", "--out", "here", *words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished reproduction, made once."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("robustly.cli.reproduce.read_outline", lambda name: outline_from(name, OUTLINE))
        patch.setattr("robustly.cli.reproduce.carry_out", in_process)
        assert reproduce() == 0
    return folder / "here"


@pytest.mark.slow
def test_the_page_has_the_papers_rows_and_both_runs_of_one_seed_are_identical(made: Path) -> None:
    page = (made / "paper.html").read_text()
    for text in ("Labels &lt;that&gt; move", "Table 1", "PGD-AT", "85.2", "64 digits."):
        assert text in page, text
    assert (made / "dynat__seed=0/model.safetensors").read_bytes() == (
        made / "dynat__again/model.safetensors"
    ).read_bytes()
    rows = list(csv.reader((made / "tables.csv").open()))
    assert sum("PGD-AT" in row for row in rows) == 2, "ours and the published one"


@pytest.mark.slow
def test_the_same_command_does_nothing_and_seeds_are_added(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, tmp_path / "here")
    kept = (tmp_path / "here/at__seed=0/model.safetensors").stat().st_mtime_ns
    assert reproduce() == 0
    assert "0 of 3 runs to do" in capsys.readouterr().out
    assert reproduce("--seeds", "2") == 0
    assert "2 of 5 runs to do" in capsys.readouterr().out
    assert (tmp_path / "here/at__seed=1/evaluation/summary.json").is_file()
    assert (tmp_path / "here/at__seed=0/model.safetensors").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_an_interrupted_reproduction_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(cell: Cell, stop: threading.Event, environment: Mapping[str, str]) -> str:
        if cell.name.startswith("dynat"):
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(20)
            return ""
        return in_process(cell, stop, environment)

    monkeypatch.setattr("robustly.cli.reproduce.carry_out", interrupted)
    assert reproduce() != 0
    said = capsys.readouterr().out
    assert "the same command continues: robustly reproduce paper --scale tiny --seeds 1 --out here" in said
    assert not (tmp_path / "here/paper.html").exists()
    monkeypatch.setattr("robustly.cli.reproduce.carry_out", in_process)
    assert reproduce() == 0
    assert "2 of 3 runs to do" in capsys.readouterr().out
    assert (tmp_path / "here/paper.html").exists()


def test_the_command_that_continues_has_the_places_of_this_machine_and_the_page_has_none(tmp_path: Path) -> None:
    outline = outline_from("paper", OUTLINE)
    place, folder = "/home/anna/digits", tmp_path / "far"
    request = Request(outline, "tiny", 2, ("table1",), {"mnist5k": place}, folder)
    assert request.command.endswith("--seeds 2 --source mnist5k=FOLDER --out far")
    assert request.command_here.endswith(f"--seeds 2 --source mnist5k={place} --out {folder}")
    usual = replace(request, folder=Path("runs/paper-tiny"), sources={})
    assert usual.command == usual.command_here == "robustly reproduce paper --scale tiny --seeds 2"


@pytest.mark.slow
def test_runs_of_other_settings_are_not_mixed_in(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, tmp_path / "here")
    file = tmp_path / "here/at__seed=0/config.yaml"
    file.write_text(file.read_text().replace("batch_size: 32", "batch_size: 16"))
    said = refusal(capsys, "reproduce", "paper", "--scale", "tiny", "--out", "here")
    assert "at__seed=0 has other settings than the reproduction has now (its training differ" in said


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(cell: Cell, stop: threading.Event, environment: Mapping[str, str]) -> str:
        return "no memory" if cell.name.startswith("dynat") else in_process(cell, stop, environment)

    monkeypatch.setattr("robustly.cli.reproduce.carry_out", failing)
    assert reproduce() == 2
    assert "! dynat__seed=0: no memory" in capsys.readouterr().out
    assert "no memory" in (tmp_path / "here/paper.html").read_text()


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("--dry-run") == 0
    said = capsys.readouterr().out
    assert "3 of 3 runs to do" in said
    assert "dynat__again: mnist5k/dynat" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "big"], "--scale: unknown name 'big'"),
        (["--tables", "table7"], "--tables: unknown name 'table7'"),
        (["--seeds", "0"], "at least 1"),
        (["--source", "mnist5k"], "--source takes DATA=FOLDER"),
        (["--source", "mnist=x"], "--source: unknown name 'mnist'"),
        (["--training.epochs", "3"], "--training.epochs"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "reproduce", "paper", "--out", "here", "--scale", "tiny", *words)
    assert not any(tmp_path.iterdir())


def test_a_scale_for_gpus_states_its_hours_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "reproduce", "paper", "--scale", "huge", "--out", "here")
    assert "is meant for GPUs" in said
    assert "--yes" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_other_folders_are_left_alone(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/notes.txt").write_text("mine")
    assert "has no reproduction" in refusal(capsys, "reproduce", "paper", "--scale", "tiny", "--out", "here")
    shutil.copytree(made, tmp_path / "other")
    said = refusal(capsys, "reproduce", "paper", "--scale", "tiny", "--source", "mnist5k=x", "--out", "other")
    assert "another reproduction (its sources differ)" in said
