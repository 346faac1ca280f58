"""Networks without values, which take no memory and are built in milliseconds."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = (Tensor.normal_, Tensor.uniform_)
"""Draws of functions in `torch.nn.init` that a mode does not see, such as `kaiming_normal_`."""


def without_values(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that a function builds, on the meta device: names and shapes of its tensors, but no numbers."""
    with torch.device("meta"), _NoDraws():
        return build()


class _NoDraws(TorchFunctionMode):
    """Construction of modules without drawing new weights, which on the meta device imports all of TorchDynamo."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the tensor unchanged instead of initialising it."""
        given = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)
