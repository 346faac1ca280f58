"""Adversarial training: methods composed of five parts, and one training loop."""

from robustly.training.engine.job import AuxiliaryNetwork, Job, TrainingConfig
from robustly.training.engine.loop import Outcome, train
from robustly.training.engine.observer import Observer
from robustly.training.engine.optimisation import OptimizerConfig, ScheduleConfig
from robustly.training.engine.stopping import DivergenceError
from robustly.training.inner import INNER_MAXIMISERS
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
from robustly.training.labels import LABEL_SOURCES
from robustly.training.labels.data import DataLabels, SmoothedLabels
from robustly.training.labels.guide import GuideLabels
from robustly.training.losses import LOSSES
from robustly.training.losses.consistency import AlpLoss, TradesLoss
from robustly.training.losses.cross_entropy import AdversarialLoss, CleanLoss, MixtureLoss
from robustly.training.losses.distillation import AdaadLoss, ArdLoss, KdLoss, RsladLoss
from robustly.training.losses.gkl import DklLoss, GklLoss
from robustly.training.losses.guided import DynatLoss, LbgatLoss
from robustly.training.losses.introspective import Iad2Loss, IadLoss
from robustly.training.losses.mart import MartLoss
from robustly.training.losses.mean_teacher import MeanTeacherLoss
from robustly.training.losses.smoothed_margin import MacerLoss, MarginCsLoss
from robustly.training.losses.tafd import TafdLoss
from robustly.training.method import Method, MethodError
from robustly.training.parameters import PARAMETER_PARTS
from robustly.training.parameters.averaging import EpochAverage, ExponentialAverage, WeightAverage
from robustly.training.parameters.awp import WeightPerturbation
from robustly.training.parameters.gradalign import GradAlign
from robustly.training.parts import (
    Composition,
    EpochEnd,
    InnerMaximiser,
    InstanceWeights,
    InstanceWeightsError,
    LabelSource,
    OuterLoss,
    Part,
    Terms,
)
from robustly.training.quantities import Networks, UndeclaredReadError
from robustly.training.step import Labels, Moment, Step
from robustly.training.weights import WEIGHTS
from robustly.training.weights.gairat import GairatWeights
from robustly.training.weights.mail import MailWeights

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
    "AuxiliaryNetwork",
    "AvgInner",
    "CleanLoss",
    "CompositeInner",
    "Composition",
    "CurriculumInner",
    "DataLabels",
    "DivergenceError",
    "DklLoss",
    "DynatLoss",
    "EatInner",
    "EpochAverage",
    "EpochEnd",
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
    "InstanceWeightsError",
    "Job",
    "KdLoss",
    "LabelSource",
    "Labels",
    "LbgatLoss",
    "MacerLoss",
    "MailWeights",
    "MarginCsLoss",
    "MartLoss",
    "MaxInner",
    "MeanTeacherLoss",
    "Method",
    "MethodError",
    "MixedInner",
    "MixtureLoss",
    "Moment",
    "MsdInner",
    "Networks",
    "NoisyFGSMInner",
    "Observer",
    "OptimizerConfig",
    "Outcome",
    "OuterLoss",
    "PGDInner",
    "Part",
    "RsladLoss",
    "ScheduleConfig",
    "SmoothedLabels",
    "Step",
    "StochasticInner",
    "TafdLoss",
    "Terms",
    "TradesLoss",
    "TrainingConfig",
    "UndeclaredReadError",
    "WeightAverage",
    "WeightPerturbation",
    "train",
]
