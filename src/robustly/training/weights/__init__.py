"""Instance weights by the names that recipes use.

A name is never an import path, so a configuration file cannot run code. New weights add a line here.
"""

from robustly.training.parts import InstanceWeights
from robustly.training.weights.gairat import GairatWeights
from robustly.training.weights.mail import MailWeights

WEIGHTS: dict[str, type[InstanceWeights]] = {
    "gairat": GairatWeights,
    "mail": MailWeights,
}
