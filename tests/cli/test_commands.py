"""The commands as a user types them."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cli_tools import refusal

from robustly.cli import main
from robustly.cli.recipes import read_recipe
from robustly.experiments.overrides import apply_overrides

SMALL = [
    "--data.train_limit", "300", "--data.validation", "60", "--data.test", "60", "--model.width", "0.25",
    "--training.epochs", "1", "--training.epsilon_ramp", "1", "--training.validation_steps", "2",
    "--evaluation.curve_count", "20",
]  # fmt: skip
GUIDE = ["--guide.width", "0.25", "--method.inner.steps", "2", "--method.labels.warm_up", "0"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and evaluated DYNAT run."""
    folder = tmp_path_factory.mktemp("runs") / "dynat"
    assert main(["train", "mnist5k/dynat", "--out", str(folder), *SMALL, *GUIDE]) == 0
    assert main(["evaluate", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_run_folder_is_complete(run: Path) -> None:
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "data.safetensors", "metrics.csv", "status.json", "model.safetensors", "checkpoints/last.pt",
        "checkpoints/best.safetensors", "evaluation/summary.json", "evaluation/evidence.parquet",
        "evaluation/adversarial.safetensors", ".lock", ".evaluation.lock",
    }  # fmt: skip
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["recipe"] == "mnist5k/dynat"
    assert config["method"]["loss"] == {"name": "dynat", "beta": 1.0, "consistency": 0.0}
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_audit_and_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(run)]) == 0
    assert "audit passed" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "linf:0.3" in page
    (run / "report.html").unlink()


