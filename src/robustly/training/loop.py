"""The one training loop: every method, every device, resumable at any moment."""

import copy
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustly.attacks import dynat_pgd
from robustly.data import Batch, batches, mixed_batches
from robustly.files import whole_file, write_json, write_text
from robustly.models import save_weights, weights_hash
from robustly.randomness import derive_seed
from robustly.runtime import Runtime
from robustly.threats.lp import ThreatModel
from robustly.training.checkpoint import CheckpointError, Row, TrainingState, load_state, save_state
from robustly.training.divergence import DivergenceError, check_loss, check_weights
from robustly.training.job import Job
from robustly.training.method import outer_loss
from robustly.training.metrics import Totals, as_csv
from robustly.training.optimisation import build_optimizer, rate_factor, set_rate
from robustly.training.parameters import EpochEnd
from robustly.training.step import Memory, Moment, Step
from robustly.training.stopping import why_stop
from robustly.training.validation import accuracies
from robustly.training.weights import WeightsError

LAST = "checkpoints/last.pt"
BEST = "checkpoints/best.safetensors"
FINAL = "model.safetensors"


class Observer:
    """Hears what happens; override what is of interest."""

    def started(self, job: Job, finished_epochs: int) -> None:
        """Training begins or goes on."""

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        """A step is done; `images` of all processes."""

    def epoch_finished(self, row: Row, is_best: bool) -> None:
        """An epoch is done, validated and saved."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        best_epoch: the selected epoch, from 1.
        epochs: epochs trained.
        seconds: training time, all sittings together.
        rows: metrics by epoch.
        reason: why it ended before its last epoch; empty if it did not.
    """

    best_epoch: int
    epochs: int
    seconds: float
    rows: list[Row]
    reason: str = ""


class _StepModule(nn.Module):
    """A whole training step as one forward pass, so that data parallelism sees one forward and one backward."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.model = job.model
        self.guide = job.guide
        self._method = job.method
        self.step: Step | None = None

    def forward(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of the step that was put here (an argument would be copied field by field)."""
        assert self.step is not None
        return outer_loss(self._method, self.step)


def train(
    job: Job, runtime: Runtime, folder: Path, *, config_digest: str, observer: Observer | None = None
) -> Outcome:
    """Train, validating, selecting and saving after every epoch; goes on where `folder` stopped.

    Writes into `folder`: `checkpoints/last.pt` (whole state), `checkpoints/best.safetensors` and at the end
    `model.safetensors` (the selected weights), `metrics.csv`, `status.json`. On one device with the same number
    of threads, a run that was killed and resumed ends with the very weights of an unbroken one.

    Args:
        job: what to train.
        runtime: where.
        folder: the run's folder, which exists.
        config_digest: hash of the configuration, to recognise the run's own checkpoints.
        observer: who hears of progress.

    Raises:
        DivergenceError: a loss term is NaN or infinite; the last good checkpoint is kept.
        CheckpointError: `last.pt` is damaged or foreign.
        OSError: read-only folder or full disk; what was written before is kept.
    """
    with torch.random.fork_rng(devices=[runtime.device] if runtime.device.type == "cuda" else []):
        return _Run(job, runtime, folder, config_digest, observer or Observer()).go()


