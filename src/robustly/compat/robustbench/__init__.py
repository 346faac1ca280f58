"""RobustBench's functions (github.com/RobustBench/robustbench), on local files.

Names, arguments and defaults are those of RobustBench. Nothing is downloaded, and no other library is imported.
"""

from robustly.compat.robustbench.benchmarking import benchmark, clean_accuracy
from robustly.compat.robustbench.cifar import load_cifar10, load_cifar100
from robustly.compat.robustbench.claims import Claim, claim
from robustly.compat.robustbench.loading import RobustBenchError, load_model

__all__ = [
    "Claim",
    "RobustBenchError",
    "benchmark",
    "claim",
    "clean_accuracy",
    "load_cifar10",
    "load_cifar100",
    "load_model",
]
