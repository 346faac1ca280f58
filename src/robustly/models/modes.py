"""Training and evaluation mode of all modules of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every module at the end, also after an exception.

    Frozen programs of TorchScript have no mode.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
