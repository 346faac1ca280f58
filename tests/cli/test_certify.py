"""`robustly certify` on a small run: the summary, the report, the audit, and refusals."""

import shutil
from pathlib import Path

import pytest
from cli_tools import refusal

from robustly.cli import main
from robustly.evidence import read_summary

SMALL = ["--data.image_size", "12", "--data.train_limit", "300", "--data.validation", "20", "--data.test", "20"]
SMALL += [
    "--model.width",
    "0.2",
    "--training.epochs",
    "2",
    "--training.epsilon_ramp",
    "1",
    "--runtime.device",
    "cpu",
]
PROVE = ["--threat", "linf:0.02", "--count", "6", "--halvings", "1", "--method", "crown"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certify") / "run"
    assert main(["train", "mnist5k/pgd_at_conv_small", "--out", str(folder), *SMALL]) == 0
    return folder


def test_certify_prints_the_interval_and_report_and_audit_follow(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    capsys.readouterr()
    assert main(["certify", str(folder), *PROVE]) == 0
    printed = capsys.readouterr().out
    interval = read_summary(folder / "evaluation_certified").metrics.interval
    assert interval is not None
    low, high = 100 * interval.certified.share, 100 * interval.attacked.share
    assert printed.splitlines()[1].startswith("certificate crown: about ")
    assert f"at least {low:.1f} % ({interval.certified.hits} of 6 images proved), at most {high:.1f} %" in printed
    assert f"next: robustly report {folder}\n" in printed
    assert "already" in refusal(capsys, "certify", str(folder), *PROVE)
    assert main(["report", str(folder)]) == 0
    assert "certified" in (folder / "report.html").read_text(encoding="utf-8")
    assert main(["audit", str(folder), "--as", "certified"]) == 0
    assert "repeated with 4 times the work" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--evaluation.suite", "pgd_10", "--evaluation.curve", "off"]) == 0
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("certified")]
    assert f"{low:.1f} [" in row
    assert row.split()[1] == "-", "the evaluation without proofs has no certified accuracy"
    assert main(["report", str(folder), "--as", "certified"]) == 0
    assert (folder / "report_certified.html").is_file()
    assert "it has certified." in refusal(capsys, "report", str(folder), "--as", "other")


def test_refusals_are_one_sentence_and_leave_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert "certify a ball" in refusal(capsys, "certify", str(run), "--threat", "rotation:10")
    assert "wider than the box" in refusal(capsys, "certify", str(run), "--threat", "linf:3")
    assert "invalid choice: 'crwn'" in refusal(capsys, "certify", str(run), "--method", "crwn")
    assert "the time for branch and bound is 0.0" in refusal(capsys, "certify", str(run), "--time", "0")
    assert not (run / "evaluation_certified").exists()
