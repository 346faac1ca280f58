"""Clean and robust accuracy on held-out images, and the network to validate and release."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.attacks.core.contract import frozen
from robustly.data import ImageData
from robustly.randomness import KeyedGenerator
from robustly.threats import Threat
from robustly.training.method import Method
from robustly.training.step import Memory


def accuracies(
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
) -> tuple[float, float]:
    """Clean accuracy, and accuracy under one attack, as shares in [0, 1].

    Args:
        model: network on the data's device.
        data: held-out images; the processes share them by position.
        attack: the attack.
        threat: its threat model.
        seed: seed of the attack's random numbers.
        batch_size: images per batch.
        rank: number of this process.
        world_size: number of processes.
        total: sum over processes.
    """
    device = data.images.device
    rows = torch.arange(rank, len(data), world_size, device=device)
    correct = torch.zeros(2, dtype=torch.float64, device=device)
    for first in range(0, len(rows), batch_size):
        chunk = rows[first : first + batch_size]
        x, y = data.floats(chunk), data.labels[chunk]
        with frozen(model), torch.no_grad():
            correct[0] += (model(x).argmax(1) == y).sum()
        found = attack(model, x, y, threat=threat, generator=KeyedGenerator(seed, data.ids[chunk]))
        correct[1] += (~found.broken).sum()
    clean, robust = (total(correct) / len(data)).tolist()
    return clean, robust


def selected_network(model: nn.Module, method: Method, memory: Memory) -> nn.Module:
    """The network to validate and release: a copy with averaged weights if a part has them, else the model.

    Args:
        model: the network in training.
        method: the five parts.
        memory: tensors of the parts, by slot.
    """
    for slot, part in method.slots():
        average = part.evaluation_state(memory.get(slot, {}))
        if average is not None:
            network = copy.deepcopy(model)
            network.load_state_dict(average)
            return network
    return model
