"""Specifications of a network's output: no disjunct of a violation can hold."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Specification:
    """Violation in disjunctive normal form, one for each example of a batch.

    An output y violates the property if for some disjunct all its rows have `rows @ y + offset <= 0`. A disjunct is
    refuted over a set of inputs if one of its rows, or a convex combination of them, is positive on the whole set.

    Args:
        rows: `(B, R, outputs)`.
        offset: `(B, R)`.
        disjunct: number of the disjunct of each row, `(R,)` int64, from 0 without gaps, in ascending order.
        strict: rows of a violation that need `< 0`, `(R,)` bool. Proofs treat them as `<= 0`; a counterexample
            must fulfil them.
    """

    rows: Tensor
    offset: Tensor
    disjunct: Tensor
    strict: Tensor

    @property
    def disjuncts(self) -> int:
        """Number of disjuncts."""
        return int(self.disjunct.max()) + 1 if len(self.disjunct) else 0

    def margins(self, outputs: Tensor) -> Tensor:
        """Values of the rows, `(B, R)`, for outputs `(B, outputs)`."""
        return torch.baddbmm(self.offset.unsqueeze(2), self.rows, outputs.unsqueeze(2)).squeeze(2)

    def worst(self, margins: Tensor) -> Tensor:
        """The least over disjuncts of the largest row, `(B,)`: positive where every disjunct is refuted."""
        return self.by_disjunct(margins).amin(1)

    def by_disjunct(self, margins: Tensor) -> Tensor:
        """The largest row of each disjunct, `(B, D)`."""
        index = self.disjunct.expand_as(margins)
        start = margins.new_full((len(margins), self.disjuncts), -torch.inf)
        return start.scatter_reduce(1, index, margins, "amax")

    def violated(self, outputs: Tensor) -> Tensor:
        """Mask of outputs `(B, outputs)` that violate the property, `(B,)` bool."""
        margins = self.margins(outputs)
        holds = torch.where(self.strict, margins < 0, margins <= 0)
        index = self.disjunct.expand_as(margins)
        start = torch.ones(len(margins), self.disjuncts, dtype=torch.bool, device=margins.device)
        return start.scatter_reduce(1, index, holds, "amin").any(1)

    def select(self, index: Tensor) -> "Specification":
        """The specification of some examples."""
        return Specification(self.rows[index], self.offset[index], self.disjunct, self.strict)

    def to(self, dtype: torch.dtype) -> "Specification":
        """The same with rows of another type."""
        return Specification(self.rows.to(dtype), self.offset.to(dtype), self.disjunct, self.strict)


def robustness(labels: Tensor, outputs: int, dtype: torch.dtype = torch.float32) -> Specification:
    """ "The label has the largest output": a disjunct `y_label - y_j <= 0` for every other class j.

    Args:
        labels: labels, `(B,)`.
        outputs: number K of outputs.
        dtype: type of the rows.
    """
    every = torch.arange(outputs, device=labels.device).expand(len(labels), outputs)
    others = every[every != labels.unsqueeze(1)].view(len(labels), outputs - 1)
    identity = torch.eye(outputs, dtype=dtype, device=labels.device)
    rows = identity[labels].unsqueeze(1) - identity[others]
    count = outputs - 1
    return Specification(
        rows,
        rows.new_zeros(len(labels), count),
        torch.arange(count, device=labels.device),
        torch.zeros(count, dtype=torch.bool, device=labels.device),
    )
