"""Fourth part of a method: instance weights."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from robustly.training.step import Step


@runtime_checkable
class InstanceWeights(Protocol):
    """Fourth part: how much each example counts, in which term of the loss."""

    def __call__(self, step: Step, term: str) -> Float[Tensor, " n"] | None:
        """Weights of a batch for one term of the loss, without gradient; None leaves the term alone."""
        ...


WEIGHTS: dict[str, type[InstanceWeights]] = {}
