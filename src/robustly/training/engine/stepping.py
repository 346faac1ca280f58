"""Optimiser steps of a run: networks on their device, optimisers, batches, forward and backward pass."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from robustly.attacks.core.compiled import CompiledNetwork
from robustly.attacks.core.graphs import PassGraphs, cuda_capture
from robustly.data import Batch, batches, mixed_batches
from robustly.data.prefetching import prefetched
from robustly.memory import free_memory, is_out_of_memory
from robustly.randomness import derive_seed
from robustly.runtime import Runtime
from robustly.training.engine.job import Job
from robustly.training.engine.metrics import Totals
from robustly.training.engine.optimisation import Optimizers, build_optimizer, rate_factor
from robustly.training.engine.placing import body_of, fewest_images, place_networks, warn_of_last_batch
from robustly.training.engine.splitting import (
    BatchMemoryError,
    BeforeStep,
    WholeBatchError,
    fewest_parts,
    not_again,
    not_in_parts,
    parts_of,
    too_large,
    whole_batch,
)
from robustly.training.engine.step_module import Passes, StepModule
from robustly.training.engine.stopping import check_loss
from robustly.training.engine.synchronised_norms import synchronised_norms
from robustly.training.modes import frozen_parts, train_mode
from robustly.training.step import Memory, Moment

_AVERAGES = "a part of the method averages over the whole batch"


class Stepper:
    """Optimiser steps of a run.

    Args:
        job: method, networks, data and settings.
        runtime: device and processes.

    Attributes:
        parts: parts in which each batch passes; None if they are not found yet.

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
        self.parts: int | None = None if job.training.accumulate == "auto" else job.training.accumulate
        if self._placed.smallest_batch > 1 and runtime.rank == 0:
            warn_of_last_batch(job, self._fewest)
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
        self._averages = False
        self._graphs = _graphs_for(runtime) if runtime.graphs else None
        self._compiled = CompiledNetwork(self.networks.model) if self._compiles() else None
        self._module = StepModule(job.method, self.networks)
        own = {name: network.optimizer for name, network in job.networks.items() if network.optimizer is not None}
        main = [network for name, network in self.networks.learning.items() if name not in own]
        built = [build_optimizer(job.optimizer, main, job.training.head)]
        built += [build_optimizer(config, [self.networks.trained[name]]) for name, config in own.items()]
        self._parallel, wrapped = runtime.distribute(self._module, *built)
        self.optimizers = Optimizers({"model": job.optimizer, **own}, wrapped)
        self._train = job.train.to(runtime.device)
        self._extra = job.extra.to(runtime.device) if job.extra is not None else None

    @property
    def smallest_batch(self) -> int:
        """Fewest images that each process needs in a batch or a part of one."""
        return self._placed.smallest_batch

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

    def _compiles(self) -> bool:
        """True if passes of attacks are compiled; a warning if the settings say so and it is not possible."""
        if self._runtime.compiles and self._is_synchronised:
            if self._runtime.rank == 0:
                warnings.warn(
                    "runtime.compile: with training.sync_batch_norm processes wait for each other within passes, "
                    "which run uncompiled",
                    stacklevel=3,
                )
            return False
        return self._runtime.compiles

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
    def _fewest(self) -> int:
        """Fewest images of a step, over all processes."""
        return fewest_images(self._job, self._placed, self._runtime.world_size, self.parts or 1)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, without a last batch that is too small for the networks or processes."""
        fewest = max(self._fewest, self._runtime.world_size)
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
        fitted: Iterator[Batch] = map(self._fitted, numbered)
        if self._train.on_disk or (self._extra is not None and self._extra.data.on_disk):
            fitted = prefetched(fitted, runtime.device, Batch.tensors)
        for index, batch in enumerate(fitted, start):
            if self._placed.smallest_batch > 1 and job.images_of_step(index) < self._fewest:
                return  # the last batch, too small for batch normalisation
            yield batch

    def _fitted(self, batch: Batch) -> Batch:
        """A batch in the memory layout and type of the run."""
        layout, dtype = self._placed.layout, self._placed.dtype
        x, *others = (view.to(dtype).contiguous(memory_format=layout) for view in (batch.x, *batch.other_views))
        return replace(batch, x=x, other_views=tuple(others))

    def step(self, batch: Batch, moment: Moment, replay: int, totals: Totals) -> tuple[float, float]:
        """Take one optimiser step.

        If the passes run out of memory in any process, all processes undo them and repeat them in twice as many
        parts, and `parts` is larger from then on.

        Args:
            batch: this process's examples.
            moment: position in the run.
            replay: earlier steps on this batch.
            totals: statistics of the epoch, to which the step is added.

        Returns:
            The loss of all processes, and the model's learning rate.

        Raises:
            DivergenceError: the loss is not finite.
            BatchMemoryError: the batch does not fit into the memory, and not in parts either.
        """
        job, runtime = self._job, self._runtime
        middle = self._middle(moment, replay)
        rate = self.optimizers.set_rates(rate_factor(job.schedule, middle, job.training.epochs))
        try:
            passes = self._fitting_passes(batch, moment, replay)
            loss = float(passes.loss)
            check_loss(loss, passes.summed_terms(), moment, runtime.mean)
            self._module.step = None
            if runtime.world_size > 1 and not runtime.is_sharded:
                # apart from the passes, so that no process waits for one without memory
                runtime.backward(self._parallel()[0])
            for step in passes.steps:
                job.method.after_backward(step)
        except WholeBatchError:
            if self.parts == job.training.accumulate:
                raise
            raise self._whole(batch, moment, replay, _AVERAGES) from None
        self.optimizers.step(partial(runtime.clip, self._parallel))
        job.method.after_step(passes.steps[-1])
        for step, own, means in zip(passes.steps, passes.losses, passes.terms, strict=True):
            totals.add_step(step, own, means)
        return loss, rate

    def _fitting_passes(self, batch: Batch, moment: Moment, replay: int) -> Passes:
        """Passes of a batch, in more parts where it does not fit into the memory.

        Raises:
            BatchMemoryError: it does not fit in parts either, or the method needs it whole.
            WholeBatchError: the method needs it whole.
        """
        job, processes = self._job, self._runtime.world_size
        most = max(1, job.images_of_step(moment.index) // processes // self._placed.smallest_batch)
        before = BeforeStep(self.networks.learning, self.memory)

        def fits(count: int) -> bool:
            passes = self._passes(batch, moment, replay, count)
            self._undo(before)
            return passes is not None

        if self.parts is None:
            self.parts = fewest_parts(fits, most)
            if self.parts is None:
                raise too_large(len(batch), most)
        while (passes := self._passes(batch, moment, replay, self.parts)) is None:
            self._undo(before)
            reason = job.method.whole_batch_reason()
            if reason:
                raise self._whole(batch, moment, replay, reason)
            if self.parts >= most:
                raise too_large(len(batch), most)
            self.parts = min(2 * self.parts, most)
        return passes

    def _passes(self, batch: Batch, moment: Moment, replay: int, count: int) -> Passes | None:
        """Passes of a batch in some parts; None if they run out of memory in any process."""
        job, runtime = self._job, self._runtime
        step_seed = derive_seed(job.seed, "step", moment.count, runtime.rank)
        torch.manual_seed(derive_seed(step_seed, "replay", replay) if replay else step_seed)  # dropout
        self._train_mode()
        self.optimizers.zero_grad()  # now: the forward passes need the memory of old gradients
        passes, failed = Passes(), False
        try:
            self._pass_parts(batch, moment, replay, count, passes)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if failed and runtime.world_size > 1:
            self._refuse_waiting(len(batch), count)
        if runtime.world_size > 1:  # after the error, whose traceback keeps the activations in memory
            found = passes.loss.to(runtime.device, torch.float64)
            passes.loss, share = runtime.mean(torch.stack([found, torch.full_like(found, failed)])).unbind()
            failed = float(share) > 0
        return None if failed else passes

    def _pass_parts(self, batch: Batch, moment: Moment, replay: int, count: int, passes: Passes) -> None:
        """Add a forward and a backward pass of each part of a batch to `passes`."""
        job, runtime = self._job, self._runtime
        # the same number of parts in all processes, whose shares differ by one image at most
        parts = parts_of(batch, min(count, max(job.images_of_step(moment.index) // runtime.world_size, 1)))
        threats = job.threats_at(self._middle(moment, replay))
        for number, part in enumerate(parts, 1):
            step = job.method.step(
                part,
                self.networks,
                threats=threats,
                moment=moment,
                memory=self.memory,
                replay=replay,
                global_mean=self._mean if count == 1 else whole_batch,
                seed=job.seed,
                whole_weights=partial(self._runtime.whole_weights, *self.networks.learning.values()),
            )
            step.graphs, step.compiled = self._graphs, self._compiled
            self._module.step = step
            # the mean over processes weighs all shards equally, so losses of smaller shards are scaled
            share = len(part.y) * runtime.world_size / job.images_of_step(moment.index)
            with runtime.alone(self._parallel, number < len(parts)), self.synchronised():
                loss, terms = self._parallel()
                runtime.backward(loss * share)
            passes.add(step, loss.detach(), share, terms)

    def _middle(self, moment: Moment, replay: int) -> float:
        """Time of the middle of a step, in epochs."""
        return moment.time + (replay + 0.5) / self._job.method.replays / moment.steps_per_epoch

    def _mean(self, value: Tensor) -> Tensor:
        """Mean over processes, within the passes of a whole batch."""
        self._averages = True
        return self._runtime.mean(value)

    def _refuse_waiting(self, images: int, count: int) -> None:
        """Refuse to repeat passes that ran out of memory here, if other processes wait for this one within them.

        Raises:
            BatchMemoryError: weights are in shards, batch normalisation is synchronised, or the method averages
                over processes.
        """
        if self._runtime.is_sharded:
            raise not_again(images, count, "each process holds a share of the weights (runtime.strategy fsdp)")
        if self._is_synchronised:
            raise not_again(images, count, "batch normalisation is that of all (training.sync_batch_norm)")
        reason = self._job.method.whole_batch_reason() or (_AVERAGES if self._averages else "")
        if count == 1 and reason:
            raise not_in_parts(images, reason, None)

    def _undo(self, before: BeforeStep) -> None:
        """Undo passes: gradients, buffers, memory of the parts, and perturbations of the weights."""
        step, self._module.step = self._module.step, None
        if step is not None:
            self._job.method.after_failure(step)
        del step
        self.optimizers.zero_grad()
        before.restore()
        self._runtime.begin_again(self._parallel)
        if self._graphs is not None:
            self._graphs.forget()
        free_memory()

    def _whole(self, batch: Batch, moment: Moment, replay: int, reason: str) -> BatchMemoryError:
        """Error of a batch that does not fit, of a method that needs it whole; it names the size that fits."""
        if self._runtime.world_size > 1:  # such a method waits for other processes within its passes
            return not_in_parts(len(batch), reason, None)
        size = len(batch) // 2
        kept, self.memory = self.memory, {}  # tensors of the parts may be as long as the batch
        try:
            while size >= self._placed.smallest_batch:
                before = BeforeStep(self.networks.learning, self.memory)
                part = batch.select(torch.arange(size, device=batch.x.device))
                passes = self._passes(part, moment, replay, 1)
                self._undo(before)
                if passes is not None:
                    return not_in_parts(len(batch), reason, size)
                size //= 2
        finally:
            self.memory = kept
        return not_in_parts(len(batch), reason, 0)


def _graphs_for(runtime: Runtime) -> PassGraphs | None:
    if runtime.device.type == "cuda":
        return PassGraphs(cuda_capture())
    if runtime.rank == 0:
        warnings.warn(
            f"runtime.graphs: only a GPU has graphs; attacks on {runtime.device.type} run without", stacklevel=2
        )
    return None
