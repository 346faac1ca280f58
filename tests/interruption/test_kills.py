"""SIGKILL at every file operation of train, evaluate, report and sweep: the same command again ends as unbroken."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import Commands, Operation, points
from safetensors import safe_open

from robustly.experiments.locks import repair_evaluations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux"),
]

TIMES = {"seconds", "overhead", "images_per_second", "created", "sha256", "files"}
STAGES = "{near: {attack: pgd, steps: 2}, far: {attack: pgd, steps: 3, precision: bfloat16, sample: 6}}"


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    server = Commands()
    yield server
    server.close()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a tiny run on images with a bright stripe by class, of which it learns some."""
    place = tmp_path_factory.mktemp("data")
    draw, labels = np.random.default_rng(0), np.arange(48) % 4
    images = draw.integers(0, 60, (48, 16, 16), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 150
    np.savez(place / "images.npz", images=images, labels=labels)
    return [
        f"--data.source={place / 'images.npz'}", "--data.expected_classes=4", "--data.validation=8",
        "--data.test=12", "--model.width=0.2", "--model.dropout=0.2", "--threat=linf:0.1",
        "--optimizer.learning_rate=0.02", "--training.batch_size=8",
        "--training.validation_steps=1", "--training.epsilon_ramp=1", "--method.inner.steps=1",
        "--runtime.device=cpu", "--evaluation.suite=two", f"--evaluation.stages={STAGES}",
    ]  # fmt: skip


def plain(value: Any) -> Any:
    """A value without times, comparable by `==`."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def content(path: Path) -> Any:
    """The content of a file, without times."""
    if path.suffix == ".json":
        return plain(json.loads(path.read_text()))
    if path.suffix == ".safetensors":  # the order of its metadata is by chance
        with safe_open(path, framework="np") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            return stored.metadata(), {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in tensors.items()}
    if path.suffix == ".pt":
        return plain(torch.load(path, weights_only=True))
    if path.suffix == ".csv":
        return [plain(row) for row in csv.DictReader(path.open(newline=""))]
    if path.suffix == ".html":
        return re.sub(r"[\d.]+ (s|min|h)\b|\d{4}-\d\d-\d\d[T ][\d:+.]*|\d+ images/s", "", path.read_text())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, Any]:
    """All files below a folder but locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): content(path) for path in files}


