"""Models that were trained elsewhere: evaluate, diagnose and analyse take them without a run."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cli_tools import refusal
from torch import nn

from robustly.cli import main
from robustly.data import ImageData
from robustly.data.digests import row_digests
from robustly.experiments.given_models import given_run
from robustly.experiments.run_data import RunData, write_run_data
from robustly.models import ModelConfig, about_model, build_model, save_weights

QUICK = ["--suite", "quick", "--evaluation.count", "8", "--evaluation.curve_count", "2", "--threat", "linf:0.05"]
MODULE = """
import os
import torch
from torch import nn

def net(extra=0.0):
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
        model[1].bias.add_(extra)
    return model

def other_every_time():
    return net(torch.rand(10, generator=torch.Generator().manual_seed(int.from_bytes(os.urandom(4)))))

def seven():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 7))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "given_nets.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "stand_ins"))
    monkeypatch.delitem(sys.modules, "timm", raising=False)


def model_of(run: Path) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((run / "config.yaml").read_text())["model"]
    return found


def small() -> ModelConfig:
    return ModelConfig("small_cnn", width=0.1)


@pytest.mark.slow
def test_a_factory_that_holds_its_weights_is_evaluated_and_audited(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--model", "given_nets:net", *QUICK]
    assert main(words) == 0
    assert "the weights are those that given_nets:net gives" in capsys.readouterr().out
    summary = json.loads((here / "runs/net/evaluation/summary.json").read_text())
    assert summary["model"]["checkpoint"] == "factory's own"
    assert main(["audit", "runs/net", "--trust-code"]) == 0
    assert main([*words, "--overwrite"]) == 0  # the same command again
    assert main(["audit", "runs/net"]) == 2  # the name is in a file only
    capsys.readouterr()
    named = ["evaluate", "runs/net", *words[1:], "--overwrite", "--data", "elsewhere"]
    assert "takes no --data.source" in refusal(capsys, *named)
    text = (here / "given_nets.py").read_text()
    (here / "given_nets.py").write_text(text.replace("* 0.05", "* 0.06"))
    sys.modules.pop("given_nets")
    assert main(["audit", "runs/net", "--trust-code"]) == 1
    assert "FAILED the weights are those named" in capsys.readouterr().out


@pytest.mark.slow
def test_a_factory_of_other_weights_at_every_call_fails_the_audit(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--model", "given_nets:other_every_time", *QUICK]) == 0
    assert main(["audit", "runs/other_every_time", "--trust-code"]) == 1
    assert "FAILED the weights are those named" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_of_our_weights_is_enough(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(build_model(small(), 0), here / "mine.safetensors", about_model(small()))
    assert main(["evaluate", "mine.safetensors", *QUICK]) == 0
    kept = model_of(here / "runs/mine")
    assert (kept["name"], kept["width"]) == ("small_cnn", 0.1)
    assert kept["weights"] == str(here / "mine.safetensors")
    assert main(["audit", "runs/mine"]) == 0
    assert main(["evaluate", "mine.safetensors", *QUICK[:-1], "linf:0.02", "--as", "small"]) == 0
    other = ["evaluate", "mine.safetensors", *QUICK, "--data.test_limit", "4"]
    assert "runs/mine exists already with another model or other images" in refusal(capsys, *other)
    state = {f"module.{name}": value for name, value in build_model(small(), 0).state_dict().items()}
    torch.save({"net": state}, "old.pth.tar")
    assert main(["analyse", "old.pth.tar", "--count", "4", "--threat", "linf:0.05"]) == 0
    assert (here / "runs/old/analysis.json").is_file()
    assert model_of(here / "runs/old")["width"] == 0.1


@pytest.mark.slow
def test_a_network_of_timm_gets_images_of_its_size(
    here: Path, timm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "new", "--timm", "tinynet.a1", *QUICK]) == 0
    settings = yaml.safe_load((here / "new/config.yaml").read_text())
    assert settings["model"]["name"] == "timm:tinynet.a1"
    assert (settings["data"]["image_size"], settings["data"]["channels"]) == (32, 3)
    assert main(["audit", "new"]) == 0
    assert main(["report", "new"]) == 0
    assert "tinynet.a1" in (here / "new/report.html").read_text()
    capsys.readouterr()
    words = ["analyse", "--timm", "tinynet", "--data.image_size", "16", "--count", "4", "--threat", "linf:0.05"]
    assert main(words) == 0
    assert yaml.safe_load((here / "runs/tinynet/config.yaml").read_text())["data"]["image_size"] == 16


@pytest.mark.slow
def test_a_model_is_diagnosed_and_then_evaluated_in_the_same_folder(here: Path) -> None:
    model = ["--model", "given_nets:net", "--threat", "linf:0.05"]
    assert main(["diagnose", "one", *model, "--count", "4"]) in (0, 1)
    assert json.loads((here / "one/diagnostics.json").read_text())["data"]["count"] == 4
    assert main(["evaluate", "one", *model, *QUICK[:-2]]) == 0
    assert main(["analyse", "one", *model, "--count", "4"]) == 0
    assert {"diagnostics.json", "analysis.json", "evaluation"} <= {item.name for item in (here / "one").iterdir()}


@pytest.mark.slow
def test_a_run_is_named_by_its_folder_as_weights_of_another_run(here: Path) -> None:
    small = [
        "--model.width",
        "0.1",
        "--data.train_limit",
        "60",
        "--data.validation",
        "20",
        "--data.test_limit",
        "20",
    ]
    epoch = ["--training.epochs", "1", "--training.validation_steps", "1"]
    assert main(["train", "mnist5k/standard", "--out", "first", *small, *epoch]) == 0
    assert main(["train", "mnist5k/standard", "--out", "second", "--weights", "first", *small, *epoch]) == 0
    assert model_of(here / "second")["weights"] == str(here / "first/model.safetensors")
    assert main(["evaluate", "again", "--weights", "first", *QUICK]) == 0
    assert model_of(here / "again")["width"] == 0.1
    assert main(["evaluate", "moved", "--weights", "second/checkpoints/best.safetensors", *QUICK]) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_runs_its_code_only_if_trusted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    torch.jit.trace(net, torch.zeros(1, 1, 28, 28)).save("net.ts")
    assert "net.ts holds a model with its code" in refusal(capsys, "evaluate", "net.ts", *QUICK)
    assert not (here / "runs").exists()
    assert main(["evaluate", "net.ts", "--trust-code", *QUICK]) == 0
    assert "net.ts holds a model with its code" in refusal(capsys, "audit", "runs/net")
    assert main(["audit", "runs/net", "--trust-code"]) == 0


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "analyse"])
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "name a run folder, a file of weights, or a model with --model NAME"),
        (["nowhere"], "nowhere is not a run folder"),
        (["new", "--model", "small_cnn"], "has no weights yet"),
        (["--model", "given_nets:seven"], "7"),
        (["--model", "given_nets:none"], "no function 'none'"),
        (["--model", "small_cm"], "did you mean 'small_cnn'"),
        (["--weights", "none.pt"], "no such file of weights"),
        (["new", "--weights", "junk.pt"], "damaged or not a file of torch.save"),
        (["junk.pt"], "damaged or not a file of torch.save"),
        (["other.pt"], "fits none of the networks"),
        (["other.pt", "--model", "small_cnn"], "the weights do not fit the model"),
        (["other.pt", "--weights", "junk.pt"], "other.pt is a model of its own: leave out --model.weights"),
        (["--hf-model", "."], "it has no config.json"),
        (["new", "--model", "given_nets:net", "--data", "none.npz"], "'none.npz' is not a file or folder"),
        (["new", "--model", "given_nets:net", "--threat", "linf:2x"], "threat"),
        (["new", "--model", "given_nets:net", "--model.mean", "[0.5]"], "mean and std must be given together"),
        (["new", "--model"], "--model.name needs a value"),
        (["--timm", "a", "--hf-model", "b"], "names several models (hf:b, timm:a)"),
        (["full", "--model", "given_nets:net"], "full exists already: name another folder"),
    ],
)
def test_wrong_words_leave_nothing_behind(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, words: list[str], reason: str
) -> None:
    (here / "junk.pt").write_bytes(b"junk" * 20)
    torch.save({"a": torch.zeros(3)}, here / "other.pt")
    (here / "full").mkdir()
    (here / "full/file").touch()
    before = {item.name for item in here.iterdir()}
    assert reason in refusal(capsys, command, *words)
    assert {item.name for item in here.iterdir()} - {"__pycache__"} == before


