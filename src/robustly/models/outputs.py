"""Logits in the outputs of any classifier: tensors, tuples, dictionaries, and dataclasses of other libraries."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

_KEYS = ("logits", "out", "output", "scores", "pred", "prediction", "predictions")


class OutputError(ValueError):
    """An output that holds no logits; the message names its type."""


def logits_in(output: object) -> Tensor:
    """The tensor of logits in a model's output.

    A tensor is returned as it is. An object with the attribute `logits` (Hugging Face, Inception) gives that. A
    dictionary gives its value under `logits` or another usual name, or its only tensor. A tuple or list gives its
    first element: auxiliary outputs come after the main one.

    Raises:
        OutputError: there is no tensor at these places.
    """
    found = output
    for _ in range(4):
        if isinstance(found, Tensor):
            return found
        found = _main_part(found)
    raise OutputError(f"the model must return a tensor of logits, got {_described(output)}")


def two_classes(output: Float[Tensor, "n 1"] | Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """Logits (-z/2, z/2) of two classes; z is the single logit of the second one, of probability sigmoid(z)."""
    half = output.reshape(len(output), 1) / 2
    return torch.cat([-half, half], dim=1)


def is_single_logit(output: Tensor, count: int) -> bool:
    """True for one number per image: `(N, 1)`, or `(N,)`."""
    return output.shape in ((count, 1), (count,))


def _main_part(output: object) -> object:
    logits = getattr(output, "logits", None)
    if logits is not None:
        return logits
    if isinstance(output, Mapping):
        for key in _KEYS:
            if output.get(key) is not None:
                return output[key]
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        return tensors[0] if len(tensors) == 1 else None
    if isinstance(output, tuple | list) and output:
        return output[0]
    return None


def _described(output: object) -> str:
    name = type(output).__name__
    if isinstance(output, Mapping):
        keys = ", ".join(str(key) for key in list(output)[:6])
        return f"{name} with the keys {keys or 'none'} (the logits are expected under the key logits)"
    return name
