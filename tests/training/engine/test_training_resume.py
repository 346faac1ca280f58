"""Real runs, killed by SIGKILL at moments of chance and resumed, end with the very weights of an unbroken one."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from training_tools import final, last, same

from forked import Command, fork
from robustly.cli import main

SMALL = {
    "--threat": "linf:0.1",
    "--data.train_limit": "900",
    "--data.image_size": "16",
    "--data.validation": "60",
    "--data.test": "60",
    "--model.width": "0.25",
    "--training.epochs": "3",
    "--training.batch_size": "32",
    "--training.validation_steps": "2",
    "--training.epsilon_ramp": "1",
    "--runtime.device": "cpu",
}
GUIDED = {
    "--model.dropout": "0.3",
    "--guide.width": "0.25",
    "--guide.dropout": "0.3",
    "--method.parameters.ema.decay": "0.9",
}


def words(settings: dict[str, str]) -> list[str]:
    return [word for pair in settings.items() for word in pair]


def kill_after(process: Command, file: Path, delay: float) -> bool:
    """Wait until a file is written (again), and a little longer, then kill; whether the process still ran."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    while process.poll() is None and not (file.exists() and file.stat().st_mtime_ns > before):
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_ends_as_an_unbroken_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, whole, killed = "mnist5k/dynat", tmp_path / "whole", tmp_path / "killed"
    settings = words(SMALL | GUIDED)
    chance = random.Random(recipe)
    at_start = chance.uniform(0, 0.5)
    process = fork(recipe, "--out", str(killed), *settings, command="train")
    assert kill_after(process, killed / "config.yaml", at_start)
    for _ in range(2):  # after a checkpoint, or while one is written
        process = fork("--resume", str(killed), command="train")
        if not kill_after(process, killed / "checkpoints/last.pt", chance.uniform(0, 0.1)):
            break
    assert not (killed / "model.safetensors").exists()
    assert last(killed)["epoch"] in (1, 2)
    assert main(["train", "--resume", str(killed)]) == 0
    assert "finished 3 epochs" in capsys.readouterr().out
    assert main(["train", recipe, "--out", str(whole), *settings]) == 0
    assert same(final(whole), final(killed))
    one, other = last(whole), last(killed)
    for role in one["networks"]:
        assert same(one["networks"][role], other["networks"][role]), role
    assert one["memory"].keys() == other["memory"].keys()
    assert all(same(one["memory"][part], other["memory"][part]) for part in one["memory"])
    for mine, theirs in zip(one["rows"], other["rows"], strict=True):
        for name in set(mine) - {"seconds", "images_per_second"}:
            assert mine[name] == theirs[name], name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = SMALL | {"--data.train_limit": "64", "--training.epochs": "1"}
    assert main(["train", "mnist5k/pgd_at", "--out", str(folder), *words(settings)]) == 0
    return folder


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A run of two epochs of which one is done."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["train", "--resume", str(folder)])
    return code, capsys.readouterr().err


def test_a_truncated_checkpoint_ends_in_one_sentence(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = unfinished / "checkpoints/last.pt"
    content = path.read_bytes()
    for length in (0, 100, len(content) - 1):
        path.write_bytes(content[:length])
        code, err = resume(unfinished, capsys)
        assert code == 2
        assert "last.pt is truncated or not a checkpoint of robustly" in err
        assert err.count("\n") == 1


def test_a_foreign_checkpoint_ends_in_one_sentence(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, unfinished / "checkpoints/last.pt")
    code, err = resume(unfinished, capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "is not a training checkpoint of robustly" in err


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("optimizer", "learning_rate", 0.5), ("data", "train_limit", 60), (None, "seed", 9)],
)
def test_settings_that_were_edited_under_a_run_end_in_one_sentence(
    section: str | None, key: str, value: object, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load((unfinished / "config.yaml").read_text())
    (settings if section is None else settings[section])[key] = value
    (unfinished / "config.yaml").write_text(yaml.safe_dump(settings))
    code, err = resume(unfinished, capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "another configuration" in err


def test_a_network_of_another_shape_in_the_checkpoint_ends_in_one_sentence(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    network = content["networks"]["model"]
    for change in ({"classifier.fc3.bias": torch.zeros(3)}, {"stranger": torch.zeros(3)}):
        torch.save(content | {"networks": {"model": network | change}}, path)
        code, err = resume(unfinished, capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert "last.pt" in err
    torch.save(content | {"networks": {}}, path)
    code, err = resume(unfinished, capsys)
    assert (code, err.count("\n")) == (2, 1)


def test_nobody_writes_into_a_run_that_exists(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (unfinished / "checkpoints/last.pt").read_bytes()
    assert main(["train", "mnist5k/pgd_at", "--out", str(unfinished), *words(SMALL)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["train", "--resume", str(unfinished), "--training.epochs", "9"]) == 2
    assert main(["train", "--resume", str(unfinished.parent)]) == 2
    assert (unfinished / "checkpoints/last.pt").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = final(unfinished)
    code, err = resume(unfinished, capsys)
    assert (code, err) == (0, "")
    assert same(before, final(unfinished))
