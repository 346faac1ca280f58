"""`robustly diagnose` on a trained run, and its messages on wrong input."""

import json
from pathlib import Path

import pytest

from robustly.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    settings = {
        "training.epochs": "1",
        "data.train_limit": "300",
        "data.validation": "50",
        "data.test_limit": "40",
        "model.width": "0.25",
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    assert main(["train", "mnist5k/standard", "--out", str(folder), *words]) == 0
    return folder


@pytest.mark.slow
def test_every_diagnostic_is_told_and_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["diagnose", str(run), "--count", "10", "--threat", "linf:0.05"])
    kept = json.loads((run / "diagnostics.json").read_text())
    names = [entry["id"] for entry in kept["findings"]]
    assert {f"D{number}" for number in range(1, 13)} <= set(names)
    assert kept["threat"] == "linf:0.05"
    assert kept["data"]["count"] == 10
    told = capsys.readouterr().out
    assert "D7" in told
    assert code == int(bool(kept["masking"]))


def test_wrong_words_are_met_with_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run), "--count", "0"]) == 2
    assert "--count must be at least 1, got 0" in capsys.readouterr().err
    assert main(["diagnose", str(run / "nowhere")]) == 2
    assert main(["diagnose", str(run), "--threat", "l7:1"]) == 2
    assert "l7" in capsys.readouterr().err


@pytest.mark.slow
def test_suites_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites"]) == 0
    assert "standard" in capsys.readouterr().out.split()
    assert main(["suites", "quick", "l2:0.5"]) == 0
    assert "27 + 26" in capsys.readouterr().out
    capsys.readouterr()
    assert main(["suites", "semantic"]) == 0
    assert "semantic under rotation:30" in capsys.readouterr().out
    assert main(["suites", "best"]) == 2
    assert "unknown suite or attack 'best'" in capsys.readouterr().err
    for threat in ("l0:10", "rotation:30"):
        assert main(["suites", "aa_standard", threat]) == 2
        assert "use the suite standard" in capsys.readouterr().err
        assert main(["suites", "standard", threat]) == 0


@pytest.mark.slow
def test_a_second_threat_stands_beside_the_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--suite", "quick", "--evaluation.count", "20"]
    assert main(["evaluate", str(run), "--threat", "linf:0.05", *words]) == 0
    assert main(["evaluate", str(run), "--threat", "l2:0.5", "--as", "l2", *words]) == 0
    assert main(["evaluate", str(run), "--as", "no word", *words]) == 2
    assert "--as takes letters" in capsys.readouterr().err
    assert (run / "evaluation_l2" / "summary.json").is_file()
    assert not list(run.glob("*.partial"))
    assert main(["audit", str(run)]) == 0
    assert main(["audit", str(run), "--as", "l2"]) == 0
    assert main(["analyse", str(run), "--count", "10"]) == 0
    union = json.loads((run / "analysis.json").read_text())["union"]
    assert union is not None
    assert main(["report", str(run)]) == 0
    assert "union" in (run / "report.html").read_text().lower()
