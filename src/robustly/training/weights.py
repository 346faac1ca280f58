"""Fourth part of a method: instance weights."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from robustly.training.step import Step


@runtime_checkable
class InstanceWeights(Protocol):
    """Fourth part: how much each example counts, in which term of the loss."""

    @property
    def term(self) -> str:
        """The term of the loss that is weighted, such as "adversarial" or "consistency"."""
        ...

    def __call__(self, step: Step) -> Float[Tensor, " n"] | None:
        """Weights of a batch; they carry no gradient. None counts every example once (a burn-in)."""
        ...
