"""Training and evaluation under several threats, as a user runs them."""

import re
from pathlib import Path

import numpy as np
import pytest
from cli_tools import refusal

from robustly.cli import main
from robustly.evidence import read_evidence
from robustly.experiments.finetune import read_record
from robustly.reports import read_run

SMALL = [
    "--data.image_size", "16", "--data.train_limit", "100", "--data.validation", "20", "--data.test", "20",
    "--model.width", "0.25", "--training.epochs", "1", "--training.epsilon_ramp", "0", "--method.inner.steps", "1",
    "--training.validation_steps", "1",
]  # fmt: skip
QUICK = ["--suite", "fgsm,pgd_20", "--evaluation.curve", "off", "--evaluation.batch_size", "20"]


def test_a_dry_run_prints_all_threats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mnist5k/msd", *SMALL, "--threats", "linf:0.3", "l1:9", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "mnist5k/msd under linf:0.3, l1:9" in shown
    assert re.search(r"model .* 4 .* 2 ", shown), (
        "two forward passes to compare, one for the gradient, one to learn"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "run"
    assert main(["train", "mnist5k/eat", *SMALL, "--threats", "linf:0.1", "l1:2", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_run_is_evaluated_under_all_its_threats(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), *QUICK]) == 0
    shown = capsys.readouterr().out
    found = {name: read_evidence(run / name) for name in ("evaluation", "evaluation_l1")}
    assert [one.summary.threat.text for one in found.values()] == ["linf:0.1", "l1:2"]
    assert all(one.summary.seen_attacks == {"fgsm": "training", "pgd_20": "training"} for one in found.values())
    held = np.stack([~one.table.worst_case.broken for one in found.values()])
    table = shown.partition("run: 20 images, 2 threats")[2]
    rows = [line for line in table.splitlines() if "%" in line and "[" in line]
    shares = [float(re.search(r"([\d.]+) %", line)[1]) for line in rows]  # type: ignore[index]
    expected = [*held.mean(1), held.mean(1).mean(), held.all(0).mean()]
    assert shares[1:] == pytest.approx([100 * share for share in expected], abs=0.051)
    assert shares[-1] <= min(shares[1:3])

    # another threat beside them; what is there is kept, and nothing is lost without a word
    assert "evaluation_l1 exists already" in refusal(capsys, "evaluate", str(run), *QUICK)
    assert "analyse works under one threat" in refusal(capsys, "analyse", str(run), "--threats", "l2:1", "l1:2")
    words = ["evaluate", str(run), *QUICK, "--threats", "linf:0.1", "l2:1", "l1:2"]
    assert main([*words, "--keep"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("exists already and is kept") == 2
    assert (run / "evaluation_l2" / "summary.json").is_file()
    assert "run: 20 images, 3 threats" in shown
    assert "evaluation_l1 is under l1:2, not l1:1" in refusal(
        capsys, "evaluate", str(run), *QUICK, "--threats", "linf:0.1", "l1:1", "--keep"
    )

    # sizes in one unit are not those of several kinds of threats, shares are
    assert "'1/255' is in the unit of one threat, and the threats are linf:0.1, l1:2" in refusal(
        capsys, "evaluate", str(run), "--curve", "1/255", "--overwrite"
    )
    again = ["evaluate", str(run), "--suite", "fgsm,pgd_20", "--evaluation.batch_size", "20", "--overwrite"]
    assert main([*again, "--curve", "50%,100%"]) == 0
    capsys.readouterr()
    curves = {one.threat.text: one.curve for one in read_run(run).tests}
    assert [curves[text] and curves[text].epsilon_text for text in ("linf:0.1", "l1:2", "l2:1")] == [
        ("0", "0.05", "0.1"),
        ("0", "1", "2"),
        None,
    ]

    # the page has the union without an analysis
    union = read_run(run).union
    assert union is not None
    assert [one.text for one in union.threats] == ["linf:0.1", "l1:2", "l2:1"]
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "All at once" in page
    assert "No two threats" not in page
    assert main(["audit", str(run), "--as", "l1"]) == 0
    assert main(["info", str(run)]) == 0
    assert "linf:0.1, l1:2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_network_of_one_threat_is_tuned_against_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    assert main(["train", "mnist5k/pgd_at", *SMALL, "--threat", "linf:0.1", "--out", str(first)]) == 0
    words = ["finetune", str(first), "--method", "mnist5k/eat", "--threats", "linf:0.1", "l1:2", "--epochs", "1"]
    words += ["--method.inner.steps", "1", "--count", "6", "--out", str(tuned)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "under all of them" in said
    assert (
        "gradient passes of the training attack per image: 1, under 2 threats (max with as many steps: 2)" in said
    )
    for one in read_record(tuned, ["linf:0.1", "l1:2"], 6).values():
        assert one.union is not None
        assert one.union.hits <= min(share.hits for share in one.robust.values())
