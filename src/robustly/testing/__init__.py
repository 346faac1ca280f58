"""Contract checks for authors of new attacks, threats, objectives, certificates and training parts.

Each function runs a part on small networks and raises `AssertionError` with the property that does not hold.
"""

from robustly.testing.attacks import check_attack
from robustly.testing.certificates import check_certificate
from robustly.testing.networks import SHAPES, small_network
from robustly.testing.objectives import check_objective
from robustly.testing.threats import check_threat
from robustly.testing.training import check_part

__all__ = [
    "SHAPES",
    "check_attack",
    "check_certificate",
    "check_objective",
    "check_part",
    "check_threat",
    "small_network",
]
