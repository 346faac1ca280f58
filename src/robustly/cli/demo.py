"""`robustly demo`."""

from pathlib import Path

from robustly.cli.audit import AuditOptions, run_audit
from robustly.cli.certify import run_certification
from robustly.cli.evaluate import run_evaluation
from robustly.cli.report import run_report
from robustly.cli.terminal import PlainConsole
from robustly.cli.train import run_training
from robustly.evaluation import Sampling
from robustly.experiments.run_folder import CERTIFIED

RECIPES = {"standard": "mnist5k/standard", "dynat": "mnist5k/dynat"}
"""Recipes by the names of their run folders; the last one is audited and certified."""
PROVED_THREAT, PROVED_IMAGES = "linf:0.05", 10
"""Threat and number of images of the proofs, which take 6 s of CPU time each."""


def run_demo(folder: Path, overrides: list[str]) -> int:
    """Train, evaluate, audit, certify and report the two runs of the demo; returns the exit code of the audit.

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
    last = [*runs][-1]
    code = run_audit(last, AuditOptions(Sampling()), trust_code=False)
    PlainConsole().print(
        f"proofs: no attack within {PROVED_THREAT} can break an image that is verified. The threat is smaller than "
        "that of the training, because bounds of this network with its max pools are loose beyond.",
        highlight=False,
        soft_wrap=True,
    )
    run_certification(
        [last],
        ["--threat", PROVED_THREAT, "--evaluation.count", str(PROVED_IMAGES), "--evaluation.suite", "quick"],
        method="crown",
        seconds=None,
        halvings=2,
        trust_code=False,
        overwrite=False,
        label=CERTIFIED,
        keep=True,
    )
    run_report([*runs], folder / "report.html")
    return code
