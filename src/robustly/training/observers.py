"""Observers of training that send the metrics of every epoch to TensorBoard, MLflow or Weights & Biases.

Each package is imported when it is named. The numbers are those of `metrics.csv`.
"""

import hashlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly.settings import nearest
from robustly.statistics import Proportion
from robustly.training.engine.checkpoint import Row
from robustly.training.engine.job import Job
from robustly.training.engine.observer import Observer
from robustly.training.step import Moment


class ObserverError(ValueError):
    """An unknown observer, or one whose package is not installed."""


@dataclass(frozen=True)
class Writer:
    """Functions of a tracking package for one run.

    Args:
        log: takes an epoch, from 1, and its metrics by name.
        close: ends the run; takes True if it was completed.
    """

    log: Callable[[int, Mapping[str, float]], None]
    close: Callable[[bool], None]


@dataclass(frozen=True)
class Subject:
    """The run that is observed.

    Args:
        folder: its folder.
        name: its name.
        key: text that is the same when the run is continued, and different for other runs.
        settings: its settings as plain values.
    """

    folder: Path
    name: str
    key: str
    settings: Mapping[str, Any]


def _tensorboard(subject: Subject) -> Writer:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(subject.folder / "tensorboard"))

    def log(epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return Writer(log, lambda completed: writer.close())


def _mlflow(subject: Subject) -> Writer:
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.start_run(run_name=subject.name, tags={"robustly": subject.key})
    mlflow.log_params({name: str(value)[:250] for name, value in _flat(subject.settings).items()})
    return Writer(
        lambda epoch, metrics: mlflow.log_metrics(dict(metrics), step=epoch),
        lambda completed: mlflow.end_run("FINISHED" if completed else "KILLED"),
    )


def _wandb(subject: Subject) -> Writer:
    wandb: Any = importlib.import_module("wandb")
    run = wandb.init(
        project="robustly",
        name=subject.name,
        id=subject.key,
        resume="allow",
        dir=str(subject.folder),
        config=dict(subject.settings),
    )
    return Writer(
        lambda epoch, metrics: run.log(dict(metrics), step=epoch),
        lambda completed: run.finish(exit_code=0 if completed else 1),
    )


OBSERVERS: dict[str, Callable[[Subject], Writer]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
"""Observers by the names of their packages and extras. A new one adds a function and a line."""


@contextmanager
def writers(names: Sequence[str], subject: Subject) -> Iterator[list[Observer]]:
    """Observers by name; their runs end with the block, as killed ones after an exception.

    Raises:
        ObserverError: a package cannot start a run, for instance because its server does not respond.
    """
    opened: dict[str, Writer] = {}
    completed = False
    try:
        for name in names:
            try:
                opened[name] = OBSERVERS[name](subject)
            except Exception as error:  # of any kind, by package
                raise ObserverError(f"the observer {name} cannot start: {_first_words(error)}") from error
        yield [EpochObserver(name, writer) for name, writer in opened.items()]
        completed = True
    finally:
        for name, writer in opened.items():
            try:
                writer.close(completed)
            except Exception as error:
                warnings.warn(f"the observer {name} did not end its run: {_first_words(error)}", stacklevel=2)


class EpochObserver(Observer):
    """Send the metrics of each epoch to a writer; values that are missing are left out.

    If the package raises an error, such as a lost connection, there is a warning and the training continues.
    """

    def __init__(self, name: str, writer: Writer) -> None:
        self._name, self._writer = name, writer

    def epoch_finished(self, row: Row, is_best: bool) -> None:
        """Send the epoch."""
        metrics = {name: float(value) for name, value in row.items() if value is not None and name != "epoch"}
        epoch = int(row["epoch"] or 0)
        try:
            self._writer.log(epoch, {**metrics, "is_best": float(is_best)})
        except Exception as error:  # of any kind, by package
            warnings.warn(f"the observer {self._name} lost epoch {epoch}: {_first_words(error)}", stacklevel=2)


class Observers(Observer):
    """Forward every callback to several observers, in their order."""

    def __init__(self, parts: Sequence[Observer]) -> None:
        self._parts = tuple(parts)

    def pretrained(self, name: str, row: Row, epochs: int) -> None:
        """An epoch of a network alone, before the run starts, is done and saved."""
        for part in self._parts:
            part.pretrained(name, row, epochs)

    def guide_checked(self, accuracy: Proportion) -> None:
        """The accuracy of a guide is measured."""
        for part in self._parts:
            part.guide_checked(accuracy)

    def started(self, job: Job, finished_epochs: int) -> None:
        """Training begins or continues."""
        for part in self._parts:
            part.started(job, finished_epochs)

    def split(self, moment: Moment, parts: int, *, found: bool) -> None:
        """Batches pass in more parts."""
        for part in self._parts:
            part.split(moment, parts, found=found)

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        """A step is done."""
        for part in self._parts:
            part.stepped(moment, loss, images)

    def epoch_finished(self, row: Row, is_best: bool) -> None:
        """An epoch is done, validated and saved."""
        for part in self._parts:
            part.epoch_finished(row, is_best)


def check_observers(text: str | None) -> tuple[str, ...]:
    """The names in a text such as "tensorboard,wandb", whose packages are imported.

    Raises:
        ObserverError: an unknown name, or a package that is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    for name in names:
        if name not in OBSERVERS:
            raise ObserverError(f"unknown observer {name!r}{nearest(name, OBSERVERS)}: use {', '.join(OBSERVERS)}")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ObserverError(f"the observer {name} needs its package: pip install 'robustly[{name}]'") from error
    return names


def _first_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def run_key(folder: Path, digest: str) -> str:
    """Key of a run, from its folder and the digest of its settings; the same when it is continued."""
    return hashlib.sha256(f"{folder.resolve()}\x1f{digest}".encode()).hexdigest()[:24]


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys; those without a value are left out."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{key}.")
        elif value is not None:
            found[f"{above}{key}"] = value
    return found
