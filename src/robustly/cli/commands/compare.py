"""`robustly compare`: its arguments."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly compare` to a parser."""
    parser.description = (
        "Print tables of finished runs: clean accuracy, every attack, the worst case. Runs that differ only in the "
        "seed are one row with mean and standard deviation. Published numbers of the same methods follow."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or folders of sweeps")
    parser.add_argument(
        "--by", choices=("method", "run"), default="method", help="one row per method (default), or per run"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the tables as CSV")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write them as a page with a chart")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Print the tables; returns the exit code. See `run_comparison`."""
    from robustly.cli.compare import run_comparison

    return run_comparison(options.runs, options.by, options.csv, options.html)
