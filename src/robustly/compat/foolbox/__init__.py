"""Attacks in Foolbox 3's form: `raw, clipped, is_adv = attack(fmodel, images, labels, epsilons=[...])`."""

from robustly.compat.foolbox import attacks
from robustly.compat.foolbox.models import Misclassification, PyTorchModel, TargetedMisclassification, accuracy

__all__ = ["Misclassification", "PyTorchModel", "TargetedMisclassification", "accuracy", "attacks"]