def killed_everywhere(
    commands: Commands,
    words: list[str],
    start: Path,
    place: Path,
    *,
    complete: str = "nothing is refused",
    at: Callable[[Operation], bool] = lambda operation: True,
    until: str | None = None,
    check: Callable[[Path], None] = lambda folder: None,
    checked_only_until: str | None = None,
) -> None:
    """Kill a command at every file operation and give it again; check that it ends as the unbroken one.

    Args:
        commands: the server.
        words: the command.
        start: folder with the files before the command.
        place: folder for copies of it.
        complete: the refusal by which the command, given again, may say that nothing is left to do.
        at: whether it is killed at an operation.
        until: name of the file after whose first operation it is not killed any more.
        check: called with the folder after each kill.
        checked_only_until: name of the file before whose first operation it is killed and checked, and not given
            again.
    """
    whole = Path(shutil.copytree(start, place / "whole"))
    unbroken = commands.run(words, whole)
    assert unbroken.code == 0, unbroken.output
    expected = contents(whole)
    names = [one.file for one in unbroken.operations]

    def first(file: str | None, otherwise: int) -> int:
        return otherwise if file is None else next(number for number, name in enumerate(names) if file in name)

    for number, cut in points(unbroken.operations[: first(until, len(names))]):
        if not at(unbroken.operations[number]):
            continue
        where = f"killed {'within' if cut else 'before'} operation {number}, {unbroken.operations[number]}"
        folder = Path(shutil.copytree(start, place / f"{number}{'cut' if cut else ''}"))
        killed = commands.run(words, folder, kill_at=number, cut=cut)
        assert killed.code == -signal.SIGKILL, where
        check(folder)
        if number < first(checked_only_until, 0):
            shutil.rmtree(folder)
            continue
        # an evaluation that continues must not measure again
        has_begun = bool(list(folder.rglob("begun.json"))) and not list(folder.rglob(".evaluation.new"))
        again = commands.run(words, folder, batch_size=5 if has_begun else 8)
        assert again.code == 0 or complete in again.output, f"{where}: {again.output}"
        found = contents(folder)
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert found[name] == value, f"{where}: {name}"
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def trained(commands: Commands, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["train", "mnist5k/pgd_at", "--out", "run", *settings, "--training.epochs=2"]
    ended = commands.run(words, folder)
    assert ended.code == 0, ended.output
    return folder


@pytest.fixture(scope="module")
def evaluated(commands: Commands, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its evaluation."""
    folder = tmp_path_factory.mktemp("evaluated") / "copy"
    shutil.copytree(trained, folder)
    ended = commands.run(["evaluate", "run"], folder)
    assert ended.code == 0, ended.output
    summary = json.loads((folder / "run/evaluation/summary.json").read_text())
    assert 0 < summary["worst_case"]["accuracy"] < summary["clean"]["accuracy"], "both attacks have work to do"
    return folder


def test_train(commands: Commands, settings: list[str], tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    words = ["train", "mnist5k/pgd_at", "--out", "run", *settings, "--training.epochs=2"]
    words.append("--method.parameters.ema.decay=0.8")
    killed_everywhere(commands, words, start, tmp_path)


def test_train_with_states_within_an_epoch(commands: Commands, settings: list[str], tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    words = ["train", "mnist5k/pgd_at", "--out", "run", *settings, "--training.epochs=2"]
    words += ["--method.parameters.ema.decay=0.8", "--training.checkpoint_every=3"]
    killed_everywhere(commands, words, start, tmp_path)


def test_train_with_epochs_of_the_guide_before(commands: Commands, settings: list[str], tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    words = ["train", "mnist5k/dynat", "--out", "run", *settings, "--training.epochs=2", "--guide.pretrain=2"]
    words += ["--guide.width=0.2", "--guide.dropout=0.2", "--method.labels.warm_up=0"]
    killed_everywhere(commands, words, start, tmp_path, until="best.safetensors")


def test_train_with_clean_epochs_before(commands: Commands, settings: list[str], tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    words = ["train", "mnist5k/pgd_at", "--out", "run", *settings, "--training.epochs=1", "--model.pretrain=2"]
    words += ["--model.dropout=0.2", "--method.parameters.ema.decay=0.8"]
    killed_everywhere(commands, words, start, tmp_path, until="best.safetensors")


def test_sigterm_at_every_file_operation_of_train_leaves_a_true_status(
    commands: Commands, settings: list[str], tmp_path: Path
) -> None:
    words = ["train", "mnist5k/pgd_at", "--out", "run", *settings, "--training.epochs=2"]
    (tmp_path / "whole").mkdir()
    unbroken = commands.run(words, tmp_path / "whole")
    assert unbroken.code == 0, unbroken.output
    states = []
    for number, one in enumerate(unbroken.operations):
        folder = tmp_path / str(number)
        folder.mkdir()
        stopped = commands.run(words, folder, kill_at=number, by=signal.SIGTERM)
        assert stopped.code == 128 + signal.SIGTERM, f"{number}, {one}: {stopped.output}"
        assert "Traceback" not in stopped.output
        assert not list(folder.rglob("*.part")), f"{number}, {one}"
        states.append("")
        if (folder / "run/status.json").is_file():
            status = json.loads((folder / "run/status.json").read_text())
            has_ended = (folder / "run/model.safetensors").is_file()
            last = folder / "run/checkpoints/last.pt"
            saved = torch.load(last, weights_only=True)["epoch"] if last.is_file() else 0
            assert status["state"] == ("finished" if has_ended else "stopped"), f"{number}, {one}"
            # an epoch counts from the moment when its name is on the disk
            assert status["epochs"] == saved - (".last.pt." in one.file and one.name == "unlink"), (
                f"{number}, {one}"
            )
            states[-1] = status["state"]
        shutil.rmtree(folder)
    assert list(dict.fromkeys(states)) == ["", "stopped", "finished"]


def test_evaluate(commands: Commands, trained: Path, tmp_path: Path) -> None:
    killed_everywhere(commands, ["evaluate", "run"], trained, tmp_path, complete="run/evaluation exists already")


def test_evaluate_a_model_trained_elsewhere(
    commands: Commands, settings: list[str], trained: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    chosen = [word for word in settings if word.startswith(("--data", "--evaluation", "--threat", "--runtime"))]
    weights = f"--model.weights={trained / 'run/model.safetensors'}"
    words = ["evaluate", "new", "--model.name=small_cnn", "--model.width=0.2", weights, *chosen]
    killed_everywhere(commands, words, start, tmp_path, until="near.safetensors")


def test_evaluate_in_the_place_of_an_earlier_evaluation(
    commands: Commands, evaluated: Path, tmp_path: Path
) -> None:
    words = ["evaluate", "run", "--overwrite", "--seed=3"]
    ended = commands.run(words, Path(shutil.copytree(evaluated, tmp_path / "other")))
    assert ended.code == 0, ended.output
    old, new = (contents(folder / "run/evaluation") for folder in (evaluated, tmp_path / "other"))
    assert old != new
    seen = []

    def check(folder: Path) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "looked at"))
        repair_evaluations(copy / "run")
        found = contents(copy / "run/evaluation")
        assert found in (old, new)
        seen.append(found == new)
        shutil.rmtree(copy)

    # How the partial results continue is what `test_evaluate` shows.
    killed_everywhere(
        commands, words, evaluated, tmp_path, check=check, checked_only_until=".adversarial.safetensors."
    )
    assert sorted(seen) == seen, "first the old one, then the new one"
    assert set(seen) == {False, True}


def test_report(commands: Commands, evaluated: Path, tmp_path: Path) -> None:
    killed_everywhere(commands, ["report", "run"], evaluated, tmp_path)


def test_sweep(commands: Commands, settings: list[str], tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    words = ["sweep", "mnist5k/pgd_at", "--out", "s", "--evaluate", "--threads=1", *settings, "--training.epochs=1"]
    killed_everywhere(commands, words, start, tmp_path, at=changes_a_sweep)


def changes_a_sweep(operation: Operation) -> bool:
    """Return True for the files by which a sweep decides what is left to do.

    The others are of one run, which `test_train` and `test_evaluate` kill everywhere.
    """
    names = ("sweep.yaml", "config.yaml", "seed=0", "last.pt", "model.safetensors", "begun", ".evaluation")
    return any(name in operation.file for name in names)
