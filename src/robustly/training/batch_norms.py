"""What a second forward pass of one step must not change: running statistics of batch normalisation."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a network."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch normalisations in train mode use the batch's statistics and do not remember them."""
    norms = batch_norms(model)
    tracked = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, was_tracked in zip(norms, tracked, strict=True):
            norm.track_running_stats = was_tracked
