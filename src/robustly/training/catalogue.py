"""The parts of training methods by the names that recipes use: one table for each of the five places.

A name is never an import path, so that a configuration file cannot run code. New parts add a line here.
"""

from robustly.training.inner import PGDInner
from robustly.training.labels import DataLabels, GuideLabels, SmoothedLabels
from robustly.training.losses import (
    AdversarialLoss,
    CleanLoss,
    DynatLoss,
    MixtureLoss,
    OuterLoss,
    TradesLoss,
)
from robustly.training.parameters import ExponentialAverage, ParameterPart
from robustly.training.step import InnerMaximiser, LabelSource
from robustly.training.weights import InstanceWeights

LABEL_SOURCES: dict[str, type[LabelSource]] = {
    "data": DataLabels,
    "guide": GuideLabels,
    "smoothed": SmoothedLabels,
}

INNER_MAXIMISERS: dict[str, type[InnerMaximiser]] = {
    "pgd": PGDInner,
}

LOSSES: dict[str, type[OuterLoss]] = {
    "clean": CleanLoss,
    "adversarial": AdversarialLoss,
    "mixture": MixtureLoss,
    "trades": TradesLoss,
    "dynat": DynatLoss,
}

WEIGHTS: dict[str, type[InstanceWeights]] = {}

PARAMETER_PARTS: dict[str, type[ParameterPart]] = {
    "ema": ExponentialAverage,
}
