"""Inner maximisations by the names that recipes use.

A name is never an import path, so a configuration file cannot run code. A new inner maximisation adds a line here.
"""

from robustly.training.inner.adaad import AdaadInner
from robustly.training.inner.composite import CompositeInner
from robustly.training.inner.early_stopped import CurriculumInner, FriendlyInner
from robustly.training.inner.gkl import GklInner
from robustly.training.inner.mixed import MixedInner
from robustly.training.inner.msd import MsdInner
from robustly.training.inner.one_of_several import EatInner, StochasticInner
from robustly.training.inner.pgd import PGDInner
from robustly.training.inner.several import AvgInner, MaxInner
from robustly.training.inner.single_step import FreeInner, NoisyFGSMInner
from robustly.training.parts import InnerMaximiser

INNER_MAXIMISERS: dict[str, type[InnerMaximiser]] = {
    "pgd": PGDInner,
    "mixed": MixedInner,
    "adaad": AdaadInner,
    "gkl": GklInner,
    "n_fgsm": NoisyFGSMInner,
    "free": FreeInner,
    "friendly": FriendlyInner,
    "curriculum": CurriculumInner,
    "max": MaxInner,
    "avg": AvgInner,
    "stochastic_multi": StochasticInner,
    "eat": EatInner,
    "msd": MsdInner,
    "composite": CompositeInner,
}
SEVERAL: tuple[type[InnerMaximiser], ...] = (MaxInner, AvgInner, StochasticInner, EatInner, MsdInner)
"""Inner maximisations that use all threats of a run; the others use the first."""
