"""Runs for the contract of training parts: one that is stopped and resumed, and two processes against one."""

import copy
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]  # its stubs do not export it
from torch.distributed.distributed_c10d import Store
from torch.multiprocessing.spawn import spawn

from robustly.data import Augmentation, Batch, ImageData
from robustly.randomness import KeyedGenerator
from robustly.runtime import Runtime, RuntimeConfig
from robustly.testing.networks import require
from robustly.threats import Threat
from robustly.training import (
    AuxiliaryNetwork,
    Job,
    Method,
    Moment,
    Networks,
    Observer,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    train,
)
from robustly.training.engine.checkpoint import TrainingState, load_state
from robustly.training.engine.loop import LAST
from robustly.training.method import outer_loss
from robustly.training.parts import EpochEnd
from robustly.training.step import Memory, unchanged

SIZE, BATCH = 24, 8
Trained = tuple[dict[str, dict[str, Tensor]], Memory]


class _Stop(Observer):
    """End a run after some steps, as Ctrl-C does."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


def check_resume(
    method: Method, networks: Callable[[], Networks], epochs: int, threats: tuple[Threat, ...], name: str
) -> None:
    """Check that a run, stopped in its second epoch and resumed, ends as an uninterrupted one, bit by bit.

    Args:
        method: the method; each run gets a copy.
        networks: makes the networks of a run.
        epochs: epochs of the run.
        threats: threat models of the run.
        name: name of the part in messages.

    Raises:
        AssertionError: other weights, optimiser states or memories.
    """
    with tempfile.TemporaryDirectory() as temporary:
        whole, cut = Path(temporary, "whole"), Path(temporary, "cut")

        def run(folder: Path, observer: Observer | None = None) -> None:
            folder.mkdir(exist_ok=True)
            job = _job(copy.deepcopy(method), networks(), epochs, threats)
            train(job, Runtime(RuntimeConfig(device="cpu")), folder, config_digest="check", observer=observer)

        run(whole)
        try:
            run(cut, _Stop(method.replays * (SIZE // BATCH + 1)))
        except KeyboardInterrupt:
            run(cut)
        one, other = (load_state(folder / LAST, "check") for folder in (whole, cut))
    require(
        all(_same(one.networks[key], other.networks[key]) for key in one.networks),
        f"with {name} a resumed run ends with other weights than an uninterrupted one: "
        "keep state in `step.remember(self)`",
    )
    require(
        _same_memory(one, other), f"with {name} a resumed run ends with another memory than an uninterrupted one"
    )


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _same_memory(one: TrainingState, other: TrainingState) -> bool:
    same = one.memory.keys() == other.memory.keys()
    return same and all(_same(tensors, other.memory[part]) for part, tensors in one.memory.items())


def _job(method: Method, networks: Networks, epochs: int, threats: tuple[Threat, ...]) -> Job:
    """A run of three steps an epoch on random images."""
    ids = torch.arange(SIZE + BATCH)
    draws = KeyedGenerator(5, ids)
    images, labels = draws.integers(256, 1, 4, 4).to(torch.uint8), draws.fold("label").integers(4, 1)[:, 0]
    data = ImageData(images, labels, ids, ("a", "b", "c", "d"), "random images")
    beside = {key: AuxiliaryNetwork(net) for key, net in networks.trained.items()}
    beside |= {key: AuxiliaryNetwork(net, frozen=True) for key, net in networks.frozen.items()}
    return Job(
        method=method,
        model=networks.model,
        train=data.select(torch.arange(SIZE)),
        validation=data.select(torch.arange(SIZE, SIZE + BATCH)),
        threats=threats,
        optimizer=OptimizerConfig(learning_rate=0.05),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=epochs, batch_size=BATCH, validation_steps=1),
        augmentation=Augmentation(flip=True),
        networks=beside,
    )


def check_processes(
    method: Method, networks: Networks, batch: Batch, epochs: int, threats: tuple[Threat, ...], name: str
) -> None:
    """Two processes that share every batch train what one process trains, up to rounding.

    Args:
        method: the method.
        networks: networks whose examples do not depend on each other: without batch normalisation and dropout.
        batch: an odd number of examples, so that the shares differ in size.
        epochs: epochs of one step each.
        threats: threat models of the run.
        name: name of the part in messages.

    Raises:
        AssertionError: other weights or memories; a part that cannot be sent to another process.
    """
    alone = _trained(copy.deepcopy(method), copy.deepcopy(networks), batch, epochs, threats)
    try:
        pickle.dumps(method)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"{name} cannot be sent to another process: {error}") from None
    with tempfile.TemporaryDirectory() as temporary:
        run = (method, networks, batch, epochs, threats)
        spawn(_process, args=(temporary, *run), nprocs=2)  # type: ignore[no-untyped-call]
        shared = [torch.load(Path(temporary, f"{rank}.pt"), weights_only=True) for rank in range(2)]
    for what, place in (("weights", 0), ("memory", 1)):
        one, two, whole = shared[0][place], shared[1][place], alone[place]
        require(
            _near(one, two),
            f"with {name} two processes end with different {what}: take means with step.global_mean",
        )
        require(_near(one, whole), f"with {name} two processes end with other {what} than one: use step.batch_mean")


def _process(
    rank: int,
    folder: str,
    method: Method,
    networks: Networks,
    batch: Batch,
    epochs: int,
    threats: tuple[Threat, ...],
) -> None:
    torch.set_num_threads(1)
    exchange = _Exchange(rank, FileStore(str(Path(folder, "store")), 2))
    own = copy.deepcopy(networks)  # tensors that came through `spawn` lie in shared memory
    trained = _trained(method, own, batch, epochs, threats, exchange)
    torch.save(trained, Path(folder, f"{rank}.pt"))


@dataclass
class _Exchange:
    """Means over two processes by a store in a file: without threads, which can abort a process at its end."""

    rank: int
    store: Store
    count: int = 0

    def mean(self, value: Tensor) -> Tensor:
        self.store.set(f"{self.count} of {self.rank}", save({"value": value.detach().contiguous()}))  # type: ignore[arg-type]  # bytes, too
        both = [load(self.store.get(f"{self.count} of {rank}"))["value"] for rank in range(2)]
        self.count += 1
        return (both[0] + both[1]) / 2


def _trained(
    method: Method,
    networks: Networks,
    batch: Batch,
    epochs: int,
    threats: tuple[Threat, ...],
    exchange: _Exchange | None = None,
) -> Trained:
    """Weights and memory after epochs of one step each; of one process, or of a share of two."""
    memory: Memory = {}
    rows = torch.arange(len(batch.y)) if exchange is None else torch.arange(exchange.rank, len(batch.y), 2)
    share = 1.0 if exchange is None else 2 * len(rows) / len(batch.y)
    mean = unchanged if exchange is None else exchange.mean
    part = batch.select(rows)
    parameters = [p for network in networks.learning.values() for p in network.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        step = method.step(
            part, networks, threats=threats, moment=Moment(epoch, 0, 1, epochs), memory=memory, global_mean=mean
        )
        optimizer.zero_grad()
        loss, _ = outer_loss(method, step)
        (loss * share).backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(mean(parameter.grad))
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
        method.after_epoch(_end(method, networks, part, epoch, epochs, memory, mean))
    return {name: dict(network.state_dict()) for name, network in networks.learning.items()}, memory


def _end(
    method: Method,
    networks: Networks,
    batch: Batch,
    epoch: int,
    epochs: int,
    memory: Memory,
    mean: Callable[[Tensor], Tensor],
) -> EpochEnd:
    return EpochEnd(
        epoch=epoch,
        epochs=epochs,
        model=networks.model,
        images=partial(iter, [batch.x]),
        remember=lambda part: memory.setdefault(method.slot_of(part), {}),
        global_mean=mean,
    )


def _near(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        tensors.keys() == other[key].keys()
        and all(torch.allclose(value, other[key][name], rtol=1e-6, atol=1e-9) for name, value in tensors.items())
        for key, tensors in one.items()
    )
