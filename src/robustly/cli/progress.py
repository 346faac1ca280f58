"""Training progress: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from robustly.statistics import Proportion
from robustly.training import Job, Moment, Observer
from robustly.training.engine.checkpoint import Row
from robustly.training.engine.epochs_alone import words_alone
from robustly.training.engine.guide_check import guide_warm_up, weak_epoch
from robustly.training.engine.loop import COLLAPSED


@contextmanager
def observer_for(console: Console) -> Iterator[Observer]:
    """A live bar if the console is a terminal, else plain lines."""
    if console.quiet or not console.is_terminal:
        yield PlainLines(console)
        return
    progress = Progress(
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[validated]}"),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        expand=True,
    )
    with progress:
        yield LiveBar(console, progress)


def epoch_line(row: Row, is_best: bool) -> str:
    """One line about an epoch."""
    parts = [
        f"epoch {row['epoch']:>3}",
        f"loss {row['train_loss']:.3f}",
        f"validation: clean {_percent(row['validation_clean_accuracy'])}",
        f"robust {_percent(row['validation_robust_accuracy'])}",
        *([] if row.get("guide_accuracy") is None else [f"guide {_percent(row['guide_accuracy'])}"]),
        f"{row['images_per_second']:.0f} images/s",
    ]
    return "  ".join(parts) + ("  best" if is_best else "")


def pretraining_line(name: str, row: Row, epochs: int) -> str:
    """One line about an epoch of a network alone, before the run starts."""
    return (
        f"{words_alone(name)}, epoch {row['epoch']:>3}/{epochs}  loss {row['train_loss']:.3f}  "
        f"training {_percent(row['train_clean_accuracy'])}  "
        f"validation {_percent(row['validation_clean_accuracy'])}  {row['images_per_second']:.0f} images/s"
    )


def split_words(batch_size: int, moment: Moment, parts: int, *, found: bool) -> str:
    """One line about the parts in which batches pass."""
    if found:
        how = f"in {parts} parts" if parts > 1 else "whole"
        return f"training.accumulate: auto: batches of {batch_size} pass {how}"
    return (
        f"! out of memory in epoch {moment.epoch + 1}, step {moment.index + 1}: from here on each batch of "
        f"{batch_size} images passes in {parts} parts, for the same optimiser steps (as "
        f"training.accumulate: {parts} does; batch normalisation and dropout see each part alone)"
    )


def guide_words(accuracy: Proportion) -> str:
    """One line about a guide that was trained before the run."""
    return f"guide before the run: right on {100 * accuracy.share:.1f} % of {accuracy.count:,} training images"


def collapse_line(collapsed: float | int | None, classes: Sequence[str]) -> str:
    """A warning that every validation image is predicted as one class; empty if it is not so."""
    if collapsed is None:
        return ""
    return f"every validation image is predicted as class {classes[int(collapsed)]}: the network has collapsed"


def _percent(share: float | int | None) -> str:
    return "   -  " if share is None else f"{100 * share:5.1f} %"


class WeakGuide:
    """Warn once of a guide that is often wrong in an epoch in which the model learns from it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._warned = False
        self.warm_up = 0.0

    def print(self, row: Row) -> None:
        """Print the warning if the epoch is the first such one."""
        line = "" if self._warned else weak_epoch(row, self.warm_up)
        if line:
            self._warned = True
            self._console.print(f"! {line}", highlight=False, soft_wrap=True, markup=False)


class PlainLines(Observer):
    """Print one line per epoch, with the remaining time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.perf_counter()
        self._at_start = 0
        self._epochs = 0
        self._classes: tuple[str, ...] = ()
        self._batch_size = 0
        self._weak = WeakGuide(console)

    def pretrained(self, name: str, row: Row, epochs: int) -> None:
        """Print the epoch."""
        self._console.print(pretraining_line(name, row, epochs), highlight=False, soft_wrap=True)

    def guide_checked(self, accuracy: Proportion) -> None:
        """Print the accuracy."""
        self._console.print(guide_words(accuracy), highlight=False, soft_wrap=True)

    def started(self, job: Job, finished_epochs: int) -> None:
        """Store the epochs to run, the names of the classes and the start time."""
        self._classes, self._batch_size = job.train.classes, job.training.batch_size
        self._weak.warm_up = guide_warm_up(job)
        self._began, self._at_start, self._epochs = time.perf_counter(), finished_epochs, job.training.epochs

    def split(self, moment: Moment, parts: int, *, found: bool) -> None:
        """Print the number of parts."""
        line = split_words(self._batch_size, moment, parts, found=found)
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def epoch_finished(self, row: Row, is_best: bool) -> None:
        """Print the epoch."""
        epoch = int(row["epoch"] or 0)
        per_epoch = (time.perf_counter() - self._began) / max(1, epoch - self._at_start)
        left = per_epoch * (self._epochs - epoch)
        self._console.print(f"{epoch_line(row, is_best)}  {left:.0f} s left", highlight=False, soft_wrap=True)
        _print_collapse(self._console, row, self._classes)
        self._weak.print(row)


class LiveBar(Observer):
    """Show a bar over all steps of the run, and above it a line for every finished epoch."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._task = TaskID(0)
        self._began = time.perf_counter()
        self._images = 0
        self._classes: tuple[str, ...] = ()
        self._batch_size = 0
        self._weak = WeakGuide(console)

    def pretrained(self, name: str, row: Row, epochs: int) -> None:
        """Print the epoch."""
        self._console.print(pretraining_line(name, row, epochs), highlight=False)

    def guide_checked(self, accuracy: Proportion) -> None:
        """Print the accuracy."""
        self._console.print(guide_words(accuracy), highlight=False, soft_wrap=True)

    def started(self, job: Job, finished_epochs: int) -> None:
        """Create the bar."""
        self._classes, self._batch_size = job.train.classes, job.training.batch_size
        self._weak.warm_up = guide_warm_up(job)
        self._began = time.perf_counter()
        steps = job.steps_per_epoch
        self._task = self._progress.add_task(
            "",
            total=steps * job.training.epochs,
            completed=steps * finished_epochs,
            epoch=finished_epochs + 1,
            epochs=job.training.epochs,
            loss=float("nan"),
            validated="",
            rate=0.0,
        )

    def split(self, moment: Moment, parts: int, *, found: bool) -> None:
        """Print the number of parts."""
        line = split_words(self._batch_size, moment, parts, found=found)
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        """Advance the bar."""
        self._images += images
        rate = self._images / max(1e-9, time.perf_counter() - self._began)
        self._progress.update(self._task, completed=moment.count + 1, epoch=moment.epoch + 1, loss=loss, rate=rate)

    def epoch_finished(self, row: Row, is_best: bool) -> None:
        """Print the epoch."""
        self._console.print(epoch_line(row, is_best), highlight=False)
        _print_collapse(self._console, row, self._classes)
        self._weak.print(row)
        clean, robust = row["validation_clean_accuracy"], row["validation_robust_accuracy"]
        validated = f"clean {_percent(clean).strip()} robust {_percent(robust).strip()}"
        self._progress.update(self._task, validated=validated)


def _print_collapse(console: Console, row: Row, classes: Sequence[str]) -> None:
    line = collapse_line(row.get(COLLAPSED), classes)
    if line:
        console.print(f"! {line}", highlight=False, soft_wrap=True, markup=False)
