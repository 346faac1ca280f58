"""Training and evaluation mode of networks of which some parts are not trained, and another state for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


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


@contextmanager
def with_state(network: nn.Module, state: dict[str, Tensor] | None) -> Iterator[None]:
    """Give a network another state for a while; None changes nothing.

    The network is not copied, because modules with hooks, such as weight normalisation, cannot always be copied.
    """
    if state is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in network.state_dict().items()}
    try:
        network.load_state_dict(state)
        yield
    finally:
        network.load_state_dict(own)
