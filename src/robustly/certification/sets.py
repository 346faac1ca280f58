"""Input sets: a box for each example, or the intersection of a box and a ball."""

from dataclasses import dataclass

from torch import Tensor

from robustly.certification.operations.rule import Interval


@dataclass(frozen=True)
class Ball:
    """A ball around each example.

    Args:
        norm: "l2" or "l1"; a ball in the l-inf norm is a box.
        center: centres, `(B, *shape)`.
        radius: radii, `(B,)`.
    """

    norm: str
    center: Tensor
    radius: Tensor


@dataclass(frozen=True)
class InputSet:
    """The inputs over which a property must hold.

    Args:
        lower: least value of each input, `(B, *shape)`.
        upper: largest value of each input, `(B, *shape)`.
        ball: the inputs lie in this ball too; None for a box.
    """

    lower: Tensor
    upper: Tensor
    ball: Ball | None = None

    def interval(self) -> Interval:
        """The box."""
        return Interval(self.lower, self.upper)
