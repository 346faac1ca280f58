"""Precision of threats: at least float32, also for inputs in half precision and inside autocast.

Limits of threats are smaller than the steps of half precision: between 0.5 and 1 neighbours of bfloat16 differ by
1/256. Points that half precision rounds are therefore outside the set as audits measure it.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from robustly.threats.contract import Images


def at_least_float32(x: Images) -> Images:
    """Inputs in float32 if they are in half precision, otherwise the inputs themselves."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Context in which matrix products keep the precision of their arguments.

    Args:
        like: a tensor on the device of the computation.
    """
    return torch.autocast(like.device.type, enabled=False)
