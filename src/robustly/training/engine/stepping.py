"""Optimiser steps of a run: networks on their device, optimisers, batches, forward and backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from robustly.data import Batch, batches, mixed_batches
from robustly.randomness import derive_seed
from robustly.runtime import Runtime
from robustly.training.engine.job import Job
from robustly.training.engine.metrics import Totals
from robustly.training.engine.optimisation import Optimizers, build_optimizer, rate_factor
from robustly.training.engine.placing import body_of, fewest_images, place_networks, warn_of_last_batch
from robustly.training.engine.stopping import check_loss
from robustly.training.engine.synchronised_norms import synchronised_norms
from robustly.training.method import Method, MethodError, outer_loss
from robustly.training.modes import frozen_parts, train_mode
from robustly.training.quantities import Networks
from robustly.training.step import Memory, Moment, Step


class _StepModule(nn.Module):
    """A training step as one forward pass of a module, which data parallelism needs."""

    def __init__(self, method: Method, networks: Networks) -> None:
        super().__init__()
        self.model = networks.model
        self.beside = nn.ModuleDict(dict(networks.trained))
        self._method = method
        self.step: Step | None = None

    def forward(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of `self.step` (an argument would be copied field by field)."""
        assert self.step is not None
        return outer_loss(self._method, self.step)


