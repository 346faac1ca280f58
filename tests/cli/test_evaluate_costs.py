"""Costs of confusions from the command line to the audit and the page."""

import json
import shutil
from pathlib import Path

import pytest
from cli_tools import refusal

from forked import fork
from robustly.cli import main
from robustly.evidence.audit_record import read_audit
from robustly.evidence.costs import COSTS, read_cost_summary

FEW = ["--evaluation.suite", "few", "--evaluation.stages", '{"few": {"attack": "pgd", "steps": 2}}']
FEW += ["--evaluation.count", "8", "--evaluation.batch_size", "8", "--evaluation.curve", "off"]
LITTLE = ["--training.epochs", "1", "--training.epsilon_ramp", "0", "--method.inner.steps", "1", "--model.width"]
LITTLE += ["0.25", "--data.train_limit", "200", "--data.validation", "20", "--data.test", "20"]
LITTLE += ["--data.image_size", "16", "--threat", "linf:0.05", "--runtime.device", "cpu"]


@pytest.mark.slow
def test_from_training_to_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    costs = ["--method.loss", '{name: cost_sensitive, costs: "classes:3,5"}']
    assert main(["train", "mnist5k/pgd_at", "--out", str(run), *LITTLE, *costs]) == 0
    assert "there is no class 12" in refusal(capsys, "evaluate", str(run), *FEW, "--costs", "7>12")
    assert not (run / "evaluation").exists()
    assert main(["evaluate", str(run), *FEW]) == 0
    assert main(["audit", str(run)]) == 0
    folder = run / "evaluation"
    before = (folder / "summary.json").read_bytes()
    assert main(["evaluate", str(run), *FEW, "--keep", "--costs", "all"]) == 0
    shown = capsys.readouterr().out
    assert "cost-sensitive robust" in shown
    assert "expected worst cost" in shown
    assert (folder / "summary.json").read_bytes() == before
    assert read_audit(folder) is None, "the costs are not audited yet"
    assert main(["audit", str(run)]) == 0
    assert "costs: numbers follow from the rows" in capsys.readouterr().out
    assert read_audit(folder) is not None
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    summary = read_cost_summary(folder)
    assert summary is not None
    assert f"{summary.numbers.worst.mean:.3g}" in page
    assert "Expected worst cost" in page
    assert summary.sha256[:12] in page
    assert f"{summary.numbers.robust.hits} of 8 examples whose confusions cost anything" in page
    content = json.loads((folder / COSTS).read_text())
    content["numbers"]["worst"]["mean"] = 0.0
    (folder / COSTS).write_text(json.dumps(content))
    assert main(["audit", str(run)]) == 1


@pytest.mark.slow
def test_processes_share_the_images_of_costs(tmp_path: Path) -> None:
    """Also for an evaluation that is kept, whose seed differs from that of the settings."""
    run = tmp_path / "run"
    assert main(["train", "mnist5k/pgd_at", "--out", str(run), *LITTLE]) == 0
    words = ["evaluate", str(run), *FEW, "--evaluation.batch_size", "2", "--costs", "all"]
    assert main([*words, "--as", "alone", "--seed", "3"]) == 0
    for name, more in (("together", ["--seed", "3"]), ("later", ["--keep", "--seed", "4"])):
        if name == "later":
            shutil.copytree(run / "evaluation_alone", run / "evaluation_later")
            (run / "evaluation_later/costs.parquet").unlink()
        process = fork(*words[1:], "--as", name, *more, "--runtime.processes", "2")
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        for file in ("costs.parquet", "costs.safetensors"):
            one, other = (run / f"evaluation_{which}" / file for which in ("alone", name))
            assert one.read_bytes() == other.read_bytes(), file
        assert not (run / f"evaluation_{name}.partial").exists()


@pytest.mark.parametrize("costs", ["classes:x", "3>3", "nowhere.csv", ""])
def test_wrong_costs_are_refused_before_anything_is_read(
    costs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "costs" in refusal(capsys, "evaluate", str(tmp_path / "none"), "--costs", costs)
