"""Training, attacks, certificates and reports of robust networks.

The most used names are exported here, all others by the subpackage of their subject (`robustly.attacks`,
`robustly.training`, ...). Each subpackage can be imported alone.
"""

from importlib.metadata import version

from robustly.attacks import ATTACKS, PGD
from robustly.data import ImageData
from robustly.evaluation import SUITES, Suite, audit, evaluate
from robustly.evidence import read_evidence, write_evidence
from robustly.models import load_weights
from robustly.threats.lp import ThreatModel
from robustly.training import Method, train

__version__ = version("robustly")

__all__ = [
    "ATTACKS",
    "PGD",
    "SUITES",
    "ImageData",
    "Method",
    "Suite",
    "ThreatModel",
    "__version__",
    "audit",
    "evaluate",
    "load_weights",
    "read_evidence",
    "train",
    "write_evidence",
]