def test_an_evaluation_that_is_refused_after_its_start_removes_its_folder(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        assert (here / "new/config.yaml").is_file()
        raise ValueError("every attack failed")

    monkeypatch.setattr("robustly.cli.evaluate.evaluate", refuse)
    assert "every attack failed" in refusal(capsys, "evaluate", "new", "--model", "given_nets:net", *QUICK)
    assert not (here / "new").exists()


def test_timm_is_not_imported_from_the_working_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "timm.py").write_text("open('ran', 'w')")
    assert "timm" in refusal(capsys, "evaluate", "--timm", "resnet18", *QUICK)
    assert not (here / "ran").exists()


def test_all_images_are_for_tests_unless_the_weights_were_trained_on_some(here: Path) -> None:
    def data_for(*words: str) -> dict[str, object]:
        run = given_run(Path("new"), ["--model.name", "given_nets:net", *words])
        found: dict[str, object] = run.config.as_plain()["data"]
        return found

    assert data_for()["evaluation_only"] is False
    assert data_for("--data.source", "images.npz")["evaluation_only"] is True
    assert data_for("--data.source", "images.npz", "--data.test", "5")["evaluation_only"] is False
    run = here / "run"
    run.mkdir()
    save_weights(build_model(small(), 0), run / "model.safetensors", about_model(small()))
    rows = row_digests(ImageData.from_floats(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])))
    write_run_data(run, RunData({"train": rows}))
    trained = given_run(Path("new"), ["--model.weights", "run", "--data.source", "images.npz"])
    assert trained.config.data.evaluation_only is False


def test_a_folder_that_robustly_exported_is_one_of_our_networks(here: Path) -> None:
    folder = here / "exported"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "robustly"}')
    save_weights(build_model(small(), 0), folder / "model.safetensors", about_model(small()))
    run = given_run(folder, [])
    assert (run.folder, run.config.model.name, run.config.model.width) == (Path("runs/exported"), "small_cnn", 0.1)
