"""Adversarial training: a method is five parts, composed; one loop runs them all."""

from robustly.training.catalogue import (
    INNER_MAXIMISERS,
    LABEL_SOURCES,
    LOSSES,
    PARAMETER_PARTS,
    WEIGHTS,
)
from robustly.training.inner import PGDInner
from robustly.training.job import Job, TrainingConfig
from robustly.training.labels import DataLabels, GuideLabels
from robustly.training.loop import DivergenceError, Observer, Outcome, train
from robustly.training.losses import (
    AdversarialLoss,
    CleanLoss,
    DynatLoss,
    MixtureLoss,
    OuterLoss,
    TradesLoss,
)
from robustly.training.method import Method, MethodError
from robustly.training.optimisation import OptimizerConfig, ScheduleConfig
from robustly.training.parameters import ExponentialAverage, ParameterPart
from robustly.training.step import InnerMaximiser, Labels, LabelSource, Moment, Step
from robustly.training.weights import InstanceWeights

__all__ = [
    "INNER_MAXIMISERS",
    "LABEL_SOURCES",
    "LOSSES",
    "PARAMETER_PARTS",
    "WEIGHTS",
    "AdversarialLoss",
    "CleanLoss",
    "DataLabels",
    "DivergenceError",
    "DynatLoss",
    "ExponentialAverage",
    "GuideLabels",
    "InnerMaximiser",
    "InstanceWeights",
    "Job",
    "LabelSource",
    "Labels",
    "Method",
    "MethodError",
    "MixtureLoss",
    "Moment",
    "Observer",
    "OptimizerConfig",
    "Outcome",
    "OuterLoss",
    "PGDInner",
    "ParameterPart",
    "ScheduleConfig",
    "Step",
    "TradesLoss",
    "TrainingConfig",
    "train",
]
