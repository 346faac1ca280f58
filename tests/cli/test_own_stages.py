"""`robustly evaluate` and `audit` with attacks by name, a transfer from another run, and a curve of one's own."""

import json
import shutil
from pathlib import Path

import pytest

from robustly.cli import main

SMALL = ["--data.image_size", "16", "--data.train_limit", "120", "--data.validation", "20", "--data.test", "20"]
SMALL += ["--model.width", "0.25", "--training.epochs", "1", "--threat", "linf:0.1", "--runtime.device", "cpu"]


@pytest.mark.slow
def test_a_transfer_from_another_run_is_evaluated_and_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for folder, seed in ((run, "0"), (other, "1")):
        assert main(["train", "mnist5k/standard", "--out", str(folder), "--seed", seed, *SMALL]) == 0
    stage = ["--evaluation.stages.t.attack", "transfer", "--evaluation.stages.t.surrogate", str(other)]
    words = ["--evaluation.suite", "mine", *stage, "--evaluation.curve", "1/20,0.1"]
    assert main(["evaluate", str(run), *words]) == 0
    printed = capsys.readouterr().out
    assert "suite mine: at most" in printed
    assert "diagnostics" in printed
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["security_curve"]["epsilon_text"] == ["0", "0.05", "0.1"]
    (surrogate,) = summary["suite"]["attacks"][0]["settings"]["surrogates"]
    assert len(surrogate["weights_sha256"]) == 64
    assert main(["audit", str(run)]) == 0
    shutil.copy(run / "model.safetensors", other / "model.safetensors")
    assert main(["audit", str(run)]) == 1, "another surrogate is another attack"
    shutil.rmtree(other)
    capsys.readouterr()
    assert main(["audit", str(run)]) == 1
    assert "it is neither a run folder nor a file of weights" in capsys.readouterr().out


def test_a_surrogate_that_is_not_there_and_a_wrong_suite_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites", "pgd_20,spas"]) == 2
    assert "did you mean 'spsa'" in capsys.readouterr().err
    assert main(["suites", "hopskipjump"]) == 0
    assert "35,853 + 0" in capsys.readouterr().out
