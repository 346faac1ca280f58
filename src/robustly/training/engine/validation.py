"""Clean and robust accuracy on held-out images, and the network to validate and release."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.attacks.core.contract import frozen
from robustly.data import ImageData
from robustly.memory import in_halves
from robustly.randomness import KeyedGenerator
from robustly.statistics import Proportion, collapsed_class
from robustly.threats import Threat
from robustly.training.method import Method
from robustly.training.step import Memory


@dataclass(frozen=True)
class Validation:
    """Results on held-out images.

    Args:
        clean: clean accuracy, in [0, 1].
        robust: accuracy under the attack, in [0, 1].
        collapsed: the class that every clean image is predicted as, if there is one and the labels are of several
            classes; else None.
    """

    clean: float
    robust: float
    collapsed: int | None = None

    def score(self, select_by: str) -> tuple[float, float, float]:
        """Order of selection: a network that learns before a collapsed one, then "robust" or "clean" accuracy.

        The accuracy that is not `select_by` breaks ties.
        """
        learns = float(self.collapsed is None)
        return (learns, self.robust, self.clean) if select_by == "robust" else (learns, self.clean, self.robust)


def validate(
    model: nn.Module,
    data: ImageData,
    attack: Attack,
    threat: Threat,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[Tensor], Tensor] = lambda value: value,
    dtype: torch.dtype = torch.float32,
) -> Validation:
    """Clean accuracy, accuracy under one attack, and whether the network has collapsed.

    Args:
        model: network on the data's device.
        data: held-out images; the processes share them by position.
        attack: the attack.
        threat: its threat model.
        seed: seed of the attack's random numbers.
        batch_size: images per batch; fewer where these do not fit into the memory.
        rank: number of this process.
        world_size: number of processes.
        total: sum over processes.
        dtype: floating-point type of the network.
    """
    device = data.device
    correct = torch.zeros(2, dtype=torch.float64, device=device)
    predicted = torch.zeros(data.num_classes, dtype=torch.float64, device=device)

    def attacked(chunk: Tensor) -> None:
        x, y, classes = _classified(model, data, chunk, dtype)
        found = attack(model, x, y, threat=threat, generator=KeyedGenerator(seed, data.ids[chunk]))
        counts = classes.bincount(minlength=data.num_classes)
        correct.add_(torch.stack([(classes == y).sum(), (~found.broken).sum()]))
        predicted.add_(counts)

    _in_chunks(torch.arange(rank, len(data), world_size, device=device), batch_size, attacked)
    clean, robust = (total(correct) / len(data)).tolist()
    counts = [int(count) for count in total(predicted).tolist()]
    return Validation(clean, robust, collapsed_class(counts, data.labels.bincount().tolist()))


def clean_accuracy(
    model: nn.Module,
    data: ImageData,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[Tensor], Tensor] = lambda value: value,
    dtype: torch.dtype = torch.float32,
) -> Proportion:
    """Accuracy of a network in evaluation mode on images without augmentation.

    Args:
        model: network on the data's device.
        data: at least one image; the processes share them by position.
        batch_size: images per batch; fewer where these do not fit into the memory.
        rank: number of this process.
        world_size: number of processes.
        total: sum over processes.
        dtype: floating-point type of the network.
    """
    correct = torch.zeros((), dtype=torch.float64, device=data.device)

    def classified(chunk: Tensor) -> None:
        _, y, classes = _classified(model, data, chunk, dtype)
        correct.add_((classes == y).sum())

    _in_chunks(torch.arange(rank, len(data), world_size, device=data.device), batch_size, classified)
    return Proportion(int(total(correct)), len(data))


def _classified(
    model: nn.Module, data: ImageData, rows: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and predicted classes of some rows."""
    x = data.floats(rows).to(dtype)
    with frozen(model), torch.no_grad():
        return x, data.labels[rows], model(x).argmax(1)


def _in_chunks(rows: Tensor, size: int, work: Callable[[Tensor], None]) -> None:
    """Call `work`, which adds its results up at its end, with some rows at a time; see `in_halves`."""
    for first in range(0, len(rows), size):
        in_halves(work, rows[first : first + size])


def averaged_state(method: Method, memory: Memory) -> dict[str, Tensor] | None:
    """State dict to validate and release if a part averages the weights, else None.

    Args:
        method: the five parts.
        memory: tensors of the parts, by slot.
    """
    states = (part.evaluation_state(memory.get(slot, {})) for slot, part in method.slots())
    return next((state for state in states if state is not None), None)