class Stepper:
    """Optimiser steps of a run.

    Args:
        job: method, networks, data and settings.
        runtime: device and processes.

    Raises:
        TrialError: a network that cannot be trained; see `place_networks`.
        MethodError: the model has no such head as the settings name.
    """

    def __init__(self, job: Job, runtime: Runtime) -> None:
        self._job, self._runtime = job, runtime
        # the trial has the whole network, a copy and its gradient, which need not fit beside each other on a device
        there = torch.device("cpu") if runtime.is_sharded else runtime.device
        self._placed = place_networks(job, there, runtime.world_size)
        self.networks = self._placed.networks
        if self._placed.smallest_batch > 1 and runtime.rank == 0:
            warn_of_last_batch(job, fewest_images(job, self._placed, runtime.world_size))
        runtime.shard(self.networks.learning)
        for network in self.networks.frozen.values():
            network.to(runtime.device)
        self._body: list[nn.Parameter] = []
        self._head: nn.Module | None = None
        if job.training.head_epochs:
            self._body, self._head = body_of(self.networks.model, job.training.head)
        self._head_alone = False
        self._still: dict[str, list[nn.Module]] = {}
        self.memory: Memory = {}
        self._module = _StepModule(job.method, self.networks)
        own = {name: network.optimizer for name, network in job.networks.items() if network.optimizer is not None}
        main = [network for name, network in self.networks.learning.items() if name not in own]
        built = [build_optimizer(job.optimizer, main, job.training.head)]
        built += [build_optimizer(config, [self.networks.trained[name]]) for name, config in own.items()]
        self._parallel, wrapped = runtime.distribute(self._module, *built)
        self.optimizers = Optimizers({"model": job.optimizer, **own}, wrapped)
        self._train = job.train.to(runtime.device)
        self._extra = job.extra.to(runtime.device) if job.extra is not None else None

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the networks and their images."""
        return self._placed.dtype

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Prepare the networks for steps; at the end, they compute and learn as before."""
        try:
            with self._placed.adapted(self._job.training.recompute_activations):
                yield
        finally:
            for parameter in self._body:
                parameter.requires_grad_(True)

    def begin_epoch(self, epoch: int) -> None:
        """Choose the weights that an epoch trains: those of the head, or all."""
        self._head_alone = epoch < self._job.training.head_epochs
        for parameter in self._body:
            parameter.requires_grad_(not self._head_alone)
        self._still = {name: frozen_parts(network) for name, network in self.networks.learning.items()}

    def synchronised(self) -> AbstractContextManager[None]:
        """A context of steps; if the settings say so, batch normalisation uses the batch of all processes."""
        return synchronised_norms(self.networks.learning.values()) if self._is_synchronised else nullcontext()

    @property
    def _is_synchronised(self) -> bool:
        return self._job.training.sync_batch_norm and self._runtime.world_size > 1

    def images(self, epoch: int) -> Iterator[Tensor]:
        """This process's images of an epoch, in batches; those of synchronised steps are never empty."""
        for index, batch in enumerate(self.batches(epoch)):
            if self._is_synchronised and self._job.images_of_step(index) < self._runtime.world_size:
                return
            yield batch.x

    def _train_mode(self) -> None:
        for name, network in self.networks.learning.items():
            train_mode(network, self._still.get(name, ()))
        if self._head_alone and self._head is not None:
            self.networks.model.eval()
            train_mode(self._head, frozen_parts(self._head))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, without a last batch that is too small for the networks or processes."""
        processes = self._runtime.world_size
        fewest = max(fewest_images(self._job, self._placed, processes), processes)
        last = self._job.steps_per_epoch - 1
        return last if last and self._job.images_of_step(last) < fewest else last + 1

    def batches(self, epoch: int, stream: str = "train", start: int = 0) -> Iterator[Batch]:
        """This process's batches of an epoch, in the memory layout and type of the run.

        Args:
            epoch: number of the epoch, from 0.
            stream: name of the random numbers of order and augmentation.
            start: batches to skip, which were finished before an interruption.
        """
        job, runtime = self._job, self._runtime
        source = (
            partial(batches, self._train)
            if self._extra is None
            else partial(mixed_batches, self._train, self._extra)
        )
        numbered = source(
            job.training.batch_size,
            seed=derive_seed(job.seed, stream),
            epoch=epoch,
            augmentation=job.augmentation,
            rank=runtime.rank,
            world_size=runtime.world_size,
            start=start,
            views=job.method.views,
        )
        fewest = fewest_images(job, self._placed, runtime.world_size)
        for index, batch in enumerate(numbered, start):
            if self._placed.smallest_batch > 1 and job.images_of_step(index) < fewest:
                return  # the last batch, too small for batch normalisation
            layout, dtype = self._placed.layout, self._placed.dtype
            x, *others = (view.to(dtype).contiguous(memory_format=layout) for view in (batch.x, *batch.other_views))
            yield replace(batch, x=x, other_views=tuple(others))

    def step(self, batch: Batch, moment: Moment, replay: int, totals: Totals) -> tuple[float, float]:
        """Take one optimiser step.

        Args:
            batch: this process's examples.
            moment: position in the run.
            replay: earlier steps on this batch.
            totals: statistics of the epoch, to which the step is added.

        Returns:
            The loss of all processes, and the model's learning rate.

        Raises:
            DivergenceError: the loss is not finite.
        """
        job = self._job
        step_seed = derive_seed(job.seed, "step", moment.count, self._runtime.rank)
        torch.manual_seed(derive_seed(step_seed, "replay", replay) if replay else step_seed)  # dropout
        middle = moment.time + (replay + 0.5) / job.method.replays / moment.steps_per_epoch
        rate = self.optimizers.set_rates(rate_factor(job.schedule, middle, job.training.epochs))
        self._train_mode()
        self.optimizers.zero_grad()  # now: the forward passes need the memory of old gradients
        # the same number of parts in all processes, whose shares differ by one image at most
        fewest = job.images_of_step(moment.index) // self._runtime.world_size
        parts = _parts_of(batch, min(job.training.accumulate, max(fewest, 1)))
        value = torch.zeros((), device=batch.x.device)
        done: list[tuple[Step, Tensor, dict[str, Tensor]]] = []
        for number, part in enumerate(parts, 1):
            step = job.method.step(
                part,
                self.networks,
                threats=job.threats_at(middle),
                moment=moment,
                memory=self.memory,
                replay=replay,
                global_mean=self._runtime.mean if job.training.accumulate == 1 else _whole_batch,
                seed=job.seed,
                whole_weights=partial(self._runtime.whole_weights, *self.networks.learning.values()),
            )
            self._module.step = step
            # the mean over processes weighs all shards equally, so losses of smaller shards are scaled
            share = len(part.y) * self._runtime.world_size / job.images_of_step(moment.index)
            with self._runtime.summing(self._parallel, number < len(parts)), self.synchronised():
                loss, terms = self._parallel()
                self._runtime.backward(loss * share)
            value = value + loss.detach() * share
            done.append((step, loss.detach(), terms))
        found = float(self._runtime.mean(value))
        terms = {name: torch.stack([one[name] for _, _, one in done]).sum() for name in done[0][2]}
        check_loss(found, terms, moment, self._runtime.mean)
        for step, _, _ in done:
            job.method.after_backward(step)
        self.optimizers.step(partial(self._runtime.clip, self._parallel))
        job.method.after_step(step)
        for step, loss, means in done:
            totals.add_step(step, loss, means)
        self._module.step = None
        return found, rate


def _parts_of(batch: Batch, count: int) -> list[Batch]:
    """A batch in parts of about the same size, each with at least one image."""
    if count == 1 or len(batch) < 2:
        return [batch]
    rows = torch.arange(len(batch), device=batch.x.device).tensor_split(min(count, len(batch)))
    return [batch.select(some) for some in rows]


def _whole_batch(value: Tensor) -> Tensor:
    """Refuse a mean over the batch of all processes, of which a step in parts has one part at a time.

    Raises:
        MethodError: always.
    """
    raise MethodError(
        "training.accumulate: a part of the method averages over the whole batch: set training.accumulate to 1"
    )
