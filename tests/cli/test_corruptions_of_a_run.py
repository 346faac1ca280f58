"""`robustly corruptions` on a trained run: table, continuation, reference, files, audit, page and messages."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_tools import refusal

from robustly.cli import main
from robustly.corruptions import STANDARD
from robustly.evidence import read_evidence

SETTINGS = {
    "training.epochs": "1",
    "data.train_limit": "300",
    "data.validation": "50",
    "data.test_limit": "40",
    "model.width": "0.25",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    words = [word for key, value in SETTINGS.items() for word in (f"--{key}", value)]
    assert main(["train", "mnist5k/standard", "--out", str(folder), *words]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.slow
def test_a_table_of_all_is_written_continued_and_audited(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corruptions", str(run), "--images", "6", "--only", "fog,contrast"]) == 0
    part = json.loads((run / "corruptions.json").read_text())
    assert [row["name"] for row in part["rows"]] == ["fog", "contrast"]
    assert part["mean"] is None
    assert main(["corruptions", str(run), "--images", "6"]) == 0
    told = capsys.readouterr().out
    assert "mean corruption accuracy (15 x 5)" in told
    assert "snow (procedural)" in told
    whole = json.loads((run / "corruptions.json").read_text())
    assert [row["name"] for row in whole["rows"]] == list(STANDARD)
    fog = next(row for row in whole["rows"] if row["name"] == "fog")
    assert fog == part["rows"][0]
    assert whole["data"]["count"] == 6
    assert main(["corruptions", str(run), "--audit"]) == 0
    whole["rows"][0]["cells"][0]["correct"] = 0 if whole["rows"][0]["cells"][0]["correct"] else 6
    (run / "corruptions.json").write_text(json.dumps(whole))
    capsys.readouterr()
    assert main(["corruptions", str(run), "--audit"]) == 1
    assert "FAILED the numbers follow from the predictions" in capsys.readouterr().out


@pytest.mark.slow
def test_errors_relative_to_the_run_itself_are_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--images", "8", "--only", "contrast"]
    assert f"{run} has no corruptions.json" in refusal(capsys, "corruptions", str(run), "--reference", str(run))
    assert main(["corruptions", str(run), *short]) == 0
    assert main(["corruptions", str(run), *short, "--reference", str(run)]) == 0
    assert "mCE against run: 100.0 %" in capsys.readouterr().out
    said = refusal(capsys, "corruptions", str(run), "--images", "5", "--only", "contrast", "--reference", str(run))
    assert "was evaluated on other images (8 of mnist5k" in said


@pytest.mark.slow
def test_files_are_used_as_they_are(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.array([0, 1, 2]))
    np.save(folder / "frost.npy", np.random.default_rng(0).integers(0, 256, (15, 28, 28, 1), np.uint8))
    assert main(["corruptions", str(run), "--source", str(folder)]) == 0
    kept = json.loads((run / "corruptions.json").read_text())
    assert kept["images"]["set"] == "files"
    assert kept["rows"][0]["cells"][0]["count"] == 3
    assert kept["rows"][0]["procedural"] is False
    assert main(["corruptions", str(run), "--audit"]) == 0
    np.save(folder / "frost.npy", np.zeros((15, 28, 28, 1), np.uint8))
    assert main(["corruptions", str(run), "--audit"]) == 1
    np.save(folder / "frost.npy", np.zeros((15, 32, 32, 3), np.uint8))
    said = refusal(capsys, "corruptions", str(run), "--source", str(folder))
    assert "frost.npy: holds uint8 of shape (15, 32, 32, 3), but the model's images need" in said


@pytest.mark.slow
def test_wrong_words_are_met_with_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--images must be at least 1" in refusal(capsys, "corruptions", str(run), "--images", "0")
    assert "no corruption 'rain'" in refusal(capsys, "corruptions", str(run), "--only", "rain")
    assert "saturate needs colour" in refusal(capsys, "corruptions", str(run), "--only", "fog,saturate")
    assert "no such folder" in refusal(capsys, "corruptions", str(run), "--source", str(run / "nowhere"))
    assert "has no corruptions.json" in refusal(capsys, "corruptions", str(run), "--audit")
    refusal(capsys, "corruptions", str(run / "nowhere"))
    assert not (run / "corruptions.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threat", "words"),
    [
        ("corruption:1", "one of the 15 common corruptions"),
        ("mnist_c:1", "one of the 15 corruptions of MNIST-C"),
    ],
)
def test_corruptions_as_a_threat_go_the_whole_way(run: Path, threat: str, words: str) -> None:
    small = ["--evaluation.count", "6", "--evaluation.batch_size", "6"]
    assert main(["evaluate", str(run), "--threat", threat, "--suite", "standard", *small]) == 0
    evidence = read_evidence(run / "evaluation")
    kept = evidence.images.attacks["exhaustive"]
    assert kept.theta is not None
    assert set(kept.theta[:, 1].tolist()) <= {0.0, 1.0}  # no corruption of those that stand
    assert not any("masking" in text for text in evidence.summary.masking)
    assert main(["audit", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    assert words in (run / "report.html").read_text()


@pytest.mark.slow
def test_the_corruptions_of_mnist_c_are_evaluated_shown_and_audited(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["corruptions", str(run), "--images", "6", "--set", "mnist_c"]
    assert main([*words, "--only", "zigzag,fog"]) == 0
    capsys.readouterr()
    assert "shot_noise" in refusal(capsys, *words, "--reference", str(run)), "the reference lacks 13 corruptions"
    assert "MNIST-C has no further corruptions" in refusal(capsys, *words, "--extra")
    assert "MNIST-C has no corruption 'snow'" in refusal(capsys, *words, "--only", "snow")
    assert "leave out one of them" in refusal(capsys, *words, "--source", str(run))
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "mean corruption accuracy (15): " in told
    assert "motion blur (procedural)" in told
    assert "canny edges" in told
    assert main([*words, "--reference", str(run)]) == 0
    assert "mCE against run: " in capsys.readouterr().out
    kept = json.loads((run / "corruptions.json").read_text())
    assert kept["images"]["set"] == "MNIST-C"
    assert [len(row["cells"]) for row in kept["rows"]] == [1] * 15
    assert main(["corruptions", str(run), "--audit", "--reference", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "MNIST-C" in page
    assert "by severity" not in page
    kept["rows"][3]["extra"] = True
    (run / "corruptions.json").write_text(json.dumps(kept))
    capsys.readouterr()
    assert main(["corruptions", str(run), "--audit"]) == 1
    assert "FAILED the numbers follow from the predictions" in capsys.readouterr().out
