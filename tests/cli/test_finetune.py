"""`robustly finetune`: sources, phases, records, refusals."""

import json
from pathlib import Path

import pytest
import torch
from cli_tools import refusal
from safetensors.torch import load_file, save_file

from robustly.cli import main
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.finetune import METHODS, FinetunePlan, finetuning_settings, read_record
from robustly.experiments.run_folder import open_run

SMALL = ("--data.image_size", "16", "--data.train_limit", "100", "--data.validation", "20", "--model.width", "0.25")
QUICK = ("--training.validation_steps", "1", "--training.batch_size", "50", "--method.inner.steps", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune") / "natural"
    words = ("--training.epochs", "5", "--training.validation_steps", "1", "--seed", "7", "--threat", "linf:0.1")
    assert main(["train", "mnist5k/standard", *SMALL, *words, "--out", str(folder)]) == 0
    return folder


def settings_of(plan: FinetunePlan) -> RunConfig:
    return build_config(finetuning_settings(plan, METHODS["trades"]))


def test_settings_from_a_run(trained: Path) -> None:
    config, earlier = settings_of(FinetunePlan(trained)), open_run(trained)
    assert config.model.weights == str(trained / "model.safetensors")
    assert (config.data, config.threat, config.seed) == (earlier.data, earlier.threat, 7)
    assert (config.training.epochs, config.training.head_epochs) == (2, 0), "a quarter of 5, rounded up"
    assert config.optimizer.learning_rate == pytest.approx(earlier.optimizer.learning_rate)
    first = settings_of(FinetunePlan(trained, epochs=8, mode="head_first", layer_decay=0.75, threat="l2:1"))
    assert (first.training.head_epochs, first.optimizer.layer_decay, str(first.threat)) == (2, 0.75, "l2:1")
    assert settings_of(FinetunePlan(trained, epochs=3, mode="head_only")).training.head_epochs == 3
    inside = settings_of(FinetunePlan(trained / "checkpoints" / "best.safetensors"))
    assert inside.model.width == 0.25, "a file of a run has the network of the run"


@pytest.mark.slow
def test_a_run_is_tuned_with_numbers_before_and_after(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", str(trained), "--epochs", "2", "--mode", "head_first", "--head-epochs", "1", *QUICK]
    words += ["--threat", "linf:0.05", "--method", "pgd_at", "--count", "8", "--out", str(tmp_path / "new")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    record = read_record(tmp_path / "new", ["linf:0.05", "linf:0.1"], 8)
    before, after = record["before"], record["after"]
    for one in (before, after):
        assert 0 <= one.robust["linf:0.1"].hits <= one.robust["linf:0.05"].hits <= one.clean.hits
        assert str(one.clean) in shown
    assert before.weights != after.weights
    start, new = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "new"))
    assert not all(torch.equal(start[name], new[name]) for name in start)
    file = tmp_path / "new" / "finetune.json"
    content = json.loads(file.read_text())
    assert content["suite"] == "quick"
    # the same command leaves a finished run as it is, and measures what the record lacks
    text = file.read_text()
    del content["after"]
    file.write_text(json.dumps(content))
    assert main(words) == 0
    assert json.loads(file.read_text()) == json.loads(text)
    file.write_text(json.dumps({"format": content["format"], "before": 3}))
    assert read_record(tmp_path / "new", ["linf:0.05", "linf:0.1"], 8) == {}
    file.write_text(text)
    assert read_record(tmp_path / "new", ["linf:0.05"], 8) == {}, "other threats"
    assert read_record(tmp_path / "new", ["linf:0.05", "linf:0.1"], 9) == {}, "another number of images"
    capsys.readouterr()
    assert "other settings (optimizer)" in refusal(capsys, *words, "--layer-decay", "0.5")


@pytest.mark.slow
def test_a_file_of_weights_needs_its_network_and_images(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "alien.safetensors", ("--out", str(tmp_path / "new"))
    save_file(load_file(trained / "model.safetensors"), file)
    assert "name the network of" in refusal(capsys, "finetune", str(file), *out)
    network = ("--model.name", "small_cnn", *SMALL)
    assert "name the images with --data" in refusal(capsys, "finetune", str(file), *network, *out)
    words = ("finetune", str(file), *network, "--data", "mnist5k", *out)
    assert main([*words, "--dry-run"]) == 0
    assert "10 epochs of 1 steps of 128 images" in capsys.readouterr().out
    assert "no layer 'fc9' with weights" in refusal(capsys, *words, "--mode", "head_only", "--head", "fc9")
    assert not (tmp_path / "new").exists(), "nothing is written before the settings are right"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("nowhere",), "neither a run folder nor a file of weights"),
        (("RUN", "--epochs", "0"), "--epochs must be at least 1"),
        (("RUN", "--head-epochs", "2"), "--head-epochs has no effect with --mode full"),
        (("RUN", "--head", "fc"), "--head has no effect"),
        (("RUN", "--layer-decay", "2"), "layer_decay must lie in (0, 1]"),
        (("RUN", "--method", "thunder"), "--method is trades, pgd_at or the name of a recipe"),
        (("RUN", "--count", "0"), "--count must be at least 1"),
        (("RUN", "--mode", "half"), "invalid choice: 'half'"),
        (("RUN", "--method", "mnist5k/lbgat0"), "the method uses the network 'guide'"),
    ],
)
@pytest.mark.slow
def test_refusals(
    words: tuple[str, ...], reason: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(trained) if word == "RUN" else word for word in words]
    assert reason in refusal(capsys, "finetune", *given, "--out", str(tmp_path / "new"))


def test_messages_of_a_finished_run_name_the_way_on(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "train", "--resume", str(trained), "--training.epochs", "9")
    assert f"robustly finetune {trained} --epochs N --out NEW" in said
    assert f"--model.weights {trained}/model.safetensors" in said
    said = refusal(capsys, "train", "mnist5k/standard", *SMALL, "--out", str(trained))
    assert f"robustly finetune {trained} --epochs N" in said
    config = trained / "config.yaml"
    text = config.read_text()
    try:
        config.write_text(text.replace("  epochs: 5\n", "  epochs: 9\n"))
        said = refusal(capsys, "train", "--resume", str(trained))
    finally:
        config.write_text(text)
    assert "restore config.yaml" in said
    assert "--model.weights RUN/model.safetensors" in said
