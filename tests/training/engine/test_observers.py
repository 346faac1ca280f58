"""Observers, with packages that record what they receive."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robustly.cli import main
from robustly.training.observers import OBSERVERS, ObserverError, Subject, check_observers, run_key, writers

SMALL = [
    "--data.train_limit", "100", "--data.validation", "20", "--model.width", "0.25", "--training.epochs", "2",
    "--training.validation_steps", "1",
]  # fmt: skip
Calls = list[tuple[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for the three packages, which write down their calls."""
    made: Calls = []

    def note(name: str) -> Any:
        return lambda *words, **named: made.append((name, (words, named)))

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            made.append(("tensorboard", folder))

        add_scalar = staticmethod(note("scalar"))
        flush = staticmethod(lambda: None)
        close = staticmethod(note("closed"))

    run = SimpleNamespace(log=note("wandb.log"), finish=note("wandb.finish"))

    def init(**settings: Any) -> Any:
        made.append(("wandb.init", settings))
        return run

    names = ("start_run", "log_params", "log_metrics", "end_run")
    packages = {
        "tensorboard": SimpleNamespace(),
        "torch.utils.tensorboard": SimpleNamespace(SummaryWriter=SummaryWriter),
        "mlflow": SimpleNamespace(**{name: note(f"mlflow.{name}") for name in names}),
        "wandb": SimpleNamespace(init=init),
    }
    for name, package in packages.items():
        monkeypatch.setitem(sys.modules, name, package)
    return made


@pytest.mark.slow
def test_all_packages_get_the_rows_of_the_table(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "mnist5k/standard", "--out", "run", *SMALL, "--observers", "tensorboard,mlflow, wandb"]
    assert main(words) == 0
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))
    expected = {int(row.pop("epoch")): {name: float(text) for name, text in row.items() if text} for row in rows}
    assert list(expected) == [1, 2]
    sent = {name: [found for kind, found in calls if kind == name] for name, _ in calls}
    for epoch, metrics in expected.items():
        scalars = {name: value for (name, value, at), _ in sent["scalar"] if at == epoch}
        assert scalars.pop("is_best") in (0.0, 1.0)
        assert scalars == pytest.approx(metrics)
        [(logged,)] = [words for words, named in sent["wandb.log"] if named == {"step": epoch}]
        assert {name: value for name, value in logged.items() if name != "is_best"} == pytest.approx(metrics)
        [(logged,)] = [words for words, named in sent["mlflow.log_metrics"] if named == {"step": epoch}]
        assert set(logged) == {*metrics, "is_best"}
    assert sent["tensorboard"] == ["run/tensorboard"]
    [settings] = sent["wandb.init"]
    assert (settings["project"], settings["name"], settings["resume"]) == ("robustly", "run", "allow")
    assert settings["config"]["training"]["epochs"] == 2
    [((params,), _)] = sent["mlflow.log_params"]
    assert params["training.epochs"] == "2"
    assert len(sent["closed"]) == 1
    assert sent["wandb.finish"] == [((), {"exit_code": 0})]
    assert sent["mlflow.end_run"] == [(("FINISHED",), {})]


def subject(folder: Path) -> Subject:
    return Subject(folder, "run", run_key(folder, "digest"), {"seed": 0, "method": {"loss": {"name": "clean"}}})


def test_a_stopped_run_is_ended_as_one(calls: Calls, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writers(["mlflow", "wandb"], subject(tmp_path)):
        raise KeyboardInterrupt
    assert calls[-2:] == [("mlflow.end_run", (("KILLED",), {})), ("wandb.finish", ((), {"exit_code": 1}))]


def test_a_lost_connection_does_not_stop_the_training(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*words: Any, **named: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", lost, raising=False)
    monkeypatch.setattr(sys.modules["mlflow"], "end_run", lost, raising=False)
    with (
        pytest.warns(UserWarning, match=r"mlflow did not end its run: ConnectionError: no server"),
        writers(["mlflow"], subject(tmp_path)) as [observer],
        pytest.warns(UserWarning, match=r"the observer mlflow lost epoch 3: ConnectionError"),
    ):
        observer.epoch_finished({"epoch": 3, "train_loss": 1.0}, is_best=True)


def test_a_package_that_cannot_start_is_an_error(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: Any) -> None:
        raise RuntimeError("no API key\nlog in first")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse, raising=False)
    with (
        pytest.raises(ObserverError, match="wandb cannot start: RuntimeError: no API key log in first"),
        writers(["mlflow", "wandb"], subject(tmp_path)),
    ):
        pass
    assert calls[-1] == ("mlflow.end_run", (("KILLED",), {}))


def test_names_and_packages_are_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_observers(None) == check_observers("") == ()
    assert main(["train", "mnist5k/standard", "--out", "run", "--observers", "tensorbord"]) == 2
    assert "unknown observer 'tensorbord', did you mean 'tensorboard'?" in capsys.readouterr().err
    for name in OBSERVERS:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ObserverError, match=rf"needs its package: pip install 'robustly\[{name}\]'"):
            check_observers(name)
    assert not Path("run").exists()


def test_keys_of_runs(tmp_path: Path) -> None:
    assert run_key(tmp_path, "a") == run_key(tmp_path / "x/..", "a")
    assert len({run_key(tmp_path, "a"), run_key(tmp_path, "b"), run_key(tmp_path / "x", "a")}) == 3
