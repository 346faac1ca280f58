"""Linear relaxations of functions of one variable: an interval in, two lines out, sound in floating point.

Sources: Zhang et al., "Efficient neural network robustness certification with general activation functions"
(NeurIPS 2018, CROWN) for ReLU and S-shaped functions.
"""

import torch
from torch import Tensor

from robustly.certification.operations.rule import Interval, Relaxation


def relu(interval: Interval, free: Tensor | None = None) -> Relaxation:
    """Bound relu(x) by two lines.

    Args:
        interval: bounds of x.
        free: slope of the lower line where the sign of x is open, in [0, 1]; None: 1 where u > -l, else 0.
    """
    lower, upper = interval
    info = torch.finfo(upper.dtype)
    open_ = (lower < 0) & (upper > 0)
    active = (lower >= 0).to(upper.dtype)
    width = torch.where(open_, upper - lower, 1.0)
    chord = upper / width
    slope = (upper > -lower).to(upper.dtype) if free is None else torch.where(open_, free, active)
    offset = torch.where(open_, (4 * info.eps) * width + info.tiny - lower * chord, 0.0)
    return Relaxation(slope, None, torch.where(open_, chord, active), offset, _per_row(free, lower))


def _per_row(free: Tensor | None, bound: Tensor) -> bool:
    return False
