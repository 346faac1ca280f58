"""Adversarial training: a method is five parts, composed; one loop runs them all."""

from robustly.training.awp import WeightPerturbation
from robustly.training.catalogue import (
    INNER_MAXIMISERS,
    LABEL_SOURCES,
    LOSSES,
    PARAMETER_PARTS,
    WEIGHTS,
)
from robustly.training.distillation import AdaadInner, AdaadLoss, ArdLoss, KdLoss, RsladLoss
from robustly.training.divergence import DivergenceError
from robustly.training.friendly import CurriculumInner, FriendlyInner
from robustly.training.gkl import DklLoss, GklInner, GklLoss
from robustly.training.gradalign import GradAlign
from robustly.training.guided_losses import DynatLoss, LbgatLoss
from robustly.training.inner import PGDInner
from robustly.training.introspective import Iad2Loss, IadLoss
from robustly.training.job import Job, TrainingConfig
from robustly.training.labels import DataLabels, GuideLabels
from robustly.training.loop import Observer, Outcome, train
from robustly.training.losses import (
    AdversarialLoss,
    AlpLoss,
    CleanLoss,
    MartLoss,
    MixtureLoss,
    OuterLoss,
    TradesLoss,
)
from robustly.training.method import Method, MethodError
from robustly.training.optimisation import OptimizerConfig, ScheduleConfig
from robustly.training.parameters import ExponentialAverage, ParameterPart
from robustly.training.single_step import FreeInner, NoisyFGSMInner
from robustly.training.step import InnerMaximiser, Labels, LabelSource, Moment, Step
from robustly.training.swa import EpochAverage, WeightAverage
from robustly.training.weights import GairatWeights, InstanceWeights, MailWeights, WeightsError

__all__ = [
    "INNER_MAXIMISERS",
    "LABEL_SOURCES",
    "LOSSES",
    "PARAMETER_PARTS",
    "WEIGHTS",
    "AdaadInner",
    "AdaadLoss",
    "AdversarialLoss",
    "AlpLoss",
    "ArdLoss",
    "CleanLoss",
    "CurriculumInner",
    "DataLabels",
    "DivergenceError",
    "DklLoss",
    "DynatLoss",
    "EpochAverage",
    "ExponentialAverage",
    "FreeInner",
    "FriendlyInner",
    "GairatWeights",
    "GklInner",
    "GklLoss",
    "GradAlign",
    "GuideLabels",
    "Iad2Loss",
    "IadLoss",
    "InnerMaximiser",
    "InstanceWeights",
    "Job",
    "KdLoss",
    "LabelSource",
    "Labels",
    "LbgatLoss",
    "MailWeights",
    "MartLoss",
    "Method",
    "MethodError",
    "MixtureLoss",
    "Moment",
    "NoisyFGSMInner",
    "Observer",
    "OptimizerConfig",
    "Outcome",
    "OuterLoss",
    "PGDInner",
    "ParameterPart",
    "RsladLoss",
    "ScheduleConfig",
    "Step",
    "TradesLoss",
    "TrainingConfig",
    "WeightAverage",
    "WeightPerturbation",
    "WeightsError",
    "train",
]