@pytest.mark.slow
def test_audit_fails_loudly(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "forged"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    summary = json.loads((copy / "evaluation/summary.json").read_text())
    summary["worst_case"]["accuracy"] = 0.99
    (copy / "evaluation/summary.json").write_text(json.dumps(summary))
    assert main(["audit", str(copy)]) == 1
    said = capsys.readouterr().out
    assert "AUDIT FAILED" in said
    assert "worst_case.accuracy" in said
    (copy / "evaluation/evidence.parquet").write_bytes(b"PAR1")
    assert main(["audit", str(copy)]) == 1
    assert "evidence.parquet is damaged" in capsys.readouterr().out


@pytest.mark.slow
def test_audit_fails_with_other_weights(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "swapped"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    assert main(["train", "mnist5k/standard", "--out", str(tmp_path / "other"), *SMALL]) == 0
    (copy / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert main(["audit", str(copy)]) == 1
    assert "FAILED the weights" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_evaluated_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--data.split_seed", "7"], ["--model.weights", "other.safetensors"], ["--training.epochs", "3"]):
        assert f"evaluate takes no {words[0]}" in refusal(capsys, "evaluate", str(run), "--overwrite", *words)
    assert (
        main(["evaluate", str(run), "--overwrite", "--evaluation.count", "20", "--evaluation.mode", "worst_case"])
        == 0
    )
    assert main(["audit", str(run)]) == 0
    assert "20 images" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--overwrite"]) == 0


def test_a_name_that_was_typed_trusts_that_name_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "evil.py").write_text("raise SystemExit('code was run')\n")
    recipe = {
        "data": {"source": "mnist5k"},
        "model": {"name": "evil:make"},
        "method": {"labels": "guide", "inner": "pgd", "loss": "dynat"},
    }
    (here / "sent.yaml").write_text(yaml.safe_dump(recipe))
    assert "not allowed" in refusal(capsys, "train", "sent.yaml", "--guide.name", "small_cnn")


@pytest.mark.slow
def test_markup_in_names_is_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mnist5k/standard", "--out", "x[/y] [bold]z", *SMALL]) == 0
    assert "x[/y] [bold]z" in capsys.readouterr().out
    assert main(["evaluate", "x[/y] [bold]z", "--evaluation.count", "10"]) == 0
    assert main(["report", "x[/y] [bold]z"]) == 0


def test_nothing_is_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "exists already" in refusal(capsys, "train", "mnist5k/standard", "--out", str(run))
    assert "--overwrite" in refusal(capsys, "evaluate", str(run))


def test_an_evaluation_under_another_threat_is_not_kept_in_its_place(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--keep"]) == 0
    assert "is kept" in capsys.readouterr().out
    assert "not rotation:20" in refusal(capsys, "evaluate", str(run), "--keep", "--threat", "rotation:20")


def test_a_mask_that_does_not_fit_is_refused_before_a_run_is_made(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(here / "colour.npy", np.ones((3, 28, 28), np.float32))
    threat = f"linf:0.1@{here / 'colour.npy'}"
    found = refusal(capsys, "train", "mnist5k/pgd_at", "--threat", threat, "--out", "never", "--dry-run")
    assert "(3, 28, 28)" in found
    assert "(3, 28, 28)" in refusal(capsys, "train", "mnist5k/pgd_at", "--threat", threat, "--out", "never")
    assert not (here / "never").exists()


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    names = capsys.readouterr().out.split()
    methods = ("standard", "pgd_at", "trades", "dynat", "dynat_inner")
    assert {f"{data}/{method}" for data in ("mnist5k", "cifar10") for method in methods} <= set(names)
    assert main(["recipes", "cifar10/dynat"]) == 0
    assert "resnet18_lbgat" in capsys.readouterr().out


REFUSED = [
    (["train", "mnist5k/dinat"], "did you mean 'mnist5k/dynat'"),
    (["train", "nowhere.yaml"], "there is no file nowhere.yaml"),
    (["train"], "name a recipe"),
    (["train", "mnist5k/dynat", "--training.epoch", "3"], "unknown key 'training.epoch', did you mean 'epochs'"),
    (["train", "mnist5k/dynat", "--trainin.epochs", "3"], "unknown key 'trainin', did you mean 'training'"),
    (["train", "mnist5k/dynat", "--training.epochs", "many"], "training.epochs: expected"),
    (["train", "mnist5k/dynat", "--training.epochs", "0"], "epochs must be at least 1"),
    (["train", "mnist5k/dynat", "--training.epochs"], "--training.epochs needs a value"),
    (["train", "mnist5k/dynat", "--training.epochs", "--seed", "3"], "--training.epochs needs a value"),
    (["train", "mnist5k/dynat", "--optimizer.nesterov", "true"], "nesterov"),
    (["train", "mnist5k/dynat", "--optimizer.momentum", "0.8"], "momentum has no effect with 'adamw'"),
    (["train", "mnist5k/dynat", "--threat", "linf:8"], "did you mean 8/255?"),
    (["train", "mnist5k/dynat", "--threat", "linf:-0.1"], "at least 0"),
    (["train", "mnist5k/dynat", "--threat", "linf:nan"], "finite number"),
    (["train", "mnist5k/dynat", "--threat", "lp:0.1"], "allowed are linf, l2, l1, l0"),
    (["train", "mnist5k/dynat", "--guide", "null"], "set the key 'guide'"),
    (["train", "mnist5k/trades", "--guide.name", "small_cnn"], "does not use"),
    (["train", "mnist5k/rslad"], "set teacher.weights to its file"),
    (["train", "mnist5k/rslad", "--teacher", "null"], "network 'teacher', the run has none"),
    (["train", "mnist5k/rslad", "--teacher.weights", "nowhere.safetensors"], "nowhere.safetensors"),
    (["train", "mnist5k/pgd_at", "--teacher.weights", "x"], "network 'teacher' that the method does not use"),
    (["train", "mnist5k/dynat", "--guide.classes", "7"], "guide: the model has classes = 7"),
    (["train", "mnist5k/dynat", "--guide.name", "torch.nn:Identity"], "guide: the model returns"),
    (["train", "mnist5k/dynat", "--method.weights.name", "none"], "allowed: gairat, mail, or null for none"),
    (["train", "mnist5k/dynat_inner_awp", "--training.epochs", "2"], "parameters.awp: warm_up is 3 epochs"),
    (["train", "mnist5k/trades", "--method.labels", "{name: smoothed, smoothing: 1}"], "smoothing must"),
    (["train", "mnist5k/trades", "--data.extra_source", "nowhere.npz"], "'nowhere.npz' is not a file or folder"),
    (["train", "mnist5k/trades", "--data.extra_fraction", "1"], "extra_fraction must lie between 0 and 1"),
    (["train", "mnist5k/trades", "--training.stop_after_drop", "2"], "stop_after_drop must lie between"),
    (["train", "mnist5k/trades", "--method.inner.start", "none"], "zero gradient"),
    (["train", "mnist5k/trades", "--method.inner", "null"], "inner maximisation"),
    (["train", "mnist5k/trades", "--method.loss.name", "clean"], "does not use"),
    (["train", "mnist5k/trades", "--method.loss.beta", "-1"], "beta must be at least 0"),
    (["train", "mnist5k/trades", "--method.loss.name", "tradez"], "did you mean 'trades'"),
    (["train", "mnist5k/trades", "--method.loss.gamma", "1"], "allowed: beta"),
    (["train", "mnist5k/dynat", "--method.inner.objective", "kll"], "'kl'"),
    (["train", "mnist5k/dynat", "--method.parameters.emma.decay", "0.9"], "did you mean 'ema'"),
    (["train", "mnist5k/dynat", "--runtime.device", "cuda:9"], "'auto', 'cpu', 'cuda', 'mps'"),
    (["train", "mnist5k/dynat", "--runtime.processes", "0"], "processes"),
    (["train", "mnist5k/dynat", "--seed", "one"], "seed: expected a whole number"),
    (["train", "mnist5k/dynat", "--data.source", "nowhere"], "'nowhere' is not a file or folder"),
    (["train", "mnist5k/dynat", "--model.classes", "7"], "classes = 7"),
    (["train", "mnist5k/dynat", "--model.name", "resnet19"], "unknown model 'resnet19'"),
    (["train", "mnist5k/dynat", "--model.name", "no_such_module:net"], "no_such_module"),
    (["train", "mnist5k/dynat", "--model.weights", "nowhere.safetensors"], "nowhere.safetensors"),
    (["train", "mnist5k/dynat", "--evaluation.suite", "autoattack"], "unknown suite or attack 'autoattack'"),
    (["train", "mnist5k/dynat", "extra"], "unrecognized arguments: extra"),
    (["train", "mnist5k/dynat", "--frobnicate"], "unrecognized arguments"),
    (["train", "--resume", "nowhere"], "not a run folder"),
    (["train", "mnist5k/dynat", "--resume", "nowhere"], "give no recipe"),
    (["evaluate", "nowhere"], "not a run folder"),
    (["audit", "nowhere"], "not a run folder"),
    (["audit", "nowhere", "--share", "0"], "share must lie between 0 and 1"),
    (["report", "nowhere"], "nowhere"),
    (["report", "a", "--training.epochs", "3"], "takes no settings"),
    (["recipes", "mnist5k/none"], "unknown recipe"),
    (["frobnicate"], "invalid choice"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "reason"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_refused_in_one_sentence_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert reason in refusal(capsys, *words)
    assert list(here.iterdir()) == []


def test_a_dry_run_prints_parts_and_passes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mnist5k/dynat", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "objective kl" in said
    assert [line.split("│")[2:4] for line in said.splitlines() if "guide   │" in line] == [
        ["       1 ", "        1 "]
    ]
    assert "19 in all, 9.5 times standard training's" in said
    assert "parameters: model 78,778, guide 78,778" in said
    assert "nothing was written" in said
    assert list(here.iterdir()) == []
    (here / "runs" / "mnist5k_dynat").mkdir(parents=True)
    (here / "runs" / "mnist5k_dynat" / "config.yaml").write_text("{}")
    assert main(["train", "mnist5k/dynat", "--dry-run"]) == 0, "an existing run is not in the way"


def test_a_dry_run_names_threats_that_allow_nothing_and_refuses_costs_of_other_classes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "mnist5k/pgd_at", "--threat", "rotation:0", "--dry-run"]) == 0
    assert "! rotation:0 allows no change: the training attack has nothing to search" in capsys.readouterr().out
    assert main(["train", "mnist5k/standard", "--threat", "linf:0", "--dry-run"]) == 0
    assert "allows no change" not in capsys.readouterr().out
    words = ["train", "mnist5k/margin_cs", "--method.loss.costs", "classes:12", "--dry-run"]
    assert "there is no class 12, the model has classes 0..9" in refusal(capsys, *words)


def test_a_dry_run_shows_the_parts_before_it_looks_for_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cifar10/trades", "--data.source", "nowhere", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "beta 6" in said.out
    assert "in all" in said.out
    assert "'nowhere' is not a file or folder" in said.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--runtime.processes", "2"], "use one process"),
        (["--runtime.processes", "0"], "processes and nodes must be at least 1"),
    ],
)
def test_a_dry_run_refuses_what_training_would(
    words: list[str], why: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode in (["--dry-run"], []) if "0" in words else (["--dry-run"],):
        assert main(["train", "mnist5k/free_at", *words, *mode]) == 2
        assert why in " ".join(capsys.readouterr().err.split())
    assert list(here.iterdir()) == []


def test_another_network_keeps_the_normalisation_of_the_images() -> None:
    recipe = read_recipe("cifar10/pgd_at")
    changed = apply_overrides(recipe, ["--model.name", "resnet18"])
    assert changed["model"] == {
        "name": "resnet18",
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.2471, 0.2435, 0.2616],
    }
    assert apply_overrides(recipe, ["--model.name", "package.module:net"])["model"] == {
        "name": "package.module:net"
    }


def test_a_file_cannot_import_code(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "evil.py").write_text("raise SystemExit('code was run')\n")
    recipe = {"data": {"source": "mnist5k"}, "model": {"name": "evil:make"}, "method": {"loss": "clean"}}
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "not allowed" in refusal(capsys, "train", "recipe.yaml")
    (here / "recipe.yaml").write_text("model: !!python/object/apply:os.system ['touch pwned']\n")
    assert "is not allowed: use plain values" in refusal(capsys, "train", "recipe.yaml")
    assert not (here / "pwned").exists()


@pytest.mark.slow
def test_a_model_of_ones_own_is_trained_evaluated_and_audited(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(
        "from torch import nn\n"
        "def make(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, classes))\n"
    )
    small = [word for word in SMALL if word not in ("--model.width", "0.25")]
    assert main(["train", "mnist5k/standard", "--model.name", "mine:make", "--out", "own", *small]) == 0
    assert "not allowed" in refusal(capsys, "evaluate", "own")
    assert main(["evaluate", "own", "--trust-code"]) == 0
    assert main(["audit", "own", "--trust-code"]) == 0
    # and as weights trained elsewhere, from a plain state dict
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file("own/model.safetensors")}, "weights.pt")
    words = ["evaluate", "elsewhere", "--model.name", "mine:make", "--model.weights", "weights.pt"]
    assert main([*words, "--threat", "l2:1", "--evaluation.count", "30"]) == 0
    summary = json.loads(Path("elsewhere/evaluation/summary.json").read_text())
    assert summary["threat"]["text"] == "l2:1"
    assert summary["clean"]["count"] == 30
    assert main(["audit", "elsewhere", "--trust-code"]) == 0
    assert main(["report", "elsewhere"]) == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("nn.Sequential(nn.Flatten(), nn.Linear(784, 7))", "the model has 7 outputs but the data 10 classes"),
        ("nn.Sequential(nn.Flatten(), nn.Linear(100, 10))", "fails on images of shape (8, 1, 28, 28)"),
        ("nn.Flatten(0)", "expected logits"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    name = "unfit" + re.sub(r"\W", "", body)
    (here / f"{name}.py").write_text(f"from torch import nn\ndef make():\n    return {body}\n")
    assert reason in refusal(capsys, "train", "mnist5k/standard", "--model.name", f"{name}:make")
    assert not (here / "runs").exists()


@pytest.mark.filterwarnings("default::UserWarning")
def test_nan_from_a_model_is_refused_and_probabilities_warned_of(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "odd.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def nan():\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
        "    nn.init.constant_(net[1].weight, float('nan'))\n"
        "    return net\n"
        "def soft():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softmax(1))\n"
    )
    assert "NaN" in refusal(capsys, "train", "mnist5k/standard", "--model.name", "odd:nan")
    small = [word for word in SMALL if word not in ("--model.width", "0.25")]
    assert main(["train", "mnist5k/standard", "--model.name", "odd:soft", *small]) == 0
    assert "probabilities, not logits" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "damaged"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors" in refusal(capsys, "audit", str(copy))
    last = copy / "checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    assert "last.pt is truncated" in refusal(capsys, "train", "--resume", str(copy))


def test_a_file_in_the_way_of_the_run_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs").write_text("not a folder")
    assert "runs" in refusal(capsys, "train", "mnist5k/standard", *SMALL)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "setrlimit") and sys.platform == "win32", reason="needs file size limits")
def test_a_full_disk_keeps_what_was_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file size limit stands in for the full disk: the checkpoint after the first epoch does not fit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60000, before[1]))
    try:
        said = refusal(capsys, "train", "mnist5k/standard", "--out", "full", *SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not write full/checkpoints/last.pt" in said
    assert (here / "full/config.yaml").exists()
    assert not list((here / "full").rglob("*.part"))
    # with room again, the run goes on
    assert main(["train", "--resume", "full"]) == 0


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_goes_on(here: Path) -> None:
    words = [sys.executable, "-m", "robustly", "train", "mnist5k/dynat", "--out", "run", *SMALL, *GUIDE]
    words += ["--training.epochs", "50"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (here / "run/metrics.csv").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "robustly train --resume run" in out
    assert json.loads((here / "run/status.json").read_text())["state"] == "stopped"
