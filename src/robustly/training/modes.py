"""Training and evaluation mode of networks of which some parts are not trained."""

from collections.abc import Sequence

from torch import nn


def frozen_parts(network: nn.Module) -> list[nn.Module]:
    """The largest parts that have parameters and train none of them, in order; [network] if nothing is trained.

    They stay in evaluation mode during training, so that neither dropout nor batch statistics change them.
    """
    parameters = list(network.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        return [network]
    return [part for child in network.children() for part in frozen_parts(child)]


def train_mode(network: nn.Module, still: Sequence[nn.Module]) -> None:
    """Put a network into training mode, and its frozen parts into evaluation mode."""
    network.train()
    for part in still:
        part.eval()
