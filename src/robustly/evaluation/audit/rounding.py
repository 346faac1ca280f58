"""Rounding of logits: differences that another machine may compute, and what follows from them for verdicts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustly.evaluation.recording import as_array
from robustly.evidence.schema import Flags, Whole
from robustly.objectives import ClassificationGoal, margin

_RELATIVE = 1e-4  # of the network's median margin
_LAST_DIGITS = 16  # roundings of the two largest logits to single precision
TIES = 0.01
"""Largest share of verdicts that an audit explains by rounding; one verdict is always allowed."""


@dataclass(frozen=True)
class Rounding:
    """Differences of logits that rounding may cause.

    They are relative to the margins of the network, not to its logits: a constant that is added to all logits, or a
    class that is never predicted, must not make every verdict a tie. There is no absolute part either: a network
    with tiny logits has tiny tolerances.

    Args:
        scale: median distance of the label's logit from the largest other one, over the clean images.
    """

    scale: float

    @classmethod
    def of(cls, clean: Tensor, labels: Tensor) -> "Rounding":
        """The rounding of a network.

        Args:
            clean: logits of the clean images, `(N, K)`.
            labels: their labels, `(N,)`.
        """
        return cls(float(margin(clean, ClassificationGoal(labels)).abs().median()))

    def tolerance(self, logits: Tensor) -> Tensor:
        """Largest difference of two logits of a row that is attributed to rounding, `(M,)`."""
        largest = logits.topk(min(2, logits.shape[1]), dim=1).values.abs().amax(1)
        return _RELATIVE * self.scale + _LAST_DIGITS * torch.finfo(torch.float32).eps * largest

    def disagree(self, logits: Tensor, stated: Whole) -> Flags:
        """Mask of rows whose largest logit is not that of the stated class, except for ties by rounding, `(M,)`."""
        claimed = torch.from_numpy(stated).to(logits.device)
        own = logits.gather(1, claimed.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        behind = logits.amax(1) - own > self.tolerance(logits)
        return as_array(behind | (claimed < 0) | (claimed >= logits.shape[1]))

    def tied(self, logits: Tensor) -> Flags:
        """Mask of rows whose two largest logits are equal up to rounding, `(M,)`."""
        gap = logits.topk(2, dim=1).values.diff(dim=1).abs()[:, 0]
        return as_array(gap <= self.tolerance(logits))


def too_many_ties(count: int, total: int) -> bool:
    """Return True if more verdicts than rounding explains are ties."""
    return count > max(1, math.floor(TIES * total))
