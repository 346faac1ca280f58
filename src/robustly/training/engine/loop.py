"""The training loop for all methods and devices, resumable at any moment."""

import shutil
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustly.files import whole_file, write_json, write_text
from robustly.launching import LOST
from robustly.models import save_weights, weights_hash
from robustly.processes import ProcessError, is_lost_process
from robustly.runtime import Runtime, with_lost_device
from robustly.sharding import shards_like
from robustly.training.engine.checkpoint import (
    PRETRAINING,
    CheckpointError,
    Row,
    TrainingState,
    Within,
    load_state,
    save_state,
)
from robustly.training.engine.epochs_alone import metrics_file, words_alone
from robustly.training.engine.guide_check import refuse_chance, weak_words
from robustly.training.engine.job import Job
from robustly.training.engine.measurements import Measurements
from robustly.training.engine.metrics import Totals, as_csv
from robustly.training.engine.observer import Observer
from robustly.training.engine.pretraining import pretrained
from robustly.training.engine.stepping import Stepper
from robustly.training.engine.stopping import DivergenceError, check_weights, reason_to_stop
from robustly.training.engine.validation import averaged_state
from robustly.training.parts import EpochEnd, InstanceWeightsError
from robustly.training.step import Moment

LAST = "checkpoints/last.pt"
BEST = "checkpoints/best.safetensors"
FINAL = "model.safetensors"
COLLAPSED = "validation_collapsed_class"
"""Column of `metrics.csv`: the class that every validation image is predicted as; empty if there are several."""


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Args:
        best_epoch: the selected epoch, from 1.
        epochs: epochs trained.
        seconds: training time, summed over resumed runs.
        rows: metrics by epoch.
        reason: reason for an early end; empty without one.
        collapsed: the class that the selected weights predict for every validation image; None if they learn.
    """

    best_epoch: int
    epochs: int
    seconds: float
    rows: list[Row]
    reason: str = ""
    collapsed: int | None = None


def train(
    job: Job, runtime: Runtime, folder: Path, *, config_digest: str, observer: Observer | None = None
) -> Outcome:
    """Train; validate, select and save after every epoch. Continues the run in `folder` if there is one.

    Writes into `folder`: `checkpoints/last.pt` (full state), `checkpoints/best.safetensors` and at the end
    `model.safetensors` (the selected weights), `metrics.csv`, `status.json`. On one device with the same number of
    threads, a resumed run ends with the same weights as an uninterrupted one, bit by bit.

    Args:
        job: method, networks, data and settings.
        runtime: device and processes.
        folder: the run's folder, which exists.
        config_digest: hash of the configuration, by which checkpoints of the run are recognised.
        observer: callbacks.

    Returns:
        Selected epoch, times and metrics.

    Raises:
        DivergenceError: a loss term is NaN or infinite; the last good checkpoint is kept.
        GuideError: a guide that was trained before is not better than chance.
        BatchMemoryError: a batch does not fit into the memory, and not in parts either.
        TrialError: a network cannot be trained, such as one without logits in training mode.
        CheckpointError: `last.pt` is damaged or of another run.
        OSError: the folder is read-only or the disk is full; files written before are kept.
        ProcessError: another process has stopped.
        DeviceError: the device does not answer any more.
    """
    with torch.random.fork_rng(devices=[runtime.device] if runtime.device.type == "cuda" else []):
        return _Run(job, runtime, folder, config_digest, observer or Observer()).go()


class _Run:
    """State of a run between steps."""

    def __init__(self, job: Job, runtime: Runtime, folder: Path, config_digest: str, observer: Observer) -> None:
        job.check_processes(runtime.world_size, runtime.is_sharded)
        self.job, self.runtime, self.folder, self.observer = job, runtime, folder, observer
        self.config_digest = config_digest
        self.stepper = Stepper(job, runtime)
        self.measurements = Measurements(job, runtime, self.stepper, job.validation.to(runtime.device))
        self.rows: list[Row] = []
        self.best_epoch, self.best_score = -1, (-1.0, -1.0, -1.0)
        self.seconds = 0.0
        self.pretraining: dict[str, list[Row]] = {}
        self.unfinished: dict[str, Any] | None = None
        self.within: Within | None = None

    def go(self) -> Outcome:
        """Train to the end."""
        try:
            with self.stepper.prepared():
                self._recover()
                return self._to_the_end()
        except KeyboardInterrupt as stop:
            if not (self.folder / FINAL).is_file():
                self._write_status("stopped", str(stop) or "interrupted by the user")
            raise

    def _to_the_end(self) -> Outcome:
        try:
            if not self.rows and self.within is None:
                self._pretrain()
                self._check_guide()
            self.observer.started(self.job, len(self.rows))
            while len(self.rows) < self.job.training.epochs and not self._stopped_early():
                self._epoch(len(self.rows))
            reason = self._stopped_early() if len(self.rows) < self.job.training.epochs else ""
            self._finish(reason)
        except Exception as error:
            error = with_lost_device(error)
            diverged = isinstance(error, DivergenceError | InstanceWeightsError)
            lost = self.runtime.world_size > 1 and is_lost_process(error)
            with suppress(OSError):  # a full disk, which is the error then
                self._write_status("diverged" if diverged else "failed", LOST if lost else str(error))
            if lost:
                raise ProcessError(LOST) from error
            raise error
        self.runtime.wait_for_all()
        collapsed = self.rows[self.best_epoch].get(COLLAPSED)
        return Outcome(
            self.best_epoch + 1,
            len(self.rows),
            self.seconds,
            self.rows,
            reason,
            None if collapsed is None else int(collapsed),
        )

    def _finish(self, reason: str) -> None:
        """Write the selected weights; last, because a folder with them is a finished run."""
        self._write_status("finished", reason)
        if self.runtime.rank == 0:
            with whole_file(self.folder / FINAL) as temporary:
                shutil.copyfile(self.folder / BEST, temporary)

    def _stopped_early(self) -> str:
        return reason_to_stop(self.job.training, self.rows, self.best_epoch)

    def _pretrain(self) -> None:
        """Train networks alone where the settings say so, and save after every epoch."""
        job, runtime, done = self.job, self.runtime, self.pretraining
        for name, row, optimizer in pretrained(
            job, runtime, self.stepper, self.measurements, done, self.unfinished
        ):
            rows, epochs = [*done.get(name, ()), row], job.epochs_alone[name]
            row["seconds"] = self.seconds = self.seconds + float(row["seconds"] or 0.0)
            done[name] = rows
            state = self._state(self.stepper.optimizers.state_dict() | {PRETRAINING: optimizer})
            if runtime.rank == 0:
                (self.folder / LAST).parent.mkdir(exist_ok=True)
                save_state(state, self.folder / LAST)
                write_text(self.folder / metrics_file(name), as_csv(rows))
                self._write_status("running", f"the {words_alone(name)}: epoch {len(rows)} of {epochs}")
            runtime.wait_for_all()
            self.observer.pretrained(name, row, epochs)

    def _check_guide(self) -> None:
        """Measure a guide that was trained before, refuse one of chance, and warn of a weak one."""
        accuracy = self.measurements.guide()
        if accuracy is None:
            return
        refuse_chance(accuracy, self.job.train.num_classes)
        self.observer.guide_checked(accuracy)
        if self.runtime.rank == 0 and weak_words(accuracy.share):
            warnings.warn(weak_words(accuracy.share), stacklevel=2)

    def _epoch(self, epoch: int) -> None:
        done, self.within = self.within or Within(0, 0.0, 0.0, {}), None
        began = time.perf_counter() - done.seconds
        totals = Totals(self.runtime.device)
        totals.restore(done.totals, self.runtime.rank)
        job, rate = self.job, done.rate
        self.stepper.begin_epoch(epoch)
        for index, batch in enumerate(self.stepper.batches(epoch, start=done.step), done.step):
            moment = Moment(epoch, index, job.steps_per_epoch, job.training.epochs)
            if job.images_of_step(index) < self.runtime.world_size:
                break  # all processes leave out a last batch with fewer images than processes
            for replay in range(job.method.replays):
                parts = self.stepper.parts
                loss, rate = self.stepper.step(batch, moment, replay, totals)
                if self.stepper.parts != parts:
                    self.observer.split(moment, self.stepper.parts or 1, found=parts is None)
                self.observer.stepped(moment, loss, job.images_of_step(index))
            every = job.training.checkpoint_every
            if every is not None and (index + 1) % every == 0 and index + 1 < self.stepper.steps_per_epoch:
                sums, seconds = totals.state(self.runtime), time.perf_counter() - began
                self._save_within(Within(index + 1, rate, seconds, sums))
        end = EpochEnd(
            epoch=epoch,
            epochs=job.training.epochs,
            model=self.stepper.networks.model,
            images=lambda: self.stepper.images(epoch),
            remember=lambda part: self.stepper.memory.setdefault(job.method.slot_of(part), {}),
            global_mean=self.runtime.mean,
            whole_weights=self.runtime.whole_weights,
        )
        with self.stepper.synchronised():
            job.method.after_epoch(end)
        trained = time.perf_counter() - began
        check_weights(self.stepper.networks.learning, epoch, total=self.runtime.sum)
        found = self.measurements.validate()
        row: Row = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * job.steps_per_epoch,
            "learning_rate": rate,
            "train_clean_accuracy": None,
            "train_robust_accuracy": None,
            **totals.means(self.runtime),
            "validation_clean_accuracy": found.clean,
            "validation_robust_accuracy": found.robust,
            COLLAPSED: found.collapsed,
            **self.measurements.training_images(),
            "images_per_second": len(job.train) / trained,
            **({} if self._parts is None else {"accumulate": self._parts}),
        }
        row["seconds"] = self.seconds + time.perf_counter() - began
        score = found.score(job.training.select_by)
        is_best = score > self.best_score
        self._save(row, score if is_best else None)
        self.observer.epoch_finished(row, is_best)

    @property
    def _parts(self) -> int | None:
        """Parts in which batches pass, where that is not the setting; else None."""
        return None if self.stepper.parts == self.job.training.accumulate else self.stepper.parts

    def _released(self) -> dict[str, Tensor]:
        """State dict to release; all processes collect their shards of it together."""
        average = averaged_state(self.job.method, self.stepper.memory)
        return self.runtime.whole(self.stepper.networks.model.state_dict() if average is None else average)

    def _save(self, row: Row, best_score: tuple[float, float, float] | None) -> None:
        """Save the state after an epoch, with its score if it is the best; the epoch counts once it is saved."""
        rows, seconds = [*self.rows, row], float(row["seconds"] or 0.0)
        best = (self.best_epoch, self.best_score) if best_score is None else (len(self.rows), best_score)
        state = self._state(self.stepper.optimizers.state_dict())
        if self.runtime.rank == 0:
            (self.folder / LAST).parent.mkdir(exist_ok=True)
            state = replace(state, epoch=len(rows), rows=rows, seconds=seconds)
            save_state(replace(state, best_epoch=best[0], best_score=best[1]), self.folder / LAST)
        self.rows, self.seconds, (self.best_epoch, self.best_score) = rows, seconds, best
        released = None if best_score is None else self._released()
        if self.runtime.rank == 0:
            if released is not None:
                save_weights(released, self.folder / BEST, self.job.about_weights)
            write_text(self.folder / "metrics.csv", as_csv(self.rows))
            self._write_status("running", "")
        self.runtime.wait_for_all()

    def _save_within(self, within: Within) -> None:
        """Save the state in the middle of an epoch."""
        state = replace(self._state(self.stepper.optimizers.state_dict()), within=within)
        if self.runtime.rank == 0:
            (self.folder / LAST).parent.mkdir(exist_ok=True)
            save_state(state, self.folder / LAST)
            self._write_status("running", "")
        self.runtime.wait_for_all()

    def _state(self, optimizers: dict[str, dict[str, Any]]) -> TrainingState:
        """The state after the epochs that are saved; all processes collect their shards of it together."""
        learning, whole = self.stepper.networks.learning, self.runtime.whole
        return TrainingState(
            epoch=len(self.rows),
            config_digest=self.config_digest,
            networks=whole({name: network.state_dict() for name, network in learning.items()}),
            frozen={name: weights_hash(network) for name, network in self.stepper.networks.frozen.items()},
            optimizers=whole(optimizers),
            memory=whole(self.stepper.memory),
            rows=self.rows,
            best_epoch=self.best_epoch,
            best_score=self.best_score,
            seconds=self.seconds,
            pretraining=self.pretraining,
            parts=self._parts,
        )

    def _recover(self) -> None:
        if not (self.folder / LAST).exists():
            return
        state = load_state(self.folder / LAST, self.config_digest)
        self.rows, self.seconds = list(state.rows), state.seconds
        self.best_epoch = state.best_epoch
        first, second = state.best_score[-2:]
        learns = state.best_score[0] if len(state.best_score) == 3 else 1.0  # older states have two numbers
        self.best_score = learns, first, second
        alone = self.job.epochs_alone
        self.pretraining = {name: rows for name, rows in state.pretraining.items() if name in alone}
        self.unfinished = state.optimizers.get(PRETRAINING)
        self.stepper.parts = state.parts or self.stepper.parts
        self.within = self._position(state)
        try:
            for name, network in self.stepper.networks.learning.items():
                network.load_state_dict(shards_like(state.networks[name], network.state_dict()))
            self.stepper.optimizers.load_state_dict(state.optimizers)
        except (
            RuntimeError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:  # the code of a user's model may have changed
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.folder / LAST} does not fit the networks of the run ({reason})") from None
        for name, network in self.stepper.networks.frozen.items():
            if state.frozen.get(name) != weights_hash(network):
                raise CheckpointError(f"the weights of the {name} differ from those at the start of the run")
        like = self.stepper.networks.model.state_dict()
        for part, tensors in state.memory.items():  # averages of the model's weights are in shards as they are
            there = {name: value.to(self.runtime.device) for name, value in tensors.items()}
            self.stepper.memory[part] = shards_like(there, like)
        released = self._released() if self.best_epoch == len(self.rows) - 1 >= 0 else None
        if self.runtime.rank == 0:
            for name, rows in self.pretraining.items():  # the process may have been killed before it wrote them
                write_text(self.folder / metrics_file(name), as_csv(rows))
            if not self.rows or self.within is not None:  # the weights of this moment are of no epoch
                return
            if released is not None:  # the process may have been killed before it wrote them
                save_weights(released, self.folder / BEST, self.job.about_weights)
            write_text(self.folder / "metrics.csv", as_csv(self.rows))

    def _position(self, state: TrainingState) -> Within | None:
        """The position of a state in its epoch.

        Raises:
            CheckpointError: the epoch has fewer steps.
        """
        steps = self.stepper.steps_per_epoch
        if state.within is not None and state.within.step >= steps:
            raise CheckpointError(
                f"{self.folder / LAST} was saved after step {state.within.step} of an epoch that has {steps} steps"
            )
        return state.within

    def _write_status(self, state: str, message: str) -> None:
        if self.runtime.rank == 0:
            content = {
                "state": state,
                "best_epoch": self.best_epoch + 1,
                "epochs": len(self.rows),
                "seconds": self.seconds,
                "message": message,
                "threads": torch.get_num_threads(),
                **({} if self._parts is None else {"accumulate": self._parts}),
            }
            write_json(self.folder / "status.json", content)
