"""`robustly analyse`: gradients, landscapes and the union of a run's evaluations, in one file that reports read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustly.attacks import PGD
from robustly.cli.analyse import run_analysis
from robustly.data import load_test
from robustly.evaluation import Suite, evaluate
from robustly.evidence import write_evidence
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.run_folder import create_run, load_trained
from robustly.reports import read_run, render
from robustly.threats import parse_threat

SETTINGS = ["--data.source", "mnist5k", "--data.test_limit", "40", "--data.test", "60"]
MODEL = ["--model.name", "small_cnn", "--model.width", "0.25", "--threat", "linf:0.1", "--runtime.device", "cpu"]


@pytest.fixture
def run(tmp_path: Path, digit_net: nn.Module) -> Path:
    """A run with weights and no evaluation."""
    config = build_config(apply_overrides({"recipe": "analysed"}, [*SETTINGS, *MODEL]))
    create_run(tmp_path / "run", config)
    weights = {name: value.contiguous() for name, value in digit_net.state_dict().items()}
    save_file(weights, tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


def evaluated(run: Path, folder: str, threat: str, count: int = 40) -> None:
    changes = [*SETTINGS, *MODEL, "--data.test_limit", str(count)]
    config: RunConfig = build_config(apply_overrides({"recipe": "analysed"}, changes))
    data = load_test(config.data)
    model, _, _ = load_trained(run, config, data, lambda name: False)
    found = evaluate(model, data, parse_threat(threat), Suite("pgd", {"pgd": PGD(3)}), batch_size=40)
    named = replace(found.summary.data, settings=config.as_plain()["data"])
    write_evidence(replace(found, summary=replace(found.summary, data=named)), run / folder)


@pytest.mark.slow
def test_a_run_without_evaluation_is_analysed_under_its_own_threat(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert run_analysis(run, 20, trust_code=False) == 0
    content = json.loads((run / "analysis.json").read_text())
    assert content["threat"]["text"] == "linf:0.1"
    assert (content["gradients"]["count"], content["union"]) == (20, None)
    assert len(content["landscapes"]["inputs"]) == 4
    assert len(content["landscapes"]["weights"]["loss"]) == 21
    assert (run / "model.safetensors").read_bytes() == before
    assert f"next: robustly report {run}" in capsys.readouterr().out


@pytest.mark.slow
def test_several_evaluations_give_their_union_and_a_report(run: Path) -> None:
    evaluated(run, "evaluation", "linf:0.05")
    evaluated(run, "evaluation_l2", "l2:1")
    (run / "evaluation.partial").mkdir()
    assert run_analysis(run, 10, trust_code=False) == 0
    content = json.loads((run / "analysis.json").read_text())
    assert content["threat"]["text"] == "linf:0.05"
    assert [one["text"] for one in content["union"]["threats"]] == ["linf:0.05", "l2:1"]
    assert content["union"]["union"]["robust"] <= min(one["robust"] for one in content["union"]["threats"])
    page = render([read_run(run)])
    assert "Several threats" in page
    assert "Gradients and loss surfaces" in page
    assert not read_run(run).notes


@pytest.mark.slow
def test_what_cannot_be_analysed_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="--count must be at least 1"):
        run_analysis(run, 0, trust_code=False)
    evaluated(run, "evaluation", "linf:0.05")
    (run / "evaluation" / "summary.json").write_text(json.dumps({"threat": {}}))
    with pytest.raises(ValueError, match=r"summary\.json is written in schema None"):
        run_analysis(run, 4, trust_code=False)
    assert not (run / "analysis.json").exists()


@pytest.mark.slow
def test_evaluations_that_do_not_fit_are_left_out_with_the_reason(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(run, "evaluation", "linf:0.05")
    evaluated(run, "evaluation_again", "linf:0.05")
    evaluated(run, "evaluation_fewer", "l2:1", count=10)
    evaluated(run, "evaluation_l1", "l1:3")
    (run / "evaluation_l1/evidence.parquet").write_bytes(b"PAR1")
    assert run_analysis(run, 4, trust_code=False) == 0
    content = json.loads((run / "analysis.json").read_text())
    assert content["union"] is None
    assert "evaluation_fewer is left out of the union: it has 10 images, not the 40 of" in capsys.readouterr().out
    page = " ".join(render([read_run(run)]).split())
    assert "No two threats were evaluated on the same images" in page
    assert "<strong>evaluation_fewer</strong> is left out: it has 10 images, not the 40 of evaluation." in page
    assert "<strong>evaluation_l1</strong> is left out: it cannot be read:" in page

    evaluated(run, "evaluation_l2", "l2:1")
    assert run_analysis(run, 4, trust_code=False) == 0
    content = json.loads((run / "analysis.json").read_text())
    assert [one["text"] for one in content["union"]["threats"]] == ["linf:0.05", "l2:1"]
    assert [one["evaluation"] for one in content["left_out"]] == ["evaluation_fewer", "evaluation_l1"]
    page = " ".join(render([read_run(run)]).split())
    assert "All at once" in page
    assert "<strong>evaluation_fewer</strong> is left out" in page


@pytest.mark.slow
def test_the_analysis_is_the_same_twice(run: Path) -> None:
    found = []
    for _ in range(2):
        torch.rand(3)
        run_analysis(run, 6, trust_code=False)
        content = json.loads((run / "analysis.json").read_text())
        found.append({key: value for key, value in content.items() if key != "created"})
    assert found[0] == found[1]
