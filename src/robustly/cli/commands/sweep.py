"""`robustly sweep`: its arguments."""

import argparse
from pathlib import Path

from robustly.cli.arguments import add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly sweep` to a parser."""
    parser.description = (
        "Train every recipe with every combination of values and every seed, each in its own folder. The same "
        "command again, or --resume, continues a stopped sweep. Settings for all runs are given as for train: "
        "--training.epochs 5. The exit code is 2 if a run fails."
    )
    add_trust(parser)
    add = parser.add_argument
    add("recipes", nargs="*", metavar="RECIPE", help="recipes, or the .yaml file of a sweep")
    add("--seeds", metavar="0,1,2", help="seeds of the runs (default: 0)")
    add("--over", action="append", default=[], metavar="KEY=VALUE,VALUE", help="a setting that varies; repeatable")
    add("--evaluate", action="store_true", help="evaluate every trained run")
    add("--out", type=Path, help="folder of the sweep (default: runs/sweep, or runs/NAME for NAME.yaml)")
    add("--resume", type=Path, metavar="FOLDER", help="continue a stopped sweep")
    add("--workers", type=int, default=1, metavar="N", help="number of runs at a time, each in its own process")
    add("--threads", type=int, metavar="N", help="threads per run (default: its share of the cores; 1 with --ray)")
    add("--ray", metavar="ADDRESS", help="address of a Ray cluster whose nodes share the folder, auto, or local")
    add("--print-commands", action="store_true", help="print a shell command for each run and start none")
    add("--dry-run", action="store_true", help="check settings, print the runs and their states, write nothing")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Train all runs of a sweep; returns the exit code. See `run_sweep`."""
    from robustly.cli.sweep import run_sweep

    return run_sweep(options, overrides)
