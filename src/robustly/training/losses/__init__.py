"""Outer losses by the names that recipes use.

A name is never an import path, so a configuration file cannot run code. A new loss adds a line here.
"""

from robustly.training.losses.consistency import AlpLoss, TradesLoss
from robustly.training.losses.cost_sensitive import CostSensitiveLoss
from robustly.training.losses.cross_entropy import AdversarialLoss, CleanLoss, MixtureLoss
from robustly.training.losses.distillation import AdaadLoss, ArdLoss, KdLoss, RsladLoss
from robustly.training.losses.gkl import DklLoss, GklLoss
from robustly.training.losses.guided import DynatLoss, LbgatLoss
from robustly.training.losses.helper import HatLoss
from robustly.training.losses.introspective import Iad2Loss, IadLoss
from robustly.training.losses.mart import MartLoss
from robustly.training.losses.mean_teacher import MeanTeacherLoss
from robustly.training.losses.smoothed_margin import MacerLoss, MarginCsLoss
from robustly.training.losses.tafd import TafdLoss
from robustly.training.parts import OuterLoss

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
    "hat": HatLoss,
    "mean_teacher": MeanTeacherLoss,
    "cost_sensitive": CostSensitiveLoss,
    "macer": MacerLoss,
    "margin_cs": MarginCsLoss,
    "tafd": TafdLoss,
}
