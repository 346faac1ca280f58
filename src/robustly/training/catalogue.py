"""The parts of training methods by the names that recipes use: one table for each of the five places.

A name is never an import path, so that a configuration file cannot run code. New parts add a line here.
"""

from robustly.training.awp import WeightPerturbation
from robustly.training.distillation import AdaadInner, AdaadLoss, ArdLoss, KdLoss, RsladLoss
from robustly.training.friendly import CurriculumInner, FriendlyInner
from robustly.training.gkl import DklLoss, GklInner, GklLoss
from robustly.training.gradalign import GradAlign
from robustly.training.guided_losses import DynatLoss, LbgatLoss
from robustly.training.inner import PGDInner
from robustly.training.introspective import Iad2Loss, IadLoss
from robustly.training.labels import DataLabels, GuideLabels, SmoothedLabels
from robustly.training.losses import (
    AdversarialLoss,
    AlpLoss,
    CleanLoss,
    MartLoss,
    MixtureLoss,
    OuterLoss,
    TradesLoss,
)
from robustly.training.parameters import ExponentialAverage, ParameterPart
from robustly.training.single_step import FreeInner, NoisyFGSMInner
from robustly.training.step import InnerMaximiser, LabelSource
from robustly.training.swa import EpochAverage, WeightAverage
from robustly.training.weights import GairatWeights, InstanceWeights, MailWeights

LABEL_SOURCES: dict[str, type[LabelSource]] = {
    "data": DataLabels,
    "guide": GuideLabels,
    "smoothed": SmoothedLabels,
}

INNER_MAXIMISERS: dict[str, type[InnerMaximiser]] = {
    "pgd": PGDInner,
    "adaad": AdaadInner,
    "gkl": GklInner,
    "n_fgsm": NoisyFGSMInner,
    "free": FreeInner,
    "friendly": FriendlyInner,
    "curriculum": CurriculumInner,
}

LOSSES: dict[str, type[OuterLoss]] = {
    "clean": CleanLoss,
    "adversarial": AdversarialLoss,
    "mixture": MixtureLoss,
    "trades": TradesLoss,
    "dynat": DynatLoss,
    "alp": AlpLoss,
    "mart": MartLoss,
    "lbgat": LbgatLoss,
    "ard": ArdLoss,
    "rslad": RsladLoss,
    "iad": IadLoss,
    "iad2": Iad2Loss,
    "adaad": AdaadLoss,
    "kd": KdLoss,
    "dkl": DklLoss,
    "gkl": GklLoss,
}

WEIGHTS: dict[str, type[InstanceWeights]] = {
    "gairat": GairatWeights,
    "mail": MailWeights,
}

PARAMETER_PARTS: dict[str, type[ParameterPart]] = {
    "ema": ExponentialAverage,
    "swa": WeightAverage,
    "epoch_ema": EpochAverage,
    "awp": WeightPerturbation,
    "grad_align": GradAlign,
}
