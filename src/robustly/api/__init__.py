"""The shortest way from a model to a result: for notebooks and pipelines."""

from robustly.api.certifying import certify
from robustly.api.evaluating import curve, diagnose, evaluate
from robustly.api.result import Result, evidence_folder, plot_threats, read_result

__all__ = ["Result", "certify", "curve", "diagnose", "evaluate", "evidence_folder", "plot_threats", "read_result"]