class _Run:
    """A run under way: what changes from step to step."""

    def __init__(self, job: Job, runtime: Runtime, folder: Path, config_digest: str, observer: Observer) -> None:
        self.job, self.runtime, self.folder, self.observer = job, runtime, folder, observer
        self.config_digest = config_digest
        self.networks = {"model": job.model} | ({"guide": job.guide} if job.guide is not None else {})
        layout = torch.channels_last if job.training.channels_last else torch.contiguous_format
        self.teachers = {role: network.requires_grad_(False).eval() for role, network in job.teachers.items()}
        for network in (*self.networks.values(), *self.teachers.values()):
            network.to(device=runtime.device, memory_format=layout)  # type: ignore[call-overload]
        self.layout = layout
        self.memory: Memory = {}
        job.check_processes(runtime.world_size)
        self.module = _StepModule(job)
        optimizer = build_optimizer(job.optimizer, self.networks.values())
        self.optimizer: Optimizer
        self.parallel, self.optimizer = runtime.distribute(self.module, optimizer)
        self.train_data = job.train.to(runtime.device)
        self.extra = job.extra.to(runtime.device) if job.extra is not None else None
        self.validation_data = job.validation.to(runtime.device)
        self.rows: list[Row] = []
        self.best_epoch, self.best_score = -1, (-1.0, -1.0)
        self.seconds = 0.0

    def go(self) -> Outcome:
        """Train to the end."""
        self._recover()
        self.observer.started(self.job, len(self.rows))
        try:
            while not self._done():
                self._epoch(len(self.rows))
        except ValueError as error:
            diverged = isinstance(error, DivergenceError | WeightsError)
            self._write_status("diverged" if diverged else "failed", str(error))
            raise
        except KeyboardInterrupt:
            self._write_status("stopped", "interrupted by the user")
            raise
        if self.runtime.rank == 0:
            with whole_file(self.folder / FINAL) as temporary:
                shutil.copyfile(self.folder / BEST, temporary)
        reason = self._stopped_early() if len(self.rows) < self.job.training.epochs else ""
        self._write_status("finished", reason)
        self.runtime.wait_for_all()
        return Outcome(self.best_epoch + 1, len(self.rows), self.seconds, self.rows, reason)

    def _done(self) -> bool:
        return len(self.rows) >= self.job.training.epochs or bool(self._stopped_early())

    def _stopped_early(self) -> str:
        return why_stop(self.job.training, self.rows, self.best_epoch)

    def _epoch(self, epoch: int) -> None:
        began = time.perf_counter()
        totals = Totals(self.runtime.device)
        job = self.job
        rate = 0.0
        for index, batch in enumerate(self._batches(epoch)):
            moment = Moment(epoch, index, job.steps_per_epoch, job.training.epochs)
            if self._global_count(moment) < self.runtime.world_size:
                break  # a last batch with fewer images than processes: all processes leave it out
            for replay in range(job.method.replays):
                rate = self._step(batch, moment, totals, replay)
        job.method.after_epoch(
            EpochEnd(
                epoch=epoch,
                epochs=job.training.epochs,
                model=job.model,
                images=lambda: (batch.x.contiguous(memory_format=self.layout) for batch in self._batches(epoch)),
                remember=lambda part: self.memory.setdefault(job.method.slot_of(part), {}),
                global_mean=self.runtime.mean,
            )
        )
        trained = time.perf_counter() - began
        check_weights(self.networks, epoch)
        clean, robust = self._validate()
        row: Row = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * job.steps_per_epoch,
            "learning_rate": rate,
            "train_clean_accuracy": None,
            "train_robust_accuracy": None,
            **totals.means(self.runtime),
            "validation_clean_accuracy": clean,
            "validation_robust_accuracy": robust,
            "images_per_second": len(job.train) / trained,
        }
        self.seconds += time.perf_counter() - began
        row["seconds"] = self.seconds
        self.rows.append(row)
        score = (robust, clean) if job.training.select_by == "robust" else (clean, robust)
        is_best = score > self.best_score
        if is_best:
            self.best_epoch, self.best_score = epoch, score
        self._save(is_best)
        self.observer.epoch_finished(row, is_best)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        job = self.job
        seed, rank, world_size = derive_seed(job.seed, "train"), self.runtime.rank, self.runtime.world_size
        size, augmentation = job.training.batch_size, job.augmentation
        if self.extra is not None:
            return mixed_batches(
                self.train_data,
                self.extra,
                size,
                seed=seed,
                epoch=epoch,
                augmentation=augmentation,
                rank=rank,
                world_size=world_size,
            )
        return batches(
            self.train_data,
            size,
            seed=seed,
            epoch=epoch,
            augmentation=augmentation,
            rank=rank,
            world_size=world_size,
        )

    def _step(self, batch: Batch, moment: Moment, totals: Totals, replay: int) -> float:
        """One step of the optimiser; returns the learning rate."""
        job = self.job
        step_seed = derive_seed(job.seed, "step", moment.count, self.runtime.rank)
        torch.manual_seed(derive_seed(step_seed, "replay", replay) if replay else step_seed)  # dropout
        middle = moment.time + (replay + 0.5) / job.method.replays / moment.steps_per_epoch
        rate = job.optimizer.learning_rate * rate_factor(job.schedule, middle, job.training.epochs)
        set_rate(self.optimizer, rate)
        self.networks["model"].train()
        if job.guide is not None:
            job.guide.train()
        batch = replace(batch, x=batch.x.contiguous(memory_format=self.layout))
        step = Step(
            batch,
            job.model,
            job.guide,
            teachers=self.teachers,
            threat=self._threat_at(middle),
            moment=moment,
            label_source=job.method.labels,
            inner=job.method.inner,
            memory=self.memory,
            global_mean=self.runtime.mean,
            slot_of=job.method.slot_of,
            seed=job.seed,
            replay=replay,
        )
        self.module.step = step
        self.optimizer.zero_grad(set_to_none=True)  # now: the forward passes need the memory of old gradients
        loss, terms = self.parallel()
        global_count = self._global_count(moment)
        share = len(batch.y) * self.runtime.world_size / global_count  # ragged shards count by their size
        self.runtime.backward(loss * share)
        value = float(self.runtime.mean(loss.detach() * share))
        check_loss(value, terms, moment, self.runtime.mean)
        job.method.tell("after_backward", step)
        if job.optimizer.clip_norm is not None:
            self.runtime.clip(self.parallel, self.optimizer, job.optimizer.clip_norm)
        self.optimizer.step()
        job.method.tell("after_step", step)
        totals.add_step(step, loss, terms)
        self.module.step = None
        self.observer.stepped(moment, value, global_count)
        return rate

    def _global_count(self, moment: Moment) -> int:
        """Images of a step, all processes together."""
        batch_size = self.job.training.batch_size
        if self.extra is not None:
            return batch_size
        return min(batch_size, len(self.job.train) - moment.index * batch_size)

    def _threat_at(self, time_in_epochs: float) -> ThreatModel:
        ramp, by = self.job.training.epsilon_ramp, self.job.training.epsilon_ramp_by
        time_in_epochs = math.floor(time_in_epochs) + 1 if by == "epoch" else time_in_epochs
        threat = self.job.threat
        if time_in_epochs >= ramp or isinstance(threat.epsilon, Tensor):
            return threat
        radius = float(threat.epsilon) * time_in_epochs / ramp
        return threat.with_epsilon(math.ceil(radius) if threat.norm == "l0" else radius)

    def _selected(self) -> nn.Module:
        """The network that is validated and released: the averaged one, if a part averages."""
        for part in self.job.method.parameters:
            average = part.evaluation_state(self.memory.get(self.job.method.slot_of(part), {}))
            if average is not None:
                network = copy.deepcopy(self.job.model)
                network.load_state_dict(average)
                return network
        return self.job.model

    def _validate(self) -> tuple[float, float]:
        training = self.job.training
        selected = self._selected()
        self.runtime.follow_first(selected)
        return accuracies(
            selected,
            self.validation_data,
            dynat_pgd(training.validation_steps),
            self.job.threat,
            seed=derive_seed(self.job.seed, "validation"),
            batch_size=training.validation_batch_size,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            total=self.runtime.sum,
        )

    def _save(self, is_best: bool) -> None:
        if self.runtime.rank == 0:
            (self.folder / LAST).parent.mkdir(exist_ok=True)
            if is_best:
                save_weights(self._selected(), self.folder / BEST)
            state = TrainingState(
                epoch=len(self.rows),
                config_digest=self.config_digest,
                networks={role: network.state_dict() for role, network in self.networks.items()},
                teachers={role: weights_hash(network) for role, network in self.teachers.items()},
                optimizer=self.optimizer.state_dict(),
                memory=self.memory,
                rows=self.rows,
                best_epoch=self.best_epoch,
                best_score=self.best_score,
                seconds=self.seconds,
            )
            save_state(state, self.folder / LAST)
            write_text(self.folder / "metrics.csv", as_csv(self.rows))
            self._write_status("running", "")
        self.runtime.wait_for_all()

    def _recover(self) -> None:
        if not (self.folder / LAST).exists():
            return
        state = load_state(self.folder / LAST, self.config_digest)
        try:
            for role, network in self.networks.items():
                network.load_state_dict(state.networks[role])
            self.optimizer.load_state_dict(state.optimizer)
        except (RuntimeError, KeyError, ValueError) as error:  # the user's own model may have changed since
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.folder / LAST} does not fit the networks of the run ({reason})") from None
        for role, network in self.teachers.items():
            if state.teachers.get(role) != weights_hash(network):
                raise CheckpointError(f"the {role}'s weights are others than those that the run was started with")
        for part, tensors in state.memory.items():
            self.memory[part] = {name: value.to(self.runtime.device) for name, value in tensors.items()}
        self.rows, self.seconds = list(state.rows), state.seconds
        self.best_epoch, self.best_score = state.best_epoch, (state.best_score[0], state.best_score[1])
        if self.runtime.rank == 0:
            write_text(self.folder / "metrics.csv", as_csv(self.rows))

    def _write_status(self, state: str, message: str) -> None:
        if self.runtime.rank == 0:
            content = {
                "state": state,
                "best_epoch": self.best_epoch + 1,
                "epochs": len(self.rows),
                "seconds": self.seconds,
                "message": message,
                "threads": torch.get_num_threads(),
            }
            write_json(self.folder / "status.json", content)
