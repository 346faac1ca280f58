"""The networks of a run on their device, in the layout and the floating-point type in which they work."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from robustly.models.adapter import unwrapped
from robustly.randomness import derive_seed
from robustly.training.engine.depth import head_of
from robustly.training.engine.job import Job
from robustly.training.engine.recomputation import check_blocks, recomputed_activations
from robustly.training.engine.synchronised_norms import check_norms
from robustly.training.engine.trial import IMAGES, Fit, TrialError, adapted, dtype_of, try_training
from robustly.training.quantities import Networks


@dataclass(frozen=True)
class Placed:
    """The networks of a run, ready for training.

    Args:
        networks: the networks, without the wrappers of `torch.compile` and data parallelism.
        fits: conditions of each network, by name.
        dtype: floating-point type of the networks and images.
        layout: memory layout of the images.
    """

    networks: Networks
    fits: Mapping[str, Fit]
    dtype: torch.dtype
    layout: torch.memory_format

    @property
    def smallest_batch(self) -> int:
        """Fewest images that each process needs in a batch."""
        return max(fit.smallest_batch for fit in self.fits.values())

    @contextmanager
    def adapted(self, recompute: bool = False) -> Iterator[None]:
        """Give every network the conditions of its trial, by hooks that are removed at the end.

        Args:
            recompute: whether passes compute activations of blocks again; see `recomputed_activations`.
        """
        everything = {**self.networks.learning, **self.networks.frozen}
        with ExitStack() as held:
            for name, fit in self.fits.items():
                held.enter_context(adapted(everything[name], fit))
                if recompute:
                    held.enter_context(recomputed_activations(everything[name]))
            yield


def place_networks(job: Job, device: torch.device, processes: int = 1) -> Placed:
    """Move the networks of a job to a device and try each of them on a few training images.

    Raises:
        TrialError: a network cannot be trained, see `try_training` and `dtype_of`; a batch is too small for batch
            normalisation; or a parameter without gradient, with several processes.
        MethodError: the model has no such head as the settings name.
        RecomputationError: a network without blocks, with `recompute_activations`.
        SynchronisedNormError: networks without batch normalisation, with `sync_batch_norm`.
    """
    networks = Networks(
        _bare(job.model),
        trained={name: _bare(network.module) for name, network in job.networks.items() if not network.frozen},
        frozen={
            name: _bare(network.module).requires_grad_(False).eval()
            for name, network in job.networks.items()
            if network.frozen
        },
    )
    everything = {**networks.learning, **networks.frozen}
    if job.training.recompute_activations:
        for name, network in networks.learning.items():
            check_blocks(network, name)
    for network in everything.values():
        network.to(device)
    dtype = dtype_of(everything)
    x = job.train.first(IMAGES).to(device, dtype)
    fits = {
        name: try_training(
            network,
            x,
            job.train.num_classes,
            channels_last=job.training.channels_last,
            name=name,
            trained=name in networks.learning,
            seed=derive_seed(job.seed, name),
        )
        for name, network in everything.items()
    }
    for name, network in everything.items():
        network.to(device)  # layers that were built in the first pass
        _check_unused(name, fits[name], processes)
    if job.training.sync_batch_norm:
        check_norms(networks.learning)
    if job.training.head_epochs or job.optimizer.layer_decay < 1:
        head_of(networks.model, job.training.head)
    contiguous = any(fit.layout != torch.channels_last for fit in fits.values())
    placed = Placed(networks, fits, dtype, torch.contiguous_format if contiguous else torch.channels_last)
    size = min(job.training.batch_size, len(job.train))
    fewest = fewest_images(job, placed, processes, job.training.parts)
    if job.images_of_step(0) < fewest:
        raise TrialError(
            f"training.batch_size: batch normalisation of the networks needs at least {fewest} images in a batch, "
            f"there are {size}"
        )
    return placed


def fewest_images(job: Job, placed: Placed, processes: int, parts: int) -> int:
    """Fewest images of a step, over all processes: batch normalisation takes each of the parts alone."""
    together = job.training.sync_batch_norm and processes > 1
    fewest = 1 if together else placed.smallest_batch
    return fewest * processes * (parts if fewest > 1 else 1)


def _bare(network: nn.Module) -> nn.Module:
    found = unwrapped(network)
    return found if isinstance(found, nn.Module) else network


def _check_unused(name: str, fit: Fit, processes: int) -> None:
    if processes > 1 and fit.unused:
        raise TrialError(
            f"several processes need a gradient of every parameter, {fit.unused[0]} of the {name} has none "
            "(auxiliary outputs are not trained): set its requires_grad to False, or use one process"
        )


def warn_of_last_batch(job: Job, fewest: int) -> None:
    """Warn if the last batch of every epoch is left out, because it has fewer images than all processes need."""
    left = job.images_of_step(job.steps_per_epoch - 1)
    if left < fewest:
        warnings.warn(
            f"{len(job.train)} images in batches of {job.training.batch_size} leave a last batch of {left}, too "
            "few for batch normalisation: it is left out, other images in each epoch; another training.batch_size "
            "uses all images",
            stacklevel=2,
        )


def body_of(model: nn.Module, head: str | None) -> tuple[list[nn.Parameter], nn.Module]:
    """The trained parameters of a model outside its head, and the head.

    Raises:
        TrialError: no parameter of the head requires a gradient.
        MethodError: the model has no such head.
    """
    name, module = head_of(model, head)
    own = {id(p) for p in module.parameters()}
    if not any(p.requires_grad for p in module.parameters()):
        raise TrialError(f"training.head_epochs: no parameter of the head {name} requires a gradient")
    return [p for p in model.parameters() if p.requires_grad and id(p) not in own], module
