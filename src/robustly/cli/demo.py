"""`robustly demo`."""

from pathlib import Path

from robustly.cli.audit import AuditOptions, run_audit
from robustly.cli.evaluate import run_evaluation
from robustly.cli.report import run_report
from robustly.cli.train import run_training
from robustly.evaluation import Sampling

RECIPES = {"standard": "mnist5k/standard", "dynat": "mnist5k/dynat"}
"""Recipes by the names of their run folders; the last one is audited."""


def run_demo(folder: Path, overrides: list[str]) -> int:
    """Train, evaluate, audit and report the two runs of the demo; returns the exit code of the audit.

    Runs and evaluations that are finished are kept.

    Args:
        folder: folder of the two runs and of the page `report.html`.
        overrides: settings of both runs, such as `--training.epochs 1`.

    Raises:
        ValueError: the folder has runs with other settings.
        OSError: a file cannot be written.
    """
    runs = {folder / name: recipe for name, recipe in RECIPES.items()}
    for run, recipe in runs.items():
        run_training(recipe, run, None, overrides, trust_code=False)
        run_evaluation(run, [], trust_code=False, overwrite=False, keep=True)
    code = run_audit([*runs][-1], AuditOptions(Sampling()), trust_code=False)
    run_report([*runs], folder / "report.html")
    return code
