"""Small networks for contract checks, and their outputs."""

import torch
from torch import Tensor, nn

from robustly.models.modes import modes_kept

SHAPES: tuple[tuple[int, ...], ...] = ((6,), (2, 5), (1, 4, 4), (3, 5, 4))


def small_network(shape: tuple[int, ...], classes: int = 4, seed: int = 0) -> nn.Module:
    """A small random network with batch normalisation and dropout, in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = int(torch.tensor(shape).prod())
        net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(16, classes),
        )
        net(torch.rand(32, *shape))  # running statistics differ from the initial ones
        return net


def require(holds: Tensor | bool, sentence: str) -> None:
    """Raise an error with the sentence unless the property holds.

    Raises:
        AssertionError: the property does not hold.
    """
    if not bool(holds):
        raise AssertionError(sentence)


def eval_logits(net: nn.Module, x: Tensor) -> Tensor:
    """Logits of a network in evaluation mode; its modes are restored."""
    with modes_kept(net), torch.no_grad():
        net.eval()
        logits: Tensor = net(x)
    return logits
