"""Rotation, rotation and linf, and a mask from training to the report, as a user runs them."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_tools import refusal

from robustly.cli import main
from robustly.evidence import read_evidence, read_summary

SETTINGS = {
    "training.epochs": 1,
    "training.epsilon_ramp": 0,
    "method.inner.steps": 2,
    "model.width": 0.25,
    "data.train_limit": 300,
    "data.validation": 40,
    "data.test_limit": 30,
}
EVALUATION = {
    "evaluation.suite": "standard",
    "evaluation.mode": "worst_case",
    "evaluation.count": 10,
    "evaluation.curve_count": 6,
    "evaluation.batch_size": 10,
}


def options(settings: dict[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def mask(folder: Path) -> Path:
    """A file whose mask allows the right half of a digit to change."""
    allowed = np.zeros((28, 28), bool)
    allowed[:, 14:] = True
    np.save(folder / "right half.npy", allowed)
    return folder / "right half.npy"


def whole_way(folder: Path, threat: str) -> Path:
    """Train, evaluate, diagnose, audit and report under a threat."""
    run = folder / "run"
    assert main(["train", "mnist5k/pgd_at", "--out", str(run), "--threat", threat, *options(SETTINGS)]) == 0
    assert main(["evaluate", str(run), *options(EVALUATION)]) == 0
    assert main(["diagnose", str(run), "--count", "8"]) in (0, 1)
    assert main(["audit", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threat", "size", "axis"),
    [
        ("rotation:30", "under rotation:30", "rotation (degrees)"),
        ("rotation:10+linf:0.1", "under rotation:10+linf:0.1", "chain (times each part"),
    ],
)
def test_the_whole_way(tmp_path: Path, threat: str, size: str, axis: str) -> None:
    run = whole_way(tmp_path, threat)
    evidence = read_evidence(run / "evaluation")
    assert evidence.summary.threat.text == threat
    assert evidence.summary.metrics.security_curve is not None
    for name, kept in evidence.images.attacks.items():
        assert len(kept.ids) == 0 or (kept.theta is not None and len(kept.theta) == len(kept.ids)), name
    assert json.loads((run / "diagnostics.json").read_text())["threat"] == threat
    page = (run / "report.html").read_text()
    assert size in page
    assert axis in page
    assert "rotated about its centre" in page
    assert '<span class="change">rotated by ' in page
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["train", "--resume", str(run)]) == 0


@pytest.mark.slow
def test_the_whole_way_with_a_printed_patch(tmp_path: Path) -> None:
    run = tmp_path / "run"
    little = {**SETTINGS, "data.train_limit": 100, "data.image_size": 16}
    words = ["train", "mnist5k/pgd_at", "--out", str(run), "--threat", "physical_patch:6,rotation=30"]
    assert main([*words, *options(little)]) == 0
    words = [
        "--evaluation.suite",
        "expected_patch,random_draws",
        "--evaluation.count",
        "8",
        "--evaluation.curve",
        "off",
    ]
    assert main(["evaluate", str(run), *words]) == 0
    assert main(["audit", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    kept = read_evidence(run / "evaluation").images.attacks
    assert "expected_patch" in kept
    assert all(len(one.ids) == 0 or one.theta is not None for one in kept.values())
    page = (run / "report.html").read_text()
    assert "right if it is classified correctly under its own" in page
    assert "seen rotated by " in page


@pytest.mark.slow
def test_the_whole_way_with_a_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = mask(tmp_path)
    monkeypatch.chdir(tmp_path)
    run = whole_way(tmp_path, f"linf:0.4@{file.name}")
    assert yaml.safe_load((run / "config.yaml").read_text())["threat"] == f"linf:0.4@{file}"
    evidence = read_evidence(run / "evaluation")
    gallery = evidence.images.gallery
    for kept in evidence.images.attacks.values():
        originals = {int(i): image for i, image in zip(gallery.ids, gallery.images, strict=True)}
        for i, image in zip(kept.ids, kept.images, strict=True):
            if int(i) in originals:
                np.testing.assert_array_equal(image[..., :14], originals[int(i)][..., :14])
    assert "the region of a mask (50 % of the values)" in (run / "report.html").read_text()

    monkeypatch.chdir(Path("/"))
    assert main(["report", str(run)]) == 0
    assert main(["evaluate", str(run), *options(EVALUATION), "--as", "again"]) == 0
    same = read_summary(run / "evaluation_again")
    assert (same.threat, same.metrics) == (evidence.summary.threat, evidence.summary.metrics)

    np.save(file, ~np.load(file))
    capsys.readouterr()
    assert "another configuration" in refusal(capsys, "train", "--resume", str(run))
    np.save(file, np.ones((5, 5), bool))
    assert "(5, 5)" in refusal(capsys, "evaluate", str(run), *options(EVALUATION), "--as", "third")
    file.unlink()
    assert file.name in refusal(capsys, "evaluate", str(run), *options(EVALUATION), "--as", "fourth")


def test_what_only_balls_have_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["train", "mnist5k/pgd_at", "--out", str(run), "--threat"]
    for threat, named in (
        ("rotation:200", "180"),
        ("twist:3", "twist"),
        ("rotation:30+", "empty part"),
        ("rotation:30@mask.npy", "mask"),
        ("linf:0.3@nowhere.npy", "nowhere.npy"),
    ):
        assert named in refusal(capsys, *words, threat), threat
    assert "use the suite standard" in refusal(capsys, *words, "rotation:30", "--evaluation.suite", "aa_standard")
    assert not run.exists()
