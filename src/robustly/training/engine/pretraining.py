"""Clean training of a network before the run's own first epoch (`model.pretrain`, `guide.pretrain`)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustly.data import Batch
from robustly.memory import free_memory, is_out_of_memory
from robustly.randomness import derive_seed
from robustly.runtime import Runtime
from robustly.training.engine.checkpoint import Row
from robustly.training.engine.job import Job
from robustly.training.engine.measurements import Measurements
from robustly.training.engine.metrics import Totals
from robustly.training.engine.optimisation import Optimizers, build_optimizer, rate_factor
from robustly.training.engine.splitting import BeforeStep, parts_of, too_large
from robustly.training.engine.stepping import Stepper
from robustly.training.engine.stopping import check_loss, check_weights
from robustly.training.modes import frozen_parts, train_mode
from robustly.training.step import Moment


class Pretraining:
    """Epochs of one network alone: clean cross-entropy on the training images of the run, augmented as there.

    The optimiser has the settings of the network's optimiser in the run, and a state of its own. The run's schedule
    is compressed to these epochs. Order and augmentation of the images are others than those of the run.

    Args:
        name: name of the network; "model" for the model.
        job: method, networks, data and settings.
        runtime: device and processes.
        stepper: the networks on their device, and the batches.
        measured: measurement of accuracies.
    """

    def __init__(self, name: str, job: Job, runtime: Runtime, stepper: Stepper, measured: Measurements) -> None:
        self._name, self._job, self._runtime, self._stepper = name, job, runtime, stepper
        self._network = stepper.networks.learning[name]
        self._epochs = job.epochs_alone[name]
        self._measured, self._parts = measured, 1
        beside = job.networks.get(name)
        config = job.optimizer if beside is None or beside.optimizer is None else beside.optimizer
        head = job.training.head if beside is None else None
        self._module, wrapped = runtime.distribute(self._network, build_optimizer(config, [self._network], head))
        self._optimizers = Optimizers({"model": config}, wrapped)

    def state(self) -> dict[str, Any]:
        """State dict of the optimiser."""
        return self._optimizers.state_dict()["model"]

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of the optimiser.

        Raises:
            ValueError: a state of other parameters.
        """
        self._optimizers.load_state_dict({"model": state})

    def epoch(self, epoch: int) -> Row:
        """Train for one epoch; returns its metrics, whose accuracies are those of this network.

        Args:
            epoch: epochs finished before, at least 0.

        Raises:
            DivergenceError: a loss or a weight is not finite.
        """
        began = time.perf_counter()
        job, runtime, what = self._job, self._runtime, f"the training of the {self._name} before the run"
        totals, rate = Totals(runtime.device), 0.0
        still = frozen_parts(self._network)
        for index, batch in enumerate(self._stepper.batches(epoch, f"pretrain {self._name}")):
            count = job.images_of_step(index)
            if count < runtime.world_size:
                break  # as in the run
            moment = Moment(epoch, index, job.steps_per_epoch, self._epochs)
            seed = derive_seed(job.seed, "pretrain", self._name, moment.count, runtime.rank)
            middle = (moment.time + 0.5 / moment.steps_per_epoch) * job.training.epochs / self._epochs
            rate = self._optimizers.set_rates(rate_factor(job.schedule, middle, job.training.epochs))
            train_mode(self._network, still)
            share = len(batch.y) * runtime.world_size / count  # as in the run, for shards of other sizes
            loss, correct = self._passed(batch, share, seed)
            value = float(runtime.mean(loss * share))
            check_loss(value, {self._name: loss}, moment, runtime.mean, what)
            self._optimizers.step(partial(runtime.clip, self._module))
            totals.add("train_loss", loss * len(batch.y), len(batch.y))
            totals.add("train_clean_accuracy", correct, len(batch.y))
        trained = time.perf_counter() - began
        check_weights({self._name: self._network}, epoch, what, runtime.sum)
        runtime.follow_first(self._network)
        validated = self._measured.clean(self._network, self._measured.validation)
        return {
            "epoch": epoch + 1,
            "step": (epoch + 1) * job.steps_per_epoch,
            "learning_rate": rate,
            **totals.means(runtime),
            "validation_clean_accuracy": validated.share,
            "images_per_second": len(job.train) / trained,
            "seconds": time.perf_counter() - began,
        }

    def _passed(self, batch: Batch, share: float, seed: int) -> tuple[Tensor, Tensor]:
        """Mean loss and number of correct images of a batch, after its backward pass.

        A batch that does not fit into the memory passes in parts, as in the run; not with several processes, whose
        gradients are averaged during the backward pass.

        Raises:
            BatchMemoryError: not even the smallest parts fit.
        """
        before = BeforeStep({self._name: self._network}, {})
        most = max(1, len(batch) // self._stepper.smallest_batch)
        while True:
            torch.manual_seed(seed)  # dropout
            self._optimizers.zero_grad()
            try:
                return self._passed_in(parts_of(batch, min(self._parts, most)), len(batch), share)
            except Exception as error:
                if not is_out_of_memory(error) or self._runtime.world_size > 1:
                    raise
            before.restore()
            free_memory()
            if self._parts >= most:
                self._optimizers.zero_grad()
                raise too_large(len(batch), most)
            self._parts = min(2 * self._parts, most)

    def _passed_in(self, parts: Sequence[Batch], count: int, share: float) -> tuple[Tensor, Tensor]:
        losses, correct = [], []
        for part in parts:
            weight = len(part.y) / count
            with self._stepper.synchronised():
                logits = self._module(part.x)
                loss = F.cross_entropy(logits, part.y)
                self._runtime.backward(loss * (weight * share))
            losses.append(loss.detach() * weight)
            correct.append((logits.argmax(1) == part.y).sum())
        return torch.stack(losses).sum(), torch.stack(correct).sum()


def pretrained(
    job: Job,
    runtime: Runtime,
    stepper: Stepper,
    measured: Measurements,
    done: Mapping[str, Sequence[Row]],
    unfinished: dict[str, Any] | None,
) -> Iterator[tuple[str, Row, dict[str, Any]]]:
    """Train the networks of a job alone that have epochs before the run, one after the other, the model first.

    Parts of the method that copy the model do so in steps and after epochs of the run, so they copy the result.

    Args:
        job: method, networks, data and settings.
        runtime: device and processes.
        stepper: the networks on their device, and the batches.
        measured: measurement of accuracies.
        done: metrics of the finished epochs by network, to which the caller adds those that are yielded.
        unfinished: state of the optimiser of the network that has finished some of its epochs.

    Yields:
        After every epoch the name of the network, the metrics, and the state of the optimiser.

    Raises:
        DivergenceError: a loss or a weight is not finite.
    """
    for name, epochs in job.epochs_alone.items():
        first = len(done.get(name, ()))
        if first >= epochs:
            continue
        alone = Pretraining(name, job, runtime, stepper, measured)
        if first and unfinished is not None:
            alone.restore(unfinished)
        for epoch in range(first, epochs):
            yield name, alone.epoch(epoch), alone.state()
