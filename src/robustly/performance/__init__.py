"""A performance model: measured passes, attacks and training steps, and predicted times of whole runs."""

from robustly.performance.attack_times import AttackTime, Floor, measure_attacks
from robustly.performance.bench import PARTS, Memory, Plan, Report, bench
from robustly.performance.bound_times import BoundTime, BoundTimes, measure_bounds
from robustly.performance.choices import Choices, cache_folder, choose, keep, kept, key_of, machine
from robustly.performance.passes import KINDS, Passes, PassTime, measure_passes
from robustly.performance.peak import peak_bytes, weight_bytes
from robustly.performance.prediction import (
    SuitePrediction,
    Survival,
    duration_words,
    predict_suite,
    survival_of,
)
from robustly.performance.step_times import StepTime, measure_step
from robustly.performance.timing import BenchError, Meter, Rounds, Spread, alternating

__all__ = [
    "KINDS",
    "PARTS",
    "AttackTime",
    "BenchError",
    "BoundTime",
    "BoundTimes",
    "Choices",
    "Floor",
    "Memory",
    "Meter",
    "PassTime",
    "Passes",
    "Plan",
    "Report",
    "Rounds",
    "Spread",
    "StepTime",
    "SuitePrediction",
    "Survival",
    "alternating",
    "bench",
    "cache_folder",
    "choose",
    "duration_words",
    "keep",
    "kept",
    "key_of",
    "machine",
    "measure_attacks",
    "measure_bounds",
    "measure_passes",
    "measure_step",
    "peak_bytes",
    "predict_suite",
    "survival_of",
    "weight_bytes",
]
