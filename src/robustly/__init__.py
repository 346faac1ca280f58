"""Training, attacks, certificates and reports of robust networks.

The most used names are exported here, all others by the subpackage of their subject (`robustly.attacks`,
`robustly.training`, ...). Each subpackage can be imported alone. A name is imported at its first use, so that
`import robustly` needs neither PyTorch nor its start-up time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustly.api import Result, certify, curve, diagnose, evaluate, plot_threats, read_result
    from robustly.attacks import ATTACKS, PGD
    from robustly.data import ImageData
    from robustly.evaluation import SUITES, Suite, audit
    from robustly.evidence import read_evidence, write_evidence
    from robustly.models import load_weights, wrap
    from robustly.threats.lp import ThreatModel
    from robustly.training import Method, train

    __version__: str

_EXPORTS = {
    "ATTACKS": "robustly.attacks",
    "PGD": "robustly.attacks",
    "SUITES": "robustly.evaluation",
    "ImageData": "robustly.data",
    "Method": "robustly.training",
    "Result": "robustly.api",
    "Suite": "robustly.evaluation",
    "ThreatModel": "robustly.threats.lp",
    "audit": "robustly.evaluation",
    "certify": "robustly.api",
    "curve": "robustly.api",
    "diagnose": "robustly.api",
    "evaluate": "robustly.api",
    "load_weights": "robustly.models",
    "plot_threats": "robustly.api",
    "read_evidence": "robustly.evidence",
    "read_result": "robustly.api",
    "train": "robustly.training",
    "wrap": "robustly.models",
    "write_evidence": "robustly.evidence",
}
"""Module of each exported name. A new one also gets a line in `__all__` and above, for type checkers."""
_MODULES = (
    *("analysis", "api", "array_files", "attacks", "certification", "compat", "corruptions", "cost_matrix"),
    *("data", "documents", "evaluation", "evidence", "experiments", "files", "launching", "memory"),
    *("model_names", "models", "objectives", "output_text", "performance", "processes", "randomness"),
    *("ray_cluster", "ray_connection", "reports", "runtime", "settings", "sharding", "signals", "statistics"),
    *("testing", "threats", "training"),
)
"""Modules and subpackages that are imported at their first use as attributes."""

__all__ = [
    "ATTACKS",
    "PGD",
    "SUITES",
    "ImageData",
    "Method",
    "Result",
    "Suite",
    "ThreatModel",
    "__version__",
    "audit",
    "certify",
    "curve",
    "diagnose",
    "evaluate",
    "load_weights",
    "plot_threats",
    "read_evidence",
    "read_result",
    "train",
    "wrap",
    "write_evidence",
]


def __getattr__(name: str) -> Any:
    """Import an exported name or a module (PEP 562)."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"robustly.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("robustly")
    raise AttributeError(f"module 'robustly' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names of the module, those that are not imported yet included."""
    return sorted({*globals(), *__all__, *_MODULES})
