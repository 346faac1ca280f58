"""Parameter parts by the names that recipes use. They change the weights around the optimiser's step.

A name is never an import path, so a configuration file cannot run code. A new parameter part adds a line here.
"""

from robustly.training.parameters.averaging import EpochAverage, ExponentialAverage, WeightAverage
from robustly.training.parameters.awp import WeightPerturbation
from robustly.training.parameters.gradalign import GradAlign
from robustly.training.parts import Part

PARAMETER_PARTS: dict[str, type[Part]] = {
    "ema": ExponentialAverage,
    "swa": WeightAverage,
    "epoch_ema": EpochAverage,
    "awp": WeightPerturbation,
    "grad_align": GradAlign,
}
