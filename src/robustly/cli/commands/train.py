"""`robustly train`: its arguments."""

import argparse
from pathlib import Path

from robustly.cli.arguments import add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly train` to a parser."""
    parser.description = (
        "Train from a recipe (see `robustly recipes`) or a YAML file. Any setting can be changed: "
        "--training.epochs 5, --threat linf:0.2, --method.loss.beta 3, --data.source FILE."
    )
    add_trust(parser)
    parser.add_argument("recipe", nargs="?", help="dataset/method, or the path of a .yaml file")
    parser.add_argument("--out", type=Path, help="run folder to create (default: runs/RECIPE)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue a stopped run")
    parser.add_argument("--dry-run", action="store_true", help="check all settings, print the parts and their cost")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Train; returns the exit code. See `run_training`."""
    from robustly.cli.train import run_training

    return run_training(options.recipe, options.out, options.resume, overrides, options.trust_code, options.dry_run)
